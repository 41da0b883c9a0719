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
  static constexpr int A_LINES = BM * 4 / THREADS, B_LINES = BN * 4 / THREADS;
  static constexpr int A_APART = THREADS / LayoutA::CHUNKS, B_APART = THREADS / LayoutB::CHUNKS;
  static_assert(A_APART * LayoutA::CHUNKS == THREADS && B_APART * LayoutB::CHUNKS == THREADS, "");

  struct Geometry {
    int n, h, w, c, cg, k, kg, s, p, q, stride_h, stride_w, top, left, dilation_h, dilation_w;
  };
  const Geometry& g;
  const T *x, *a;            // x of the group; where this thread's first chunk of dy is
  int a_column, a_pixel, b_column, columns;
  Odometer tap;              // r, s, c of this thread's column of b
  Odometer pixel[B_LINES];   // n, p, q of this thread's lines of b
  Odometer step;

  // A thread copies chunk `threadIdx.x % CHUNKS` of lines threadIdx.x / CHUNKS, + APART, ...
  DEVICE AcrossPixels(const Geometry& geometry, const T* x_, const T* dy, int m0, int n0, int columns_,
                      int first)
      : g(geometry), x(x_),
        a_column(m0 + (int)threadIdx.x % LayoutA::CHUNKS * CHUNK),
        a_pixel(first + (int)threadIdx.x / LayoutA::CHUNKS),
        b_column(n0 + (int)threadIdx.x % LayoutB::CHUNKS * CHUNK), columns(columns_),
        tap(b_column, geometry.s, geometry.cg),
        step(BK, geometry.p, geometry.q) {
    a = dy + ((i64)a_pixel * g.k + a_column);
#pragma unroll
    for (int i = 0; i < B_LINES; i++)
      pixel[i] = Odometer(first + (int)threadIdx.x / LayoutB::CHUNKS + i * B_APART, g.p, g.q);
  }

  DEVICE void load(u8* a_tile, u8* b_tile) {
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
      const int line = threadIdx.x / LayoutA::CHUNKS + i * A_APART;
      int column = a_column;
      const T* at = a + (i64)i * A_APART * g.k;
      const bool valid = a_pixel + i * A_APART < g.n * g.p * g.q;
      copy_chunk<PIECE_A>(a_tile + LayoutA::at(line, threadIdx.x % LayoutA::CHUNKS), x,
                          [&](const T*& from) {
                            const bool inside = valid && column < g.kg;
                            from = at;
                            at += PIECE_A;
                            column += PIECE_A;
                            return inside;
                          });
    }
    a_pixel += BK;
    a += (i64)BK * g.k;
#pragma unroll
    for (int i = 0; i < B_LINES; i++) {
      const int line = threadIdx.x / LayoutB::CHUNKS + i * B_APART;
      Odometer t = tap;
      int column = b_column;
      const Odometer& o = pixel[i];
      const int h0 = o.middle * g.stride_h - g.top, w0 = o.low * g.stride_w - g.left;
      copy_chunk<PIECE_B>(
          b_tile + LayoutB::at(line, threadIdx.x % LayoutB::CHUNKS), x, [&](const T*& from) {
            const int h = h0 + t.high * g.dilation_h, w = w0 + t.middle * g.dilation_w;
            const bool inside = o.high < g.n && column < columns && (u32)h < (u32)g.h && (u32)w < (u32)g.w;
            from = x + ((i64)((o.high * g.h + h) * g.w + w) * g.c + t.low);
            column += PIECE_B;
            t.low += PIECE_B;
            if (t.low == g.cg) {
              t.low = 0;
              if (++t.middle == g.s) t.middle = 0, t.high++;
            }
            return inside;
          });
      pixel[i].add(step, g.p, g.q);
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
conv2d_dw(const T* __restrict__ dy, const T* __restrict__ x, real* __restrict__ dw,  // [splits][...]
          int n, int h, int w, int c, int k, int r, int s, int p, int q, int stride_h, int stride_w,
          int top, int left, int dilation_h, int dilation_w, int groups) {
  DYN_SHARED(u8, shared);
  const int group = blockIdx.z, cg = c / groups, kg = k / groups, columns = r * s * cg;
  const int tiles_n = (columns + BN - 1) / BN;
  const int m0 = blockIdx.x / tiles_n * BM, n0 = blockIdx.x % tiles_n * BN;
  const int pixels = n * p * q;
  const Part part((pixels + BK - 1) / BK, blockIdx.y, gridDim.y);
  const AcrossPixels::Geometry geometry = {n, h, w, c, cg, k, kg, s, p, q, stride_h, stride_w,
                                           top, left, dilation_h, dilation_w};
  AcrossPixels source(geometry, x + group * cg, dy + group * kg, m0, n0, columns, part.first * BK);
  Sums sum = {};
  matmul<AcrossPixels::LayoutA, AcrossPixels::LayoutB>(sum, source, part.count, shared);

  const i64 size = (i64)k * columns, first = (i64)group * kg * columns;
  finish<real>(sum, shared, m0, n0, kg, columns, [&](int m) { return (i64)m * columns; },
               Epilogue{nullptr, nullptr, nullptr, nullptr, 0}, dw + blockIdx.y * size + first, nullptr, columns);
}
