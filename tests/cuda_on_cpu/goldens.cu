// What each instruction of ptx.cuh returns, one kernel for each, one warp; see goldens.py.
#include "ptx.cuh"

extern "C" __global__ void to_tf32_golden(const float* __restrict__ x, u32* __restrict__ out) {
  out[threadIdx.x] = to_tf32(x[threadIdx.x]);
}

extern "C" __global__ void pack_bf16_golden(const float* __restrict__ x, u32* __restrict__ out) {
  out[threadIdx.x] = pack_bf16(x[2 * threadIdx.x], x[2 * threadIdx.x + 1]);
}

// a, b: words of each lane, in the order of the fragment's registers.
extern "C" __global__ void mma_m16n8k8_tf32_golden(const u32* __restrict__ a, const u32* __restrict__ b,
                                                   float* __restrict__ out) {
  const int lane = threadIdx.x;
  float d[4];
  u32 words[4];
  for (int i = 0; i < 4; i++) d[i] = (float)(lane - i), words[i] = a[4 * lane + i];
  mma_m16n8k8_tf32(d, words, b[2 * lane], b[2 * lane + 1]);
  for (int i = 0; i < 4; i++) out[4 * lane + i] = d[i];
}

extern "C" __global__ void mma_m16n8k16_bf16_golden(const u32* __restrict__ a, const u32* __restrict__ b,
                                                    float* __restrict__ out) {
  const int lane = threadIdx.x;
  float d[4];
  u32 words[4];
  for (int i = 0; i < 4; i++) d[i] = (float)(lane - i), words[i] = a[4 * lane + i];
  mma_m16n8k16_bf16(d, words, b[2 * lane], b[2 * lane + 1]);
  for (int i = 0; i < 4; i++) out[4 * lane + i] = d[i];
}

// x: 32 rows of 8 16-bit elements.
extern "C" __global__ void ldmatrix_x4_golden(const u16* __restrict__ x, u32* __restrict__ out) {
  __shared__ __align__(128) u16 tile[32 * 8];
  for (int i = 0; i < 8; i++) tile[threadIdx.x * 8 + i] = x[threadIdx.x * 8 + i];
  __syncthreads();
  u32 r[4];
  ldmatrix_x4(r, tile + threadIdx.x * 8);
  for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = r[i];
}

extern "C" __global__ void ldmatrix_x4_transposed_golden(const u16* __restrict__ x,
                                                         u32* __restrict__ out) {
  __shared__ __align__(128) u16 tile[32 * 8];
  for (int i = 0; i < 8; i++) tile[threadIdx.x * 8 + i] = x[threadIdx.x * 8 + i];
  __syncthreads();
  u32 r[4];
  ldmatrix_x4_transposed(r, tile + threadIdx.x * 8);
  for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = r[i];
}

// Each lane copies 16, 8 and 4 bytes in two groups; every third one asks for zeros.
extern "C" __global__ void cp_async_golden(const u32* __restrict__ x, u32* __restrict__ out) {
  __shared__ __align__(128) u32 tile[32 * 8];
  const int lane = threadIdx.x;
  const bool valid = lane % 3 != 0;
  for (int i = 0; i < 8; i++) tile[8 * lane + i] = 0x7fffffffu;
  __syncthreads();
  cp_async<16>(tile + 8 * lane, x + 8 * lane, valid);
  cp_async_commit();
  cp_async<8>(tile + 8 * lane + 4, x + 8 * lane + 4, valid);
  cp_async<4>(tile + 8 * lane + 6, x + 8 * lane + 6, !valid);
  cp_async_commit();
  cp_async_wait<1>();
  for (int i = 0; i < 4; i++) out[8 * lane + i] = tile[8 * lane + i];
  cp_async_wait<0>();
  for (int i = 4; i < 8; i++) out[8 * lane + i] = tile[8 * lane + i];
}
