// What CUDA allows and the checker must not complain about, and kernels that show what the twins compute.
#include "common.cuh"
#include "ptx.cuh"

#define KERNEL extern "C" __global__ void
#define LANE (threadIdx.x & 31)

// ---- each leaves in y what test_cuda_checker.py computes ----

KERNEL reverse_by_syncwarp(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 31];
}

KERNEL tree(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int step = 32; step; step /= 2) {
    if (threadIdx.x < step) s[threadIdx.x] += s[threadIdx.x + step];
    __syncthreads();
  }
  y[threadIdx.x] = s[0];
}

KERNEL block_sums(const float* x, float* y) {  // of two calls the second uses the first one's memory
  y[threadIdx.x] = block_sum<64>(block_sum<64>(x[threadIdx.x]) / 64);
}

KERNEL half_warps(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (LANE < 16)
    v += __shfl_xor_sync(0xffffu, v, 1);
  else
    v += __shfl_xor_sync(0xffff0000u, v, 1);
  y[threadIdx.x] = v;
}

KERNEL whole_warp_returns(const float* x, float* y) {
  if (threadIdx.x >= 32) return;
  y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}

KERNEL neighbours_in_a_word(const float* x, u16* y) {
  __shared__ u16 s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}

KERNEL vectors(const float4* x, float4* y) {
  __shared__ float4 s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}

KERNEL in_place(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] + 1; }

__device__ constexpr float TABLE[4] = {0.5f, 1, 2, 4};

KERNEL dynamic_in_two_parts(const float* x, float* y) {
  DYN_SHARED(float, first);
  double* second = reinterpret_cast<double*>(first + 64);
  first[threadIdx.x] = x[threadIdx.x];
  second[threadIdx.x] = TABLE[threadIdx.x % 4];
  __syncthreads();
  y[threadIdx.x] = first[63 - threadIdx.x] * (float)second[63 - threadIdx.x];
}

KERNEL counter(const float* x, u32* y) {
  if (x[threadIdx.x] > 10) atomicAdd(y, 1u);
  if (__syncthreads_count(threadIdx.x < 7) != 7) __trap();
  if (__syncthreads_or(threadIdx.x > 63) || !__syncthreads_and(threadIdx.x < 64)) __trap();
  if (__reduce_add_sync(EVERY_LANE, (int)LANE) != 31 * 16) __trap();
  if (__popc(__ballot_sync(EVERY_LANE, LANE % 2)) != 16) __trap();
}

KERNEL shuffles(const float* x, double* y) {  // also of 8 bytes, and of parts of a warp
  double v = x[threadIdx.x];
  v += __shfl_down_sync(EVERY_LANE, v, 4, 8) + __shfl_up_sync(EVERY_LANE, v, 3);
  y[threadIdx.x] = v + __shfl_sync(EVERY_LANE, v, 5, 16);
}

// ---- fragments: each thread's registers come from a and b, and go to d ----

KERNEL multiply_tf32(const u32* a, const u32* b, float* d) {
  u32 A[4], B[2];
  float D[4] = {};
  for (int i = 0; i < 4; i++) A[i] = a[LANE * 4 + i];
  for (int i = 0; i < 2; i++) B[i] = b[LANE * 2 + i];
  mma_m16n8k8_tf32(D, A, B[0], B[1]);
  for (int i = 0; i < 4; i++) d[LANE * 4 + i] = D[i];
}

KERNEL multiply_bf16(const u32* a, const u32* b, float* d) {
  u32 A[4], B[2];
  float D[4] = {};
  for (int i = 0; i < 4; i++) A[i] = a[LANE * 4 + i];
  for (int i = 0; i < 2; i++) B[i] = b[LANE * 2 + i];
  mma_m16n8k16_bf16(D, A, B[0], B[1]);
  for (int i = 0; i < 4; i++) d[LANE * 4 + i] = D[i];
}

KERNEL load_matrices(const u16* x, u32* y, int transposed) {
  __shared__ __align__(16) u16 s[32][8];
  for (int i = 0; i < 8; i++) s[LANE][i] = x[LANE * 8 + i];
  __syncwarp();
  u32 r[4];
  if (transposed)
    ldmatrix_x4_transposed(r, s[LANE]);
  else
    ldmatrix_x4(r, s[LANE]);
  for (int i = 0; i < 4; i++) y[LANE * 4 + i] = r[i];
}

KERNEL round_to_tf32(const float* x, u32* y) { y[threadIdx.x] = to_tf32(x[threadIdx.x]); }

// ---- wgmma: two warpgroups, d (128 x 64) = a (128 x 256) b^T (64 x 256) ----

#if defined(CUSHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Three stages of 64 k: one is copied to and one read while products of the third may still be under way.
KERNEL multiply_wgmma(const u16* a, const u16* b, float* y) {
  DYN_SHARED(u16, s);
  auto stage = [&](int number) { return s + number % 3 * (128 + 64) * 64; };
  auto copy = [&](int number) {
    for (int i = threadIdx.x; i < (128 + 64) * 8 && number < 4; i += 256) {
      const int row = i / 8, piece = i % 8;
      const u16* from = row < 128 ? a + row * 256 : b + (row - 128) * 256;
      cp_async<16>(stage(number) + 64 * row + 8 * (piece ^ row % 8), from + 64 * number + 8 * piece, true);
    }
    cp_async_commit();
  };
  float d[8][4] = {};
  copy(0);
  for (int number = 0; number < 4; number++) {
    copy(number + 1);
    cp_async_wait<1>();
    fence_proxy_async();
    __syncthreads();
    const u16 *left = stage(number) + threadIdx.x / 128 * 64 * 64, *right = stage(number) + 128 * 64;
    wgmma_fence();
    for (int k = 0; k < 64; k += 16)
      wgmma_m64k16_bf16<64, false, false>(d, wgmma_operand(left + k, 0, 1024),
                                          wgmma_operand(right + k, 0, 1024));
    wgmma_commit();
    wgmma_wait<1>();
    __syncthreads();
  }
  wgmma_wait<0>();
  const int row = threadIdx.x / 32 * 16 + LANE / 4, column = LANE % 4 * 2;
  for (int j = 0; j < 8; j++)
    for (int i = 0; i < 4; i++) y[(row + i / 2 * 8) * 64 + 8 * j + column + i % 2] = d[j][i];
}

#endif
