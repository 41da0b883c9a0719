// What all kernels share: number types, 16-byte loads and stores, sums over a warp or a block.
//
// T       activations: float, double or bf16 (chosen by -DT=...)
// real    what they are computed in: float, or double where T is double
//
// NVRTC brings no standard headers, and nothing here needs one. Inline PTX has its own file, ptx.cuh.
#pragma once

#include "ptx.cuh"
#include "types.cuh"

#define WARP 32
#define EVERY_LANE 0xffffffffu

template <class Type>
struct RealOf {
  typedef float type;
};
template <>
struct RealOf<double> {
  typedef double type;
};

DEVICE float to_real(float x) { return x; }
DEVICE double to_real(double x) { return x; }
DEVICE float to_real(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

DEVICE void from_real(float x, float& out) { out = x; }
DEVICE void from_real(double x, double& out) { out = x; }

DEVICE void from_real(float x, bf16& out) { out.bits = (u16)pack_bf16(x, 0); }

#ifdef T
typedef typename RealOf<T>::type real;
#endif

// ---- vectors: N elements in one access of up to 16 bytes ----

// Elements of this type in 16 bytes.
template <class Type>
struct Width {
  static constexpr int value = 16 / sizeof(Type);
};

template <class Type, int N>
struct __align__(sizeof(Type) * N < 16 ? sizeof(Type) * N : 16) Vector {
  Type at[N];
};

// The address must be a multiple of the vector's size, or of 16.
template <int N, class Type>
DEVICE Vector<Type, N> load(const Type* p) {
  return *reinterpret_cast<const Vector<Type, N>*>(p);
}

template <int N, class Type>
DEVICE void store(Type* p, const Vector<Type, N>& v) {
  *reinterpret_cast<Vector<Type, N>*>(p) = v;
}

template <class Type, int N, class Real>
DEVICE void load_real(const Type* p, Real (&v)[N]) {
  const Vector<Type, N> packed = load<N>(p);
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = (Real)to_real(packed.at[i]);
}

template <class Type, int N, class Real>
DEVICE void store_real(Type* p, const Real (&v)[N]) {
  Vector<Type, N> packed;
#pragma unroll
  for (int i = 0; i < N; i++) from_real(v[i], packed.at[i]);
  store<N>(p, packed);
}

// Two numbers of bfloat16 are rounded by one instruction.
template <int N>
DEVICE void store_real(bf16* p, const float (&v)[N]) {
  if constexpr (N == 1) {
    from_real(v[0], *p);
  } else {
    Vector<u32, N / 2> packed;
#pragma unroll
    for (int i = 0; i < N / 2; i++) packed.at[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    store(reinterpret_cast<u32*>(p), packed);
  }
}

DEVICE bool aligned16(const void* p) { return ((u64)p & 15) == 0; }

template <class... Pointers>
DEVICE bool aligned16(const void* p, Pointers... more) {
  return aligned16(p) && aligned16(more...);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Do `body(i, Count<N>())` for all of 0 .. n - 1, N elements from i on at a time: WIDTH where `vectors`
// allows it, one by one for the rest. Neighbouring threads take neighbouring elements.
template <int WIDTH, class Body>
DEVICE void for_each(i64 n, bool vectors, Body body) {
  const i64 first = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  const i64 threads = (i64)gridDim.x * blockDim.x;
  const i64 whole = vectors ? n / WIDTH : 0;
  for (i64 i = first; i < whole; i += threads) body(i * WIDTH, Count<WIDTH>());
  for (i64 i = whole * WIDTH + first; i < n; i += threads) body(i, Count<1>());
}

// Do `body(row)` for a thread's rows of a tile (threadIdx.y over rows), `FLIGHT` of them side by side, so that
// the loads of all of these are under way before the first is waited for.
template <int FLIGHT, class Body>
DEVICE void for_each_row(i64 rows, Body body) {
  const i64 step = (i64)gridDim.x * blockDim.y;
  i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
  for (; row + (FLIGHT - 1) * step < rows; row += FLIGHT * step) {
#pragma unroll
    for (int k = 0; k < FLIGHT; k++) body(row + k * step);
  }
  for (; row < rows; row += step) body(row);
}

// Do `call` with N channels at a time where 16-byte vectors fit (`fits`: the pointers are aligned), and with
// one at a time where not.
#define BY_WIDTH(fits, call)                                                                          \
  if (channels % Width<T>::value == 0 && (fits)) {                                                    \
    constexpr int N = Width<T>::value;                                                                \
    call;                                                                                             \
  } else {                                                                                            \
    constexpr int N = 1;                                                                              \
    call;                                                                                             \
  }

// ---- sums: fixed trees, so the result never depends on who comes first ----

// Each lane gets the sum over the warp; all 32 lanes must call it.
template <class Real>
DEVICE Real warp_sum(Real v) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) v += __shfl_xor_sync(EVERY_LANE, v, step);
  return v;
}

template <class Real>
DEVICE Real warp_max(Real v) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) {
    const Real other = __shfl_xor_sync(EVERY_LANE, v, step);
    v = other > v || other != other ? other : v;  // a NaN wins
  }
  return v;
}

// Every thread gets the sum (the largest) over the block. THREADS: threads in a block, a multiple of 32, in
// one dimension. Every thread of the block must call it.
template <int THREADS, class Real>
DEVICE Real block_sum(Real v) {
  __shared__ Real part[THREADS / WARP];
  v = warp_sum(v);
  __syncthreads();  // of an earlier call, everything has been read
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = v;
  __syncthreads();
  v = part[0];
#pragma unroll
  for (int i = 1; i < THREADS / WARP; i++) v += part[i];
  return v;
}

template <int THREADS, class Real>
DEVICE Real block_max(Real v) {
  __shared__ Real part[THREADS / WARP];
  v = warp_max(v);
  __syncthreads();
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = v;
  __syncthreads();
  v = part[0];
#pragma unroll
  for (int i = 1; i < THREADS / WARP; i++) v = part[i] > v || part[i] != part[i] ? part[i] : v;
  return v;
}
