// Element by element: add, ReLU, dropout, joining along channels, changing the number type.
//
// Floor: memory. Each element is read once and written once (add: two reads), 2 or 4 bytes each, and
// the arithmetic hides behind that. To get there: 16 bytes a load and store, neighbouring threads on
// neighbouring addresses, and enough threads that their single loads fill the latency.
//
// Dropout keeps no mask: 10 rounds of Philox for 4 elements cost less than reading one would.
#include "common.cuh"
#include "philox.cuh"

#ifndef FROM

extern "C" __global__ void add_forward(const T* __restrict__ x, const T* __restrict__ y,
                                       T* __restrict__ out, i64 n) {
  for_each<Width<T>::value>(n, aligned16(x, y, out), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    real a[N], b[N];
    load_real(x + i, a);
    load_real(y + i, b);
#pragma unroll
    for (int j = 0; j < N; j++) a[j] += b[j];
    store_real(out + i, a);
  });
}

// factor_at: where the factor is read from, or null for the number given.
extern "C" __global__ void scale_forward(const T* __restrict__ x, real factor,
                                         const float* __restrict__ factor_at, T* __restrict__ out, i64 n) {
  if (factor_at) factor = *factor_at;
  for_each<Width<T>::value>(n, aligned16(x, out), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    real v[N];
    load_real(x + i, v);
#pragma unroll
    for (int j = 0; j < N; j++) v[j] *= factor;
    store_real(out + i, v);
  });
}

extern "C" __global__ void relu_forward(const T* __restrict__ x, T* __restrict__ out, i64 n) {
  for_each<Width<T>::value>(n, aligned16(x, out), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    real v[N];
    load_real(x + i, v);
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = v[j] <= 0 ? 0 : v[j];  // a NaN stays a NaN
    store_real(out + i, v);
  });
}

extern "C" __global__ void relu_dx(const T* __restrict__ dy, const T* __restrict__ y,
                                   T* __restrict__ dx, i64 n) {
  for_each<Width<T>::value>(n, aligned16(dy, y, dx), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    real g[N], v[N];
    load_real(dy + i, g);
    load_real(y + i, v);
#pragma unroll
    for (int j = 0; j < N; j++) g[j] = v[j] <= 0 ? 0 : g[j];
    store_real(dx + i, g);
  });
}

// Element i takes number offset + i of the stream, word (offset + i) % 4 of block (offset + i) / 4.
// A thread takes whole blocks: GROUP numbers from a multiple of 4 on, so that no block is made twice.
// offset_at: where the offset is read from, or null for the number given.
extern "C" __global__ void dropout_forward(const T* __restrict__ x, T* __restrict__ out, i64 n, u64 seed,
                                           u64 offset, const i64* __restrict__ offset_at, u64 threshold,
                                           real scale) {
  constexpr int GROUP = Width<T>::value < 4 ? 4 : Width<T>::value;
  if (offset_at) offset = (u64)*offset_at;
  const int skip = offset % 4;
  const bool vectors = skip == 0 && aligned16(x, out);
  const i64 groups = (n + skip + GROUP - 1) / GROUP;
  const i64 threads = (i64)gridDim.x * blockDim.x;
  for (i64 g = (i64)blockIdx.x * blockDim.x + threadIdx.x; g < groups; g += threads) {
    const i64 start = g * GROUP - skip;
    const bool whole = vectors && start + GROUP <= n;
    real v[GROUP];
    if (whole) {
      load_real(x + start, v);
    } else {
#pragma unroll
      for (int j = 0; j < GROUP; j++)
        v[j] = start + j >= 0 && start + j < n ? to_real(x[start + j]) : 0;
    }
#pragma unroll
    for (int b = 0; b < GROUP; b += 4) {
      u32 words[4];
      philox4x32(offset / 4 + (u64)(g * GROUP + b) / 4, seed, words);
#pragma unroll
      for (int j = 0; j < 4; j++) v[b + j] = words[j] >= threshold ? v[b + j] * scale : 0;
    }
    if (whole) {
      store_real(out + start, v);
    } else {
#pragma unroll
      for (int j = 0; j < GROUP; j++)
        if (start + j >= 0 && start + j < n) from_real(v[j], out[start + j]);
    }
  }
}

// Copy `columns` elements of each row, from column `from` of a matrix to column `to` of another.
// A block is a tile of rows: threadIdx.x along a row, threadIdx.y over rows.
template <int N>
DEVICE void copy_rows(const T* __restrict__ source, i64 source_width, T* __restrict__ target,
                      i64 target_width, i64 rows, int columns) {
  for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows;
       row += (i64)gridDim.x * blockDim.y) {
    const T* __restrict__ in = source + row * source_width;
    T* __restrict__ out = target + row * target_width;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) store(out + c, load<N>(in + c));
  }
}

extern "C" __global__ void copy_columns(const T* __restrict__ source, int source_width, int from,
                                        T* __restrict__ target, int target_width, int to, i64 rows,
                                        int columns) {
  constexpr int N = Width<T>::value;
  const bool vectors = (source_width | from | target_width | to | columns) % N == 0;
  if (vectors && aligned16(source, target))
    copy_rows<N>(source + from, source_width, target + to, target_width, rows, columns);
  else
    copy_rows<1>(source + from, source_width, target + to, target_width, rows, columns);
}

#else  // from one number type to another

extern "C" __global__ void cast(const FROM* __restrict__ x, T* __restrict__ out, i64 n) {
  constexpr int WIDTH = Width<T>::value > Width<FROM>::value ? Width<T>::value : Width<FROM>::value;
  for_each<WIDTH>(n, aligned16(x, out), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    real v[N];
    load_real(x + i, v);
    store_real(out + i, v);
  });
}

#endif
