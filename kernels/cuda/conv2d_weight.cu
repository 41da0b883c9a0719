// The gradient of a convolution's weight, as a matrix product over pixels.
//
// x: N, H, W, C    dy: N, P, Q, K    dw: K, R, S, C/groups, in `real`
//
//     dw[k][(r, s, c)] = sum over pixels of dy[pixel][k] * x[what tap (r, s) sees of the pixel][c]
//
// m: filters, n: taps and channels, k: pixels, along which neither side is contiguous. There are few results
// and many pixels, so the pixels are split among blocks; conv2d_passes.cu adds up the splits' sums.
//
// Grid: x: tiles of m times tiles of n; y: splits; z: groups.
#define STATISTICS 0
#include "epilogue.cuh"

struct AcrossPixels {
  typedef AcrossK<BM> LayoutA;
  typedef AcrossK<BN> LayoutB;
  static constexpr int A_LINES = BM * CHUNKS / THREADS, B_LINES = BN * CHUNKS / THREADS;
  static constexpr int A_APART = THREADS / LayoutA::IN_ROW, B_APART = THREADS / LayoutB::IN_ROW;
  static_assert(A_APART * LayoutA::IN_ROW == THREADS && B_APART * LayoutB::IN_ROW == THREADS, "");
  static_assert(sizeof(T) != 2 || (A_APART % 8 == 0 && B_APART % 8 == 0),
                "a thread's lines lie in the same order in shared memory");

  struct Geometry {
    int h, w, c, cg, k, kg, s, p, q, stride_h, stride_w, top, left, dilation_h, dilation_w, columns;
  };
  const Geometry& g;
  const T *x, *dy;     // of the group
  int a_column, b_column;
  int a_channel;       // as a_column, 0 where that is none
  int a_left, b_left;  // pixels left from this thread's first line on
  int a_pixel;         // of its first line
  Odometer tap;        // r, s, c of this thread's columns of b
  // What the tap sees from the thread's lines of b: row and column in x, maybe outside, and the pixel's number.
  int b_h[B_LINES], b_w[B_LINES], b_pixel[B_LINES];
  // How these go on by BK pixels of dy, and what changes where a line of dy or a picture ends.
  int step_h, step_w, step_pixel, end_h, end_w, line_w, line_pixel, picture_h, picture_pixel;
  int a_place, b_place;  // of the thread's first chunk in a slice

  // A thread copies chunk `threadIdx.x % IN_ROW` of lines threadIdx.x / IN_ROW, + APART, ...
  DEVICE AcrossPixels(const Geometry& geometry, const T* x_, const T* dy_, int pixels, int m0, int n0, int first)
      : g(geometry), x(x_), dy(dy_),
        a_column(m0 + (int)threadIdx.x % LayoutA::IN_ROW * CHUNK),
        b_column(n0 + (int)threadIdx.x % LayoutB::IN_ROW * CHUNK),
        a_pixel(first + (int)threadIdx.x / LayoutA::IN_ROW),
        tap(b_column, geometry.s, geometry.cg),
        a_place(LayoutA::at(threadIdx.x / LayoutA::IN_ROW, threadIdx.x % LayoutA::IN_ROW)),
        b_place(LayoutB::at(threadIdx.x / LayoutB::IN_ROW, threadIdx.x % LayoutB::IN_ROW)) {
    const int b_first = first + (int)threadIdx.x / LayoutB::IN_ROW;
    a_channel = a_column < g.kg ? a_column : 0;
    a_left = a_column < g.kg ? pixels - a_pixel : 0;
    b_left = b_column < g.columns ? pixels - b_first : 0;
    const Odometer step(BK, g.p, g.q);
    step_h = step.middle * g.stride_h, step_w = step.low * g.stride_w;
    step_pixel = (step.high * g.h + step_h) * g.w + step_w;
    line_w = g.q * g.stride_w, line_pixel = g.stride_h * g.w - line_w;
    picture_h = g.p * g.stride_h, picture_pixel = (g.h - picture_h) * g.w;
    const int see_h = tap.high * g.dilation_h - g.top, see_w = tap.middle * g.dilation_w - g.left;
    end_h = picture_h + see_h, end_w = line_w + see_w;
#pragma unroll
    for (int i = 0; i < B_LINES; i++) {
      const Odometer pixel(b_first + i * B_APART, g.p, g.q);
      b_h[i] = pixel.middle * g.stride_h + see_h, b_w[i] = pixel.low * g.stride_w + see_w;
      b_pixel[i] = (pixel.high * g.h + b_h[i]) * g.w + b_w[i];
    }
    keep_in_register(a_place);
    keep_in_register(b_place);
  }

