// Windows of pooling: which pixels a window sees, and which windows see a pixel.
//
// pictures: N, height, width, C      results: N, outputs_h, outputs_w, C
#pragma once
#include "common.cuh"

// Along one axis.
struct Axis {
  int size, outputs, kernel, stride, before;  // pixels, windows; `before`: padding at the low end

  // The pixels first .. last - 1 that a window sees.
  DEVICE void seen(int output, int& first, int& last) const {
    const int start = output * stride - before;
    first = max(start, 0);
    last = min(start + kernel, size);
  }
  // The windows first .. last - 1 that see a pixel.
  DEVICE void seeing(int pixel, int& first, int& last) const {
    const int padded = pixel + before;
    first = padded >= kernel ? (padded - kernel) / stride + 1 : 0;
    last = min(padded / stride + 1, outputs);
  }
  // Where in the window a pixel stands.
  DEVICE int place(int pixel, int output) const { return pixel + before - output * stride; }
};

// The parameters that describe both axes, and the axes made of them.
#define AXES_PARAMETERS                                                                             \
  int height, int width, int outputs_h, int outputs_w, int kernel_h, int kernel_w, int stride_h,    \
      int stride_w, int top, int left
#define AXES                                                          \
  const Axis rows = {height, outputs_h, kernel_h, stride_h, top};     \
  const Axis columns = {width, outputs_w, kernel_w, stride_w, left}

// Position `i` of a map: picture, row, column.
struct Position {
  int picture, row, column;
  DEVICE Position(int i, int height, int width) {
    column = i % width;
    row = i / width % height;
    picture = i / width / height;
  }
};

// The sum of dy over the windows whose chosen pixel this is, for N channels from c on.
template <int N, class Index>
DEVICE void gather(const T* __restrict__ dy, const Index* __restrict__ index, const Position& at,
                   const Axis& rows, const Axis& columns, int channels, int c, real (&sum)[N]) {
  int top, bottom, left, right;
  rows.seeing(at.row, top, bottom);
  columns.seeing(at.column, left, right);
#pragma unroll
  for (int k = 0; k < N; k++) sum[k] = 0;
  for (int i = top; i < bottom; i++)
    for (int j = left; j < right; j++) {
      const int here = rows.place(at.row, i) * columns.kernel + columns.place(at.column, j);
      const i64 window = ((i64)at.picture * rows.outputs + i) * columns.outputs + j;
      const Vector<Index, N> chosen = load<N>(index + window * channels + c);
      real g[N];
      load_real(dy + window * channels + c, g);
#pragma unroll
      for (int k = 0; k < N; k++) sum[k] += chosen.at[k] == here ? g[k] : 0;
    }
}
