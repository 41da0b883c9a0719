// Batch normalisation, ReLU and max pooling in one pass: the stem of a ResNet.
//
// Floor: memory. The normalised map is as large as x and four times as large as the result; it is never
// stored. Forward reads x and writes y, index and the chosen x; backward reads dy and index (and x, in
// training) and writes dx. Each pixel is normalised anew for each window that sees it, from the caches:
// that costs a multiplication, storing it would cost a pass.
//
// x: N, H, W, C      y, dy, index, chosen: N, P, Q, C      scale, shift, a, b, c: C, in double
//
// index tells which pixel of its window each result is, or NONE: where no pixel is above zero the ReLU's 0 is
// the result, and no gradient passes. The largest is chosen before anything is rounded to T.
#include "line.cuh"
#include "window.cuh"

#define NONE ((INDEX)(sizeof(INDEX) == 1 ? 0xff : 0x7fffffff))

template <int N>
DEVICE void forward(const T* __restrict__ x, const double* __restrict__ scale,
                    const double* __restrict__ shift, T* __restrict__ y, INDEX* __restrict__ index,
                    T* __restrict__ chosen, int pixels, int channels, const Axis& rows,
                    const Axis& columns) {
  for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < channels;
       c += gridDim.y * blockDim.x * N) {
    Line lines[N];
    load_lines(scale, shift, c, lines);
    for (int pixel = blockIdx.x * blockDim.y + threadIdx.y; pixel < pixels;
         pixel += gridDim.x * blockDim.y) {
      const Position at(pixel, rows.outputs, columns.outputs);
      int top, bottom, left, right;
      rows.seen(at.row, top, bottom);
      columns.seen(at.column, left, right);
      const T* __restrict__ picture = x + (i64)at.picture * rows.size * columns.size * channels + c;
      real best[N] = {}, source[N] = {};
      Vector<INDEX, N> place;
#pragma unroll
      for (int k = 0; k < N; k++) place.at[k] = NONE;
      for (int h = top; h < bottom; h++)
        for (int w = left; w < right; w++) {
          const INDEX here = rows.place(h, at.row) * columns.kernel + columns.place(w, at.column);
          real value[N];
          load_real(picture + ((i64)h * columns.size + w) * channels, value);
#pragma unroll
          for (int k = 0; k < N; k++) {
            const real v = lines[k].at(value[k]);
            const bool better = v > best[k] || v != v;  // a NaN wins, as in max pooling
            best[k] = better ? v : best[k];
            place.at[k] = better ? here : place.at[k];
            source[k] = better ? value[k] : source[k];
          }
        }
      const i64 out = (i64)pixel * channels + c;
      store_real(y + out, best);
      store(index + out, place);
      store_real(chosen + out, source);
    }
  }
}

extern "C" __global__ void batchnorm_relu_maxpool_forward(const T* __restrict__ x,
                                                          const double* __restrict__ scale,
                                                          const double* __restrict__ shift,
                                                          T* __restrict__ y, INDEX* __restrict__ index,
                                                          T* __restrict__ chosen, int pixels,
                                                          int channels, AXES_PARAMETERS) {
  AXES;
  BY_WIDTH(aligned16(x, y, index, chosen),
           forward<N>(x, scale, shift, y, index, chosen, pixels, channels, rows, columns));
}

// dx = a * dz [+ b * x + c], with dz gathered from the windows that chose the pixel.
template <int N, bool TRAINING>
DEVICE void backward(const T* __restrict__ dy, const INDEX* __restrict__ index, const T* __restrict__ x,
                     const double* __restrict__ a, const double* __restrict__ b, const double* __restrict__ c0,
                     T* __restrict__ dx, int pixels, int channels, const Axis& rows,
                     const Axis& columns) {
  for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < channels;
       c += gridDim.y * blockDim.x * N) {
    Line lines[N];
    real factor[N];
    if (TRAINING) load_lines(b, c0, c, lines);
#pragma unroll
    for (int k = 0; k < N; k++) factor[k] = (real)a[c + k];
    for (int pixel = blockIdx.x * blockDim.y + threadIdx.y; pixel < pixels;
         pixel += gridDim.x * blockDim.y) {
      const Position at(pixel, rows.size, columns.size);
      real sum[N], value[N];
      gather(dy, index, at, rows, columns, channels, c, sum);
      if (TRAINING) load_real(x + (i64)pixel * channels + c, value);
#pragma unroll
      for (int k = 0; k < N; k++) {
        sum[k] *= factor[k];
        if (TRAINING) sum[k] += lines[k].at(value[k]);
      }
      store_real(dx + (i64)pixel * channels + c, sum);
    }
  }
}

extern "C" __global__ void batchnorm_relu_maxpool_dx(const T* __restrict__ dy,
                                                     const INDEX* __restrict__ index,
                                                     const double* __restrict__ a, T* __restrict__ dx,
                                                     int pixels, int channels, AXES_PARAMETERS) {
  AXES;
  BY_WIDTH(aligned16(dy, index, dx), (backward<N, false>(dy, index, nullptr, a, nullptr, nullptr, dx,
                                                         pixels, channels, rows, columns)));
}

extern "C" __global__ void batchnorm_relu_maxpool_dx_training(
    const T* __restrict__ dy, const INDEX* __restrict__ index, const T* __restrict__ x,
    const double* __restrict__ a, const double* __restrict__ b, const double* __restrict__ c,
    T* __restrict__ dx, int pixels, int channels, AXES_PARAMETERS) {
  AXES;
  BY_WIDTH(aligned16(dy, index, x, dx), (backward<N, true>(dy, index, x, a, b, c, dx, pixels, channels,
                                                           rows, columns)));
}
