// Convolution as a matrix product whose left side is gathered on the way: forward, and dx (-DDX=1).
//
// x: N, H, W, C    weight: K, R, S, C/groups    y: N, P, Q, K
//
// forward   m: pixels of y     n: filters K     k: taps and channels (r, s, c)
// dx        m: pixels of x     n: channels C    k: taps and filters (r, s, k); the weight comes as
//                                               C, R, S, K/groups (conv2d_passes.cu)
//
// dx reads dy just as forward reads x. From i = p * stride + r * dilation - top,
//     p = (i + top - r * dilation) / stride,   for those r that leave no remainder.
// So with stride > 1 the pixels of x fall into stride_h * stride_w phases, each with taps of its own: for
// pixels i = phase, phase + stride, ..., the taps are r = first, first + step, ..., and p goes up by one from
// pixel to pixel and down by dilation * step / stride from tap to tap: a convolution with stride 1.
//
// Grid: x: tiles of m times tiles of n (those of n first: they share the pixels); y: splits of k;
// z: groups times phases. With several splits, each stores its sums as they are (-DSPLIT=1 for bf16, whose
// results are no sums) and conv2d_passes.cu adds them up.
#include "epilogue.cuh"

#ifndef DX
#define DX 0
#endif
#ifndef SPLIT
#define SPLIT 0
#endif

constexpr int PIECE = PIECE_A < PIECE_B ? PIECE_A : PIECE_B;  // elements that surely lie in a row

// Where the left side finds its pixels, and the right side its filters.
struct Window {
  int n, lines_h, lines_w;         // lines of the left side: pictures, rows, columns
  int stride_h, stride_w;          // pixels read, from line to line
  int first_h, first_w;            // pixel that the first tap of the first line reads
  int step_h, step_w;              // pixels, from tap to tap
  int height, width, pitch;        // of the array read; pitch: its channels in all groups
  int taps_h, taps_w, channels;    // k runs over these
  int weight_first, weight_h, weight_w;  // elements of a filter: to the first tap, from tap to tap
};

struct AlongTaps {
  typedef AlongK<BM> LayoutA;
  typedef AlongK<BN> LayoutB;
  static constexpr int APART = THREADS / CHUNKS, A_LINES = BM / APART, B_LINES = BN / APART;
  static_assert(APART % 8 == 0, "a thread's lines lie in the same order in shared memory");
  const Window& w;
  const T *x, *weight;
  const int filter_size;
  Odometer tap;  // r, s, c of this thread's chunk
  int a_pixel[A_LINES], a_h[A_LINES], a_w[A_LINES];  // read by the tap (0, 0); maybe outside
  int b_at, filters;  // of this thread's first filter: elements, of which a weight has less than 2^31; after it
  const T *a_from[A_LINES], *b_from[B_LINES];  // this tap's first channel, where chunks are copied whole
  u32 inside;                                  // a bit for each of these; others are read as zeros
  int place;                                   // of this thread's first chunk in a slice

  // A thread copies chunk `threadIdx.x % CHUNKS` of lines threadIdx.x / CHUNKS, + APART, ...
  DEVICE AlongTaps(const Window& window, const T* x_, const T* weight_, int m0, int n0, int filters_,
                   int filter_size_, int first_slice)
      : w(window), x(x_), weight(weight_), filter_size(filter_size_),
        tap(first_slice * BK + (int)threadIdx.x % CHUNKS * CHUNK, window.taps_w, window.channels),
        place(LayoutA::at(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS)) {
    const int per_picture = w.lines_h * w.lines_w;
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
      const int m = m0 + (int)threadIdx.x / CHUNKS + i * APART;
      const int n = m / per_picture, pixel = m - n * per_picture, row = pixel / w.lines_w;
      a_h[i] = row * w.stride_h + w.first_h;
      a_w[i] = (pixel - row * w.lines_w) * w.stride_w + w.first_w;
      a_pixel[i] = (n * w.height + a_h[i]) * w.width + a_w[i];
      if (n >= w.n) a_h[i] = -(1 << 30);  // outside for every tap
    }
    const int n = n0 + (int)threadIdx.x / CHUNKS;
    filters = filters_ - n;
    b_at = n * filter_size + w.weight_first;
    if constexpr (PIECE == CHUNK) {
      keep_in_register(place);
      point();
    }
  }

  // Go on by so many elements of k: a few steps at most, as there are rarely fewer channels than BK.
  DEVICE void advance(Odometer& t, int elements) const {
    t.low += elements;
    while (t.low >= w.channels) {
      t.low -= w.channels;
      if (++t.middle == w.taps_w) t.middle = 0, t.high++;
    }
  }

  // Whether the tap t sees a pixel from line i, and that pixel's first channel.
  DEVICE bool sees(const Odometer& t, int i) const {
    return t.high < w.taps_h && (u32)(a_h[i] + t.high * w.step_h) < (u32)w.height &&
           (u32)(a_w[i] + t.middle * w.step_w) < (u32)w.width;
  }
  DEVICE const T* pixel(const Odometer& t, int i) const {
    return x + (i64)(a_pixel[i] + (t.high * w.step_h * w.width + t.middle * w.step_w)) * w.pitch;
  }
  // Whether line i has a filter at the tap t, and its first channel.
  DEVICE bool has(const Odometer& t, int i) const { return t.high < w.taps_h && i * APART < filters; }
  DEVICE const T* filter(const Odometer& t, int i) const {
    return weight + (b_at + i * APART * filter_size + t.high * w.weight_h + t.middle * w.weight_w);
  }

  // Point at what the tap sees, and where it sees nothing at the start of the array: an address that exists.
  DEVICE void point() {
    inside = 0;
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
      const bool valid = sees(tap, i);
      a_from[i] = valid ? pixel(tap, i) : x;
      inside |= (u32)valid << i;
    }
