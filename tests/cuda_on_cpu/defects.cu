// One classic mistake in each kernel; NVRTC compiles them all. test_cuda_checker.py says how each is
// launched and what the checker must answer. y has at least as many elements as there are threads.
#include "common.cuh"
#include "ptx.cuh"

#define KERNEL extern "C" __global__ void
#define LANE (threadIdx.x & 31)

// ---- barriers and races within a block ----

KERNEL no_barrier(float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = s[63 - threadIdx.x];
}

KERNEL no_barrier_before_reuse(float* y) {
  __shared__ float s[64];
  float sum = 0;
  for (int i = 0; i < 3; i++) {
    s[threadIdx.x] = i;
    __syncthreads();
    sum += s[63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

KERNEL no_barrier_in_tree(float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = 1;
  __syncthreads();
  for (int step = 32; step; step /= 2)
    if (threadIdx.x < step) s[threadIdx.x] += s[threadIdx.x + step];
  if (threadIdx.x == 0) y[0] = s[0];
}

KERNEL sum_without_atomics(float* y) { y[0] += threadIdx.x; }

KERNEL all_write_one(float* y) {
  __shared__ int flag;
  flag = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = flag;
}

KERNEL atomic_and_plain(int* y) {
  if (threadIdx.x < 32) atomicAdd(&y[0], 1);
  else y[threadIdx.x] = y[0];
}

KERNEL halves_of_a_word(u16* y) {  // 16 bits beside each other are fine, the same ones are not
  __shared__ u16 s[65];
  s[threadIdx.x] = 1;
  s[threadIdx.x + 1] = 2;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

KERNEL barrier_in_branch(float* y) {
  if (threadIdx.x < 16) __syncthreads();
  y[threadIdx.x] = 1;
}

KERNEL barrier_in_each_branch(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

KERNEL return_before_barrier(float* y) {
  if (threadIdx.x >= 60) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}

KERNEL barrier_in_unequal_loop(float* y) {
  for (int i = 0; i < 1 + (int)threadIdx.x / 32; i++) __syncthreads();
  y[threadIdx.x] = 1;
}

// ---- warps ----

KERNEL no_syncwarp(float* y) {
  __shared__ float s[32];
  s[LANE] = LANE;
  y[LANE] = s[31 - LANE];
}

KERNEL shuffle_instead_of_syncwarp(float* y) {
  __shared__ float s[32];
  s[LANE] = LANE;
  float one = __shfl_xor_sync(EVERY_LANE, 1.f, 1);
  y[LANE] = s[31 - LANE] * one;
}

KERNEL syncwarp_of_half_a_warp(float* y) {
  __shared__ float s[32];
  s[LANE] = LANE;
  __syncwarp(LANE < 16 ? 0xffffu : 0xffff0000u);
  y[LANE] = s[31 - LANE];
}

KERNEL shuffle_in_branch(float* y) {
  float v = LANE;
  if (LANE < 16)
    v += __shfl_xor_sync(EVERY_LANE, v, 8);
  else
    v += __shfl_xor_sync(EVERY_LANE, v, 4);
  y[LANE] = v;
}

KERNEL shuffle_by_some(float* y) {
  float v = LANE;
  if (LANE < 20) v = __shfl_down_sync(EVERY_LANE, v, 1);
  y[LANE] = v;
}

KERNEL mask_without_caller(float* y) { y[LANE] = __shfl_xor_sync(0x0000ffffu, (float)LANE, 1); }

KERNEL shuffle_from_outside_mask(float* y) {
  float v = LANE;
  if (LANE < 16) v = __shfl_down_sync(0xffffu, v, 8);
  y[LANE] = v;
}

KERNEL shuffle_after_return(float* y) {
  if (LANE >= 30) return;
  y[LANE] = __shfl_xor_sync(EVERY_LANE, (float)LANE, 1);
}

KERNEL shuffle_in_part_of_a_warp(float* y) { y[threadIdx.x] = warp_sum(1.f); }  // 40 threads

KERNEL vote_against_shuffle(float* y) {
  if (LANE < 16)
    y[LANE] = __ballot_sync(EVERY_LANE, 1);
  else
    y[LANE] = __shfl_sync(EVERY_LANE, 1.f, 0);
}

KERNEL product_in_branch(float* y) {
  float d[4] = {};
  const u32 a[4] = {};
  if (LANE < 31) mma_m16n8k16_bf16(d, a, 0, 0);
  y[LANE] = d[0];
}

// ---- uninitialised shared memory ----

KERNEL uninitialised(float* y) {
  __shared__ float s[64];
  if (threadIdx.x < 60) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}

KERNEL uninitialised_dynamic(float* y) {
  DYN_SHARED(float, s);
  if (threadIdx.x) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

KERNEL left_by_another_block(float* y) {
  __shared__ float s[64];
  if (blockIdx.x == gridDim.x - 1) s[threadIdx.x] = 1;
  __syncthreads();
  y[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x];
}

// ---- bounds ----

KERNEL write_past_end(float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = 1; }

KERNEL read_past_end(const float* x, float* y, int n) {
  if (threadIdx.x <= n) y[threadIdx.x] = x[threadIdx.x];
}

KERNEL read_before_begin(const float* x, float* y) { y[threadIdx.x] = x[(int)threadIdx.x - 1]; }

KERNEL far_outside(float* y) { y[(i64)threadIdx.x << 30] = 1; }

KERNEL vector_past_end(float* y, int n) {  // n is no multiple of 4
  if (4 * threadIdx.x < n) reinterpret_cast<float4*>(y)[threadIdx.x] = make_float4(1, 2, 3, 4);
}

KERNEL shared_past_end(float* y) {
  __shared__ float s[64], beside[64];
  beside[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x] + beside[threadIdx.x];
}

KERNEL dynamic_shared_past_end(float* y) {
  DYN_SHARED(float, s);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x + 1];
}

KERNEL registers_past_end(float* y, int n) {
  float a[4] = {1, 2, 3, 4};
  y[threadIdx.x] = a[threadIdx.x % n];
}

KERNEL no_array(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }

KERNEL others_registers(float* y) {
  __shared__ float* s;
  float mine = threadIdx.x;
  if (threadIdx.x == 0) s = &mine;
  __syncthreads();
  y[threadIdx.x] = *s + mine;
}

KERNEL write_to_const(const float* y) { const_cast<float*>(y)[threadIdx.x] = 1; }

// ---- alignment and arithmetic ----

KERNEL misaligned(float* y) {
  reinterpret_cast<float4*>(y + 1)[threadIdx.x] = make_float4(1, 2, 3, 4);
}

KERNEL misaligned_shared(float* y) {
  __shared__ __align__(16) float s[64 * 5];
  store<4>(&s[5 * threadIdx.x], Vector<float, 4>{{1, 2, 3, 4}});
  y[threadIdx.x] = s[5 * threadIdx.x];
}

KERNEL index_overflows(float* y, int n) { y[threadIdx.x] = n * 65536; }

KERNEL shift_too_far(float* y, int n) { y[threadIdx.x] = 1 << n; }

KERNEL divides_by_zero(float* y, int n) { y[threadIdx.x] = (int)threadIdx.x / n; }

KERNEL asserts(float* y, int n) {
  assert(n < 3);
  y[threadIdx.x] = 1;
}

// ---- between blocks ----

KERNEL blocks_write_one(float* y) { y[threadIdx.x] = blockIdx.x; }

KERNEL reads_other_block(float* y) {
  if (threadIdx.x) return;
  y[blockIdx.x] = 1;
  y[32 + blockIdx.x] = y[(blockIdx.x + 1) % gridDim.x];
}

// The block that comes last adds up what all have written.
template <bool FENCE, bool BARRIER>
DEVICE void sum_in_last_block(float* part, u32* counter) {
  __shared__ bool last;
  part[blockIdx.x * 32 + threadIdx.x] = 1;
  if (BARRIER) __syncthreads();
  if (threadIdx.x == 0) {
    if (FENCE) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x) return;
  float sum = 0;
  for (int i = 0; i < gridDim.x * 32; i++) sum += part[i];
  part[gridDim.x * 32] = sum;
}

KERNEL last_block_without_fence(float* y, u32* counter) { sum_in_last_block<false, true>(y, counter); }
KERNEL fence_without_barrier(float* y, u32* counter) { sum_in_last_block<true, false>(y, counter); }
KERNEL last_block(float* y, u32* counter) { sum_in_last_block<true, true>(y, counter); }  // right

// ---- asynchronous copies: 64 threads, 4 floats each ----

#define COPY(stage, from) cp_async<16>(&s[stage][4 * threadIdx.x], x + (from) + 4 * threadIdx.x, true)

KERNEL copy_without_wait(const float* x, float* y) {
  __shared__ __align__(16) float s[1][256];
  COPY(0, 0);
  cp_async_commit();
  __syncthreads();
  y[threadIdx.x] = s[0][threadIdx.x];
  cp_async_wait<0>();
}

KERNEL copy_without_commit(const float* x, float* y) {
  __shared__ __align__(16) float s[1][256];
  COPY(0, 0);
  cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = s[0][threadIdx.x];
  cp_async_commit();
  cp_async_wait<0>();
}

KERNEL copy_without_barrier(const float* x, float* y) {
  __shared__ __align__(16) float s[1][256];
  COPY(0, 0);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = s[0][threadIdx.x];
}

// Adds up 4 stretches of x, two in flight.
template <int LEFT_OVER, bool BARRIER>
DEVICE void pipeline(const float* x, float* y) {
  __shared__ __align__(16) float s[2][256];
  float sum = 0;
  COPY(0, 0);
  cp_async_commit();
  for (int i = 0; i < 4; i++) {
    if (i < 3) COPY((i + 1) % 2, 256 * (i + 1));
    cp_async_commit();
    cp_async_wait<LEFT_OVER>();
    __syncthreads();
    sum += s[i % 2][255 - threadIdx.x];
    if (BARRIER) __syncthreads();
  }
  y[threadIdx.x] = sum;
  cp_async_wait<0>();
}

KERNEL copy_waited_for_too_few(const float* x, float* y) { pipeline<2, true>(x, y); }
KERNEL copy_into_what_is_read(const float* x, float* y) { pipeline<1, false>(x, y); }
KERNEL copies_in_order(const float* x, float* y) { pipeline<1, true>(x, y); }  // right

KERNEL copy_never_waited_for(const float* x, float* y) {
  __shared__ __align__(16) float s[1][256];
  COPY(0, 0);
  cp_async_commit();
  y[threadIdx.x] = 1;
}

KERNEL copy_misaligned(const float* x, float* y) {
  __shared__ __align__(16) float s[1][256];
  COPY(0, 1);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = s[0][4 * threadIdx.x];
}

KERNEL copy_past_end(const float* x, float* y) {
  __shared__ __align__(16) float s[1][256];
  COPY(0, 800);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = s[0][4 * threadIdx.x];
}

KERNEL copy_to_global(const float* x, float* y) {
  cp_async<16>(y + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<0>();
}

// ---- ldmatrix ----

KERNEL matrix_misaligned(float* y) {
  __shared__ __align__(16) u16 s[32 * 12];
  for (int i = LANE; i < 32 * 12; i += 32) s[i] = 1;
  __syncwarp();
  u32 r[4];
  ldmatrix_x4(r, s + 12 * LANE);
  y[LANE] = r[0];
}

KERNEL matrix_without_barrier(float* y) {
  __shared__ __align__(16) u16 s[32 * 8];
  for (int i = LANE; i < 32 * 8; i += 32) s[i] = 1;
  u32 r[4];
  ldmatrix_x4(r, s + 8 * LANE);
  y[LANE] = r[0];
}

// ---- wgmma: 128 threads, operands of ones in 2 TILE + 512 numbers of memory; for sm_90a alone ----

#if defined(CUSHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define PRODUCT(d, a, b) wgmma_m64k16_bf16<64, false, false>(d, a, b)
#define OPERAND(first) wgmma_operand(s + (first), 0, 1024)
#define TILE 4096  // numbers in 64 rows of 128 bytes; the first one is a, the second b

DEVICE void ones(u16* s, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = 0x3f80;
}

// Everything in its place, but for what is said.
enum Flaw {
  NONE, NO_PROXY_FENCE, LATE_PROXY_FENCE, NO_BARRIER, NO_FENCE, EARLY_FENCE, READ_EARLY, TOO_FEW_WAITED_FOR,
  NO_COMMIT, NO_WAIT, OVERWRITTEN, OVERWRITTEN_WITHOUT_BARRIER, WAIT_IN_BRANCH
};

template <Flaw FLAW>
DEVICE void multiply_ones(float* y) {
  DYN_SHARED(u16, s);
  ones(s, 2 * TILE);
  if (FLAW != NO_PROXY_FENCE && FLAW != LATE_PROXY_FENCE) fence_proxy_async();
  if (FLAW != NO_BARRIER) __syncthreads();
  if (FLAW == LATE_PROXY_FENCE) fence_proxy_async();
  float d[8][4];
  if (FLAW == EARLY_FENCE) wgmma_fence();
  for (int j = 0; j < 8; j++)
    for (int i = 0; i < 4; i++) d[j][i] = 1;
  if (FLAW != NO_FENCE && FLAW != EARLY_FENCE) wgmma_fence();
  PRODUCT(d, OPERAND(0), OPERAND(TILE));
  if (FLAW != NO_COMMIT) wgmma_commit();
  if (FLAW == READ_EARLY) y[threadIdx.x] = d[0][0];
  if (FLAW == OVERWRITTEN) s[threadIdx.x] = 0;
  if (FLAW == TOO_FEW_WAITED_FOR) wgmma_wait<1>();
  else if (FLAW == WAIT_IN_BRANCH && LANE < 16) wgmma_wait<0>();
  else if (FLAW != NO_WAIT && FLAW != WAIT_IN_BRANCH) wgmma_wait<0>();
  if (FLAW == OVERWRITTEN_WITHOUT_BARRIER) s[threadIdx.x] = 0;
  if (FLAW != NO_WAIT && FLAW != READ_EARLY) y[threadIdx.x] = d[7][3];
}

KERNEL product_in_order(float* y) { multiply_ones<NONE>(y); }  // right
KERNEL product_without_proxy_fence(float* y) { multiply_ones<NO_PROXY_FENCE>(y); }
KERNEL product_with_proxy_fence_too_late(float* y) { multiply_ones<LATE_PROXY_FENCE>(y); }
KERNEL product_without_barrier(float* y) { multiply_ones<NO_BARRIER>(y); }
KERNEL product_without_fence(float* y) { multiply_ones<NO_FENCE>(y); }
KERNEL product_with_fence_too_early(float* y) { multiply_ones<EARLY_FENCE>(y); }
KERNEL product_read_too_early(float* y) { multiply_ones<READ_EARLY>(y); }
KERNEL product_waited_for_too_few(float* y) { multiply_ones<TOO_FEW_WAITED_FOR>(y); }
KERNEL product_without_commit(float* y) { multiply_ones<NO_COMMIT>(y); }
KERNEL product_never_waited_for(float* y) { multiply_ones<NO_WAIT>(y); }
KERNEL product_of_what_is_overwritten(float* y) { multiply_ones<OVERWRITTEN>(y); }
KERNEL product_overwritten_without_barrier(float* y) { multiply_ones<OVERWRITTEN_WITHOUT_BARRIER>(y); }
KERNEL product_waited_for_in_branch(float* y) { multiply_ones<WAIT_IN_BRANCH>(y); }

// One product of what comes before in the kernel.
#define READY(n)                                    \
  DYN_SHARED(u16, s);                               \
  ones(s, n);                                       \
  fence_proxy_async();                              \
  __syncthreads();                                  \
  float d[8][4] = {};                               \
  wgmma_fence()
#define DONE                                        \
  wgmma_commit();                                   \
  wgmma_wait<0>();                                  \
  y[threadIdx.x] = d[0][0]

KERNEL product_uninitialised(float* y) {
  READY(2 * TILE - 1);
  for (int k = 0; k < 64; k += 16) PRODUCT(d, OPERAND(k), OPERAND(TILE + k));
  DONE;
}

KERNEL product_past_end(float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), wgmma_operand(s + TILE, 0, 4096));
  DONE;
}

KERNEL product_of_misplaced_atoms(float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), OPERAND(TILE + 64));
  DONE;
}

KERNEL product_of_misplaced_atoms_across(float* y) {  // half an atom's 64 columns
  READY(2 * TILE + 512);
  wgmma_m64k16_bf16<64, true, true>(d, OPERAND(0), OPERAND(TILE + 32));
  DONE;
}

KERNEL product_beyond_the_row(float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), OPERAND(TILE + 56));
  DONE;
}