  // One multiplication, of 32 by 32 bits. A pixel that does not exist has any address.
  static DEVICE const T* element(const T* from, int pixel, int channels, int channel) {
    const u64 bytes = (u64)(u32)pixel * (u32)(channels * (int)sizeof(T));
    return reinterpret_cast<const T*>(reinterpret_cast<const u8*>(from + channel) + bytes);
  }

  DEVICE void load(u8* a_tile, u8* b_tile) {
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
      u8* const to = a_tile + a_place + LayoutA::at(i * A_APART, 0);
      const bool valid = i * A_APART < a_left;
      const T* at = element(dy, valid ? a_pixel + i * A_APART : 0, g.k, a_channel);
      if constexpr (PIECE_A == CHUNK) {
        cp_async<16>(to, at, valid);
      } else {
        int column = a_column;
        copy_chunk<PIECE_A>(to, dy, [&](const T*& from) {
          from = at++;
          return valid && column++ < g.kg;
        });
      }
    }
    a_pixel += BK;
    a_left -= BK;
#pragma unroll
    for (int i = 0; i < B_LINES; i++) {
      u8* const to = b_tile + b_place + LayoutB::at(i * B_APART, 0);
      const bool valid = i * B_APART < b_left;
      if constexpr (PIECE_B == CHUNK) {
        const bool inside = valid && (u32)b_h[i] < (u32)g.h && (u32)b_w[i] < (u32)g.w;
        cp_async<16>(to, element(x, inside ? b_pixel[i] : 0, g.c, tap.low), inside);
      } else {
        Odometer t = tap;
        int column = b_column, h = b_h[i], w = b_w[i], pixel = b_pixel[i];
        copy_chunk<PIECE_B>(to, x, [&](const T*& from) {
          const bool inside = valid && column < g.columns && (u32)h < (u32)g.h && (u32)w < (u32)g.w;
          from = element(x, pixel, g.c, t.low);
          column += PIECE_B;
          t.low += PIECE_B;
          if (t.low == g.cg) {
            t.low = 0, t.middle++, w += g.dilation_w, pixel += g.dilation_w;
            if (t.middle == g.s) {
              t.middle = 0, w -= g.s * g.dilation_w, h += g.dilation_h;
              pixel += g.dilation_h * g.w - g.s * g.dilation_w;
            }
          }
          return inside;
        });
      }
      b_h[i] += step_h, b_w[i] += step_w, b_pixel[i] += step_pixel;
      if (b_w[i] >= end_w) b_w[i] -= line_w, b_h[i] += g.stride_h, b_pixel[i] += line_pixel;
      if (b_h[i] >= end_h) b_h[i] -= picture_h, b_pixel[i] += picture_pixel;
    }
    b_left -= BK;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
conv2d_dw(const T* __restrict__ dy, const T* __restrict__ x, real* __restrict__ dw,  // [splits][...]
          const double* __restrict__ scale,  // of each filter's gradient, or null
          int n, int h, int w, int c, int k, int r, int s, int p, int q, int stride_h, int stride_w,
          int top, int left, int dilation_h, int dilation_w, int groups) {
  DYN_SHARED(u8, shared);
  const int group = blockIdx.z, cg = c / groups, kg = k / groups, columns = r * s * cg;
  const int tiles_n = (columns + BN - 1) / BN;
  const int m0 = blockIdx.x / tiles_n * BM, n0 = blockIdx.x % tiles_n * BN;
  const int pixels = n * p * q;
  const Part part((pixels + BK - 1) / BK, blockIdx.y, gridDim.y);
  const AcrossPixels::Geometry geometry = {h, w, c, cg, k, kg, s, p, q, stride_h, stride_w,
                                           top, left, dilation_h, dilation_w, columns};
  AcrossPixels source(geometry, x + group * cg, dy + group * kg, pixels, m0, n0, part.first * BK);
  Sums sum = {};
  matmul<AcrossPixels::LayoutA, AcrossPixels::LayoutB>(sum, source, part.count, shared);

  const i64 size = (i64)k * columns, first = (i64)group * kg * columns;
  finish<real>(sum, shared, m0, n0, kg, columns, [&](int m) { return (i64)m * columns; },
               Epilogue{nullptr, nullptr, nullptr, nullptr, 0, nullptr, scale ? scale + group * kg : nullptr},
               dw + blockIdx.y * size + first, nullptr, columns);
}