#pragma unroll
    for (int i = 0; i < B_LINES; i++) {
      const bool valid = has(tap, i);
      b_from[i] = valid ? filter(tap, i) : weight;
      inside |= (u32)valid << (A_LINES + i);
    }
  }

  DEVICE void load(u8* a_tile, u8* b_tile) {
    if constexpr (PIECE == CHUNK) {
      // Within a tap all that changes is the channel: where the chunks lie is found once for each tap.
#pragma unroll
      for (int i = 0; i < A_LINES; i++)
        cp_async<16>(a_tile + place + LayoutA::at(i * APART, 0), a_from[i] + tap.low, inside >> i & 1);
#pragma unroll
      for (int i = 0; i < B_LINES; i++)
        cp_async<16>(b_tile + place + LayoutB::at(i * APART, 0), b_from[i] + tap.low,
                     inside >> (A_LINES + i) & 1);
      tap.low += BK;
      if (tap.low >= w.channels) {
        advance(tap, 0);
        point();
      }
    } else {
#pragma unroll
      for (int i = 0; i < A_LINES; i++) {
        Odometer t = tap;
        copy_chunk<PIECE>(a_tile + place + LayoutA::at(i * APART, 0), x, [&](const T*& from) {
          const bool valid = sees(t, i);
          from = pixel(t, i) + t.low;
          advance(t, PIECE);
          return valid;
        });
      }
#pragma unroll
      for (int i = 0; i < B_LINES; i++) {
        Odometer t = tap;
        copy_chunk<PIECE>(b_tile + place + LayoutB::at(i * APART, 0), weight, [&](const T*& from) {
          const bool valid = has(t, i);
          from = filter(t, i) + t.low;
          advance(t, PIECE);
          return valid;
        });
      }
      advance(tap, BK);
    }
  }
};

// One axis of a phase of dx: which taps it has, and which pixel of dy the first one reads.
struct PhaseAxis {
  int tap, tap_step, taps, pixel, pixel_step;
  DEVICE PhaseAxis(int phase, int before, int stride, int dilation, int window) {
    int divisor = stride, rest = dilation;  // Euclid's algorithm
    while (rest) {
      const int remainder = divisor % rest;
      divisor = rest;
      rest = remainder;
    }
    tap_step = stride / divisor;
    pixel_step = -(dilation / divisor);
    for (tap = 0; tap < tap_step && (phase + before - tap * dilation) % stride; tap++) {
    }
    const bool any = tap < tap_step && tap < window;
    taps = any ? (window - tap + tap_step - 1) / tap_step : 0;
    pixel = any ? (phase + before - tap * dilation) / stride : 0;
  }
};