KERNEL product_with_odd_stride(float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), wgmma_operand(s + TILE, 0, 1024 - 128));
  DONE;
}

KERNEL product_without_swizzle(float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), OPERAND(TILE) & ~(3ull << 62));
  DONE;
}

KERNEL product_of_global_memory(float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), wgmma_operand(y, 0, 1024));
  DONE;
}

KERNEL product_by_three_warps(float* y) {
  READY(2 * TILE + 512);
  if (threadIdx.x < 96) PRODUCT(d, OPERAND(0), OPERAND(TILE));
  DONE;
}

KERNEL product_in_each_branch(float* y) {
  READY(2 * TILE + 512);
  if (threadIdx.x < 64)
    PRODUCT(d, OPERAND(0), OPERAND(TILE));
  else
    PRODUCT(d, OPERAND(0), OPERAND(TILE));
  DONE;
}

KERNEL product_of_different_operands(float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), OPERAND(TILE + threadIdx.x / 32 * 16));
  DONE;
}

KERNEL product_by_part_of_a_warpgroup(float* y) {  // 96 threads
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), OPERAND(TILE));
  DONE;
}

KERNEL product_of_another_shape(float* y) {
  READY(2 * TILE + 512);
  float wide[16][4] = {};
  wgmma_fence();
  wgmma_m64k16_bf16<128, true, true>(wide, OPERAND(0), OPERAND(0));
  PRODUCT(reinterpret_cast<float(&)[8][4]>(wide), OPERAND(0), OPERAND(TILE));
  DONE;
}

