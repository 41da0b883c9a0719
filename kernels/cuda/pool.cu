// Max pooling, and the mean of each picture.
//
// Floor: memory. Forward reads x and writes y and the index; backward reads dy and the index and writes
// dx. Windows overlap, but what a neighbour has read lies in the caches. To get there: 16 bytes of channels
// a thread, neighbouring threads on neighbouring channels and pixels.
//
// x: N, H, W, C      y, index: N, P, Q, C      a block: threadIdx.x along channels, threadIdx.y over pixels
//
// Backward goes by input pixel and gathers from the windows that saw it, in a fixed order: no atomics.
// The padding is smaller than the kernel, so that each window sees at least one pixel.
#include "window.cuh"

#define THREADS 256
#define SPAN 32  // pixels that one thread adds up in `real`

#ifdef INDEX  // u8, or int for windows of more than 256 pixels

template <int N>
DEVICE void largest(const T* __restrict__ x, T* __restrict__ y, INDEX* __restrict__ index, int pixels,
                    int channels, const Axis& rows, const Axis& columns) {
  for (int pixel = blockIdx.x * blockDim.y + threadIdx.y; pixel < pixels;
       pixel += gridDim.x * blockDim.y) {
    const Position at(pixel, rows.outputs, columns.outputs);
    int top, bottom, left, right;
    rows.seen(at.row, top, bottom);
    columns.seen(at.column, left, right);
    for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < channels;
         c += gridDim.y * blockDim.x * N) {
      const T* __restrict__ picture = x + (i64)at.picture * rows.size * columns.size * channels + c;
      real best[N];
      Vector<INDEX, N> place;
      load_real(picture + ((i64)top * columns.size + left) * channels, best);
#pragma unroll
      for (int k = 0; k < N; k++)
        place.at[k] = rows.place(top, at.row) * columns.kernel + columns.place(left, at.column);
      for (int h = top; h < bottom; h++)
        for (int w = left; w < right; w++) {
          const INDEX here = rows.place(h, at.row) * columns.kernel + columns.place(w, at.column);
          real v[N];
          load_real(picture + ((i64)h * columns.size + w) * channels, v);
#pragma unroll
          for (int k = 0; k < N; k++) {
            const bool better = v[k] > best[k] || v[k] != v[k];  // a NaN wins, and stays
            best[k] = better ? v[k] : best[k];
            place.at[k] = better ? here : place.at[k];
          }
        }
      store_real(y + (i64)pixel * channels + c, best);
      store(index + (i64)pixel * channels + c, place);
    }
  }
}

extern "C" __global__ void maxpool2d_forward(const T* __restrict__ x, T* __restrict__ y,
                                             INDEX* __restrict__ index, int pixels, int channels,
                                             AXES_PARAMETERS) {
  AXES;
  BY_WIDTH(aligned16(x, y, index), largest<N>(x, y, index, pixels, channels, rows, columns));
}

template <int N>
DEVICE void largest_dx(const T* __restrict__ dy, const INDEX* __restrict__ index, T* __restrict__ dx,
                       int pixels, int channels, const Axis& rows, const Axis& columns) {
  for (int pixel = blockIdx.x * blockDim.y + threadIdx.y; pixel < pixels;
       pixel += gridDim.x * blockDim.y) {
    const Position at(pixel, rows.size, columns.size);
    for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < channels;
         c += gridDim.y * blockDim.x * N) {
      real sum[N];
      gather(dy, index, at, rows, columns, channels, c, sum);
      store_real(dx + (i64)pixel * channels + c, sum);
    }
  }
}

extern "C" __global__ void maxpool2d_dx(const T* __restrict__ dy, const INDEX* __restrict__ index,
                                        T* __restrict__ dx, int pixels, int channels, AXES_PARAMETERS) {
  AXES;
  BY_WIDTH(aligned16(dy, index, dx), largest_dx<N>(dy, index, dx, pixels, channels, rows, columns));
}

#else  // the mean of each picture

// A block takes one picture and a few channels: sums over SPAN pixels in `real`, from there on in double,
// over the block by a tree.
template <int N>
DEVICE void mean(const T* __restrict__ x, T* __restrict__ y, int pixels, int channels) {
  __shared__ double part[N][THREADS];
  const int t = threadIdx.y * blockDim.x + threadIdx.x;
  for (int base = blockIdx.y * blockDim.x * N; base < channels; base += gridDim.y * blockDim.x * N) {
    const int c = base + threadIdx.x * N;
    const T* __restrict__ picture = x + (i64)blockIdx.x * pixels * channels + c;
    double total[N] = {};
    if (c < channels) {
      for (int first = threadIdx.y; first < pixels; first += SPAN * blockDim.y) {
        const int last = min(first + SPAN * (int)blockDim.y, pixels);
        real sum[N] = {};
#pragma unroll 4
        for (int pixel = first; pixel < last; pixel += blockDim.y) {
          real v[N];
          load_real(picture + (i64)pixel * channels, v);
#pragma unroll
          for (int k = 0; k < N; k++) sum[k] += v[k];
        }
#pragma unroll
        for (int k = 0; k < N; k++) total[k] += sum[k];
      }
    }
#pragma unroll
    for (int k = 0; k < N; k++) part[k][t] = total[k];
    __syncthreads();
    for (int step = blockDim.y / 2; step; step /= 2) {
      if (threadIdx.y < step) {
#pragma unroll
        for (int k = 0; k < N; k++) part[k][t] += part[k][t + step * blockDim.x];
      }
      __syncthreads();
    }
    if (threadIdx.y == 0 && c < channels) {
      real v[N];
#pragma unroll
      for (int k = 0; k < N; k++) v[k] = (real)(part[k][t] / pixels);
      store_real(y + (i64)blockIdx.x * channels + c, v);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    global_avgpool2d_forward(const T* __restrict__ x, T* __restrict__ y, int pixels, int channels) {
  BY_WIDTH(aligned16(x, y), mean<N>(x, y, pixels, channels));
}

template <int N>
DEVICE void mean_dx(const T* __restrict__ dy, T* __restrict__ dx, i64 rows, int pixels, int channels) {
  for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows;
       row += (i64)gridDim.x * blockDim.y) {
    const i64 picture = row / pixels;
    for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < channels;
         c += gridDim.y * blockDim.x * N) {
      real g[N];
      load_real(dy + picture * channels + c, g);
#pragma unroll
      for (int k = 0; k < N; k++) g[k] /= pixels;
      store_real(dx + row * channels + c, g);
    }
  }
}

extern "C" __global__ void global_avgpool2d_dx(const T* __restrict__ dy, T* __restrict__ dx, i64 rows,
                                               int pixels, int channels) {
  BY_WIDTH(aligned16(dy, dx), mean_dx<N>(dy, dx, rows, pixels, channels));
}

#endif
