// What each instruction of ptx.cuh returns, one kernel for each, one warp or warpgroup; see goldens.py.
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

// ---- by a warpgroup: 128 threads, for sm_90a alone ----

#if defined(CUSHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Rows of 128 bytes, whose pieces of 16 bytes change places with the row's number, as 128-byte swizzle has it.
DEVICE void fill_swizzled(u16* tile, const u16* x, int rows, int row_length) {
  for (int i = threadIdx.x; i < rows * 64; i += 128) {
    const int row = i / 64, column = i % 64;
    tile[64 * row + 8 * (column / 8 ^ row % 8) + column % 8] = x[row * row_length + column];
  }
}

// Numbers for the products of 64 k: `outer` x 64, or across 64 x `outer`, 64 columns after the others.
template <bool ACROSS>
DEVICE void fill_operand(u16* tile, const u16* x, int outer) {
  if (ACROSS)
    for (int first = 0; first < outer; first += 64) fill_swizzled(tile + 64 * first, x + first, 64, outer);
  else
    fill_swizzled(tile, x, outer, 64);
}

// The k from 16 `step` on.
template <bool ACROSS>
DEVICE u64 operand(const u16* tile, int step) {
  if (ACROSS) return wgmma_operand(tile + step * 16 * 64, 64 * 128, 1024);
  return wgmma_operand(tile + step * 16, 0, 1024);
}

// Of each thread's sums only four weighted ones are recorded, or the record would be large.
template <int N, bool A_ACROSS, bool B_ACROSS>
DEVICE void wgmma_golden(const u16* a, const u16* b, float* out) {
  DYN_SHARED(u16, tiles);  // (64 + N) x 64
  fill_operand<A_ACROSS>(tiles, a, 64);
  fill_operand<B_ACROSS>(tiles + 64 * 64, b, N);
  fence_proxy_async();
  __syncthreads();
  float d[N / 8][4];
  for (int j = 0; j < N / 8; j++)
    for (int i = 0; i < 4; i++) d[j][i] = (float)((int)threadIdx.x - i + j);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; step++) {
    wgmma_m64k16_bf16<N, A_ACROSS, B_ACROSS>(d, operand<A_ACROSS>(tiles, step),
                                             operand<B_ACROSS>(tiles + 64 * 64, step));
    wgmma_commit();
  }
  wgmma_wait<1>();
  wgmma_wait<0>();
  keep_in_register(d);
  for (int i = 0; i < 4; i++) {
    float sum = 0;
    for (int j = 0; j < N / 8; j++) sum += (float)(j + 1) * d[j][i];
    out[4 * threadIdx.x + i] = sum;
  }
}

#define WGMMA_GOLDEN(suffix, N, A_ACROSS, B_ACROSS)                                                      \
  extern "C" __global__ void wgmma_m64k16_bf16_golden_##suffix(                                          \
      const u16* __restrict__ a, const u16* __restrict__ b, float* __restrict__ out) {                   \
    wgmma_golden<N, A_ACROSS, B_ACROSS>(a, b, out);                                                      \
  }

WGMMA_GOLDEN(64, 64, false, false)
WGMMA_GOLDEN(128, 128, false, false)
WGMMA_GOLDEN(64_across, 64, true, true)
WGMMA_GOLDEN(128_across, 128, true, true)
WGMMA_GOLDEN(128_a_across, 128, true, false)
WGMMA_GOLDEN(128_b_across, 128, false, true)

#endif