KERNEL product_of_early_fenced_copy(const float* x, float* y) {
  READY(2 * TILE + 512);
  __syncthreads();
  cp_async<16>(s + 8 * threadIdx.x, x + 4 * threadIdx.x, true);
  cp_async_commit();
  fence_proxy_async();
  cp_async_wait<0>();
  __syncthreads();
  PRODUCT(d, OPERAND(0), OPERAND(TILE));
  DONE;
}

KERNEL product_overwritten_by_copy(const float* x, float* y) {
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), OPERAND(TILE));
  wgmma_commit();
  __syncthreads();
  cp_async<16>(s + 8 * threadIdx.x, x + 4 * threadIdx.x, true);
  cp_async_commit();
  wgmma_wait<0>();
  cp_async_wait<0>();
  y[threadIdx.x] = d[0][0];
}

KERNEL product_of_the_other_warpgroup_overwritten(float* y) {  // 256 threads; only the first half waits
  READY(2 * TILE + 512);
  PRODUCT(d, OPERAND(0), OPERAND(TILE));
  wgmma_commit();
  if (threadIdx.x < 128) wgmma_wait<0>();
  __syncthreads();
  if (threadIdx.x < 128) s[threadIdx.x] = 0;
  if (threadIdx.x >= 128) wgmma_wait<0>();
  y[threadIdx.x % 128 + threadIdx.x / 128 * 128] = d[0][0];
}

#endif
