// Mixup and cutmix: each picture of a batch with the one that mirrors its place.
//
// Floor: memory, one read and one write of the batch: mixup makes both pictures of a pair from one read of
// each; cutmix copies, and inside the rectangle from the other picture.
//
// x, out: N pictures of `size` elements, rows of `length` = width * channels
#include "common.cuh"

// out = share * x + (1 - share) * x[::-1]. blockIdx.y: pairs of pictures; the middle one meets itself.
template <int N>
DEVICE void mixup(const T* __restrict__ x, T* __restrict__ out, int pictures, i64 size, real share,
                  real rest) {
  for (int p = blockIdx.y; 2 * p < pictures; p += gridDim.y) {
    const i64 here = p * size, there = (pictures - 1 - p) * size;
    for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * N; i < size;
         i += (i64)gridDim.x * blockDim.x * N) {
      real a[N], b[N], mixed[N];
      load_real(x + here + i, a);
      load_real(x + there + i, b);
#pragma unroll
      for (int k = 0; k < N; k++) mixed[k] = share * a[k] + rest * b[k];
      store_real(out + here + i, mixed);
      if (here == there) continue;
#pragma unroll
      for (int k = 0; k < N; k++) mixed[k] = share * b[k] + rest * a[k];
      store_real(out + there + i, mixed);
    }
  }
}

extern "C" __global__ void mixup_forward(const T* __restrict__ x, T* __restrict__ out, int pictures,
                                         i64 size, real share, real rest) {
  constexpr int N = Width<T>::value;
  if (size % N == 0 && aligned16(x, out))
    mixup<N>(x, out, pictures, size, share, rest);
  else
    mixup<1>(x, out, pictures, size, share, rest);
}

// Elements first .. last - 1 of rows top .. bottom - 1 are the other picture's.
template <int N>
DEVICE void cutmix(const T* __restrict__ x, T* __restrict__ out, int pictures, int height, int length,
                   int top, int bottom, int first, int last) {
  const i64 rows = (i64)pictures * height;
  for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows;
       row += (i64)gridDim.x * blockDim.y) {
    const int picture = (int)(row / height), h = (int)(row % height);
    const T* __restrict__ own = x + row * length;
    const T* __restrict__ other = x + ((i64)(pictures - 1 - picture) * height + h) * length;
    for (int e = threadIdx.x * N; e < length; e += blockDim.x * N) {
      Vector<T, N> v = load<N>(own + e);
      if (h >= top && h < bottom && e < last && e + N > first) {
        const Vector<T, N> cut = load<N>(other + e);
#pragma unroll
        for (int k = 0; k < N; k++)
          if (e + k >= first && e + k < last) v.at[k] = cut.at[k];
      }
      store(out + row * length + e, v);
    }
  }
}

extern "C" __global__ void cutmix_forward(const T* __restrict__ x, T* __restrict__ out, int pictures,
                                          int height, int length, int top, int bottom, int first,
                                          int last) {
  constexpr int N = Width<T>::value;
  if (length % N == 0 && aligned16(x, out))
    cutmix<N>(x, out, pictures, height, length, top, bottom, first, last);
  else
    cutmix<1>(x, out, pictures, height, length, top, bottom, first, last);
}