#if SPLIT
typedef real Stored;
#else
typedef T Stored;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
#if DX
conv2d_dx(
#else
conv2d_forward(
#endif
    const T* __restrict__ from,        // forward: x; dx: dy
    const T* __restrict__ weight,      // forward: K, R, S, C/groups; dx: C, R, S, K/groups
    const double* __restrict__ scale,  // forward only; all arrays of the epilogue may be null
    const double* __restrict__ shift,
    const real* __restrict__ bias,
    const T* __restrict__ residual,
    const T* __restrict__ positive,    // dx only
    Stored* __restrict__ to,           // forward: y; dx: dx; of several splits [splits][...]
    real* __restrict__ moments,        // written only with STATISTICS: [tiles of m][2][K]
    int relu, int n, int h, int w, int c, int k, int r, int s, int p, int q, int stride_h,
    int stride_w, int top, int left, int dilation_h, int dilation_w, int groups) {
  DYN_SHARED(u8, shared);
  const int cg = c / groups, kg = k / groups;
#if DX
  const int phases = stride_h * stride_w, group = blockIdx.z / phases;
  const int phase_h = blockIdx.z % phases / stride_w, phase_w = blockIdx.z % stride_w;
  const PhaseAxis axis_h(phase_h, top, stride_h, dilation_h, r);
  const PhaseAxis axis_w(phase_w, left, stride_w, dilation_w, s);
  const bool any = axis_h.taps && axis_w.taps;
  const Window window = {n, (h - phase_h + stride_h - 1) / stride_h, (w - phase_w + stride_w - 1) / stride_w,
                         1, 1, axis_h.pixel, axis_w.pixel, axis_h.pixel_step, axis_w.pixel_step,
                         p, q, k, any ? axis_h.taps : 0, any ? axis_w.taps : 1, kg,
                         (axis_h.tap * s + axis_w.tap) * kg, axis_h.tap_step * s * kg,
                         axis_w.tap_step * kg};
  const int columns = cg, pitch = c;
#else
  const int group = blockIdx.z;
  const Window window = {n, p, q, stride_h, stride_w, -top, -left, dilation_h, dilation_w,
                         h, w, c, r, s, cg, 0, s * cg, cg};
  const int columns = kg, pitch = k;
#endif
  const int rows = n * window.lines_h * window.lines_w;
  const int tiles_n = (columns + BN - 1) / BN;
  const int tile_m = blockIdx.x / tiles_n;
  const int m0 = tile_m * BM, n0 = (blockIdx.x - tile_m * tiles_n) * BN;
  if (m0 >= rows) return;  // the whole block: a phase with fewer pixels than the first

  const int depth = window.taps_h * window.taps_w * window.channels;
  const Part part((depth + BK - 1) / BK, blockIdx.y, gridDim.y);
  const int filter_size = r * s * window.channels;
  AlongTaps source(window, from + group * window.channels, weight + group * columns * filter_size, m0, n0,
                   columns, filter_size, part.first);
  Sums sum = {};
  matmul<AlongTaps::LayoutA, AlongTaps::LayoutB>(sum, source, part.count, shared);

  const int first = group * columns;  // channel
#if DX
  const Epilogue epilogue = {nullptr, nullptr, nullptr, residual ? residual + first : nullptr, 0,
                             positive ? positive + first : nullptr, nullptr};
  const i64 size = (i64)n * h * w * c;
  // Where each row lies in dx, found once: else every lane would divide for each of its rows, and in every array.
  static_assert(BM * sizeof(int) <= 2 * WARPS_M * BN * sizeof(real), "it lies where moments would");
  int* const pixel_of = reinterpret_cast<int*>(shared + WARPS * STAGING_BYTES);
  for (int m = m0 + threadIdx.x; m < min(m0 + BM, rows); m += THREADS) {
    const int row = m / window.lines_w, picture = row / window.lines_h;
    const int i = (row - picture * window.lines_h) * stride_h + phase_h;
    const int j = (m - row * window.lines_w) * stride_w + phase_w;
    pixel_of[m - m0] = (picture * h + i) * w + j;
  }
  __syncthreads();
  const auto offset = [&](int m) { return (i64)pixel_of[m - m0] * pitch; };
#else
  const Epilogue epilogue = {scale ? scale + first : nullptr, shift ? shift + first : nullptr,
                             bias ? bias + first : nullptr, residual ? residual + first : nullptr, relu,
                             nullptr, nullptr};
  const i64 size = (i64)rows * k;
  const auto offset = [&](int m) { return (i64)m * pitch; };
#endif
  finish<Stored>(sum, shared, m0, n0, rows, columns, offset, epilogue,
                 to + (blockIdx.y * size + first),
                 STATISTICS ? moments + ((i64)tile_m * 2 * pitch + first) : nullptr, pitch);
}
