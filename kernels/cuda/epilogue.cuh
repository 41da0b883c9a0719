// What becomes of a block's sums: per channel scale and shift, a residual, ReLU, rounding, statistics, and
// stores of 16 bytes.
//
// A thread's sums are pairs of columns in many rows. So each warp passes 16 rows at a time through shared
// memory and takes them back as whole rows, 16 bytes of the result to a lane. Rows of the staging area are
// 16 bytes longer than needed, so that lanes which read at once meet different banks.
#pragma once
#include "matmul.cuh"

#ifndef STATISTICS
#define STATISTICS 0
#endif

constexpr int STAGING_ROW = WN + 16 / sizeof(real);
constexpr int STAGING_BYTES = 16 * STAGING_ROW * sizeof(real);  // for a warp
constexpr int WARPS = THREADS / WARP;
static_assert(WARPS * STAGING_BYTES + 2 * WARPS_M * BN * sizeof(real) <= STAGES * (BM + BN) * CHUNKS * 16,
              "the epilogue fits where the slices were");

// y = sum * scale + shift + residual, cut off below zero if relu, zero where `positive` is zero or less (as a
// ReLU does with a gradient); null pointers stand for nothing to do. Scale and shift, which come in double as
// the passes of batch normalisation have them, and the bias, which is a shift as a parameter, point to the
// first column of the group.
struct Epilogue {
  const double* scale;
  const double* shift;
  const real* bias;
  const T* residual;
  int relu;
  const T* positive;
  const double* row_scale;  // from the first row of the group on
};

template <class Out, int N>
DEVICE void round_to(const real (&v)[N], Vector<Out, N>& out) {
#pragma unroll
  for (int i = 0; i < N; i++) from_real(v[i], out.at[i]);
}
// bf16 in pairs: one instruction for two.
template <int N>
DEVICE void round_to(const float (&v)[N], Vector<bf16, N>& out) {
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const u32 pair = pack_bf16(v[i], v[i + 1]);
    out.at[i].bits = (u16)pair;
    out.at[i + 1].bits = (u16)(pair >> 16);
  }
}

// Read a vector, or if not `whole`, as many elements of it as there are.
template <int N>
DEVICE void load_up_to(const T* from, int count, bool whole, Vector<T, N>& v) {
  constexpr int AT_ONCE = N < CHUNK ? N : CHUNK;
  if (whole) {
#pragma unroll
    for (int i = 0; i < N; i += AT_ONCE) {
      const Vector<T, AT_ONCE> part = load<AT_ONCE>(from + i);
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) v.at[i + j] = part.at[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < count) v.at[i] = from[i];
  }
}

// Mean and sum of squared distances from it, of `count` values. The mean is rounded to `real`, so a variance
// of float values comes out with a relative error of up to 2^-24 |mean| / standard deviation.
struct Moments {
  real count, mean, squares;
  // Of values whose distances from `pivot` sum to `sum`, the distances' squares to `square`.
  static DEVICE Moments about(real pivot, int count, real sum, real square) {
    const real mean = count ? sum / (real)count : (real)0;
    return {(real)count, pivot + mean, max(square - sum * mean, (real)0)};
  }
  // Chan, Golub, LeVeque: updating formulae for sample variances (1979).
  DEVICE void add(const Moments& other) {
    const real total = count + other.count;
    if (other.count == 0) return;
    const real d = other.mean - mean, share = other.count / total;
    mean += d * share;
    squares += other.squares + d * d * count * share;
    count = total;
  }
};

// Store the block's results; with STATISTICS, also the moments of its columns, of the values as stored.
//
// row0, column0: the block's first result. rows, columns: how many there are, of all blocks together.
// offset(row): of the row's column 0 in y (and in the residual).
// moments: [2][pitch], mean and sum of squares of the block's rows; pitch: channels of y.
template <class Out, class Offset>
DEVICE void finish(const Sums& sum, u8* shared, int row0, int column0, int rows, int columns,
                   Offset offset, const Epilogue& epilogue, Out* y, real* moments, int pitch) {
  constexpr int VECTOR = Width<Out>::value;
  constexpr int LANES = WN / VECTOR;     // for a row
  constexpr int AT_ONCE = WARP / LANES;  // rows
  constexpr int PASSES = 16 / AT_ONCE;
  constexpr int FLIGHT = PASSES < 4 ? PASSES : 4;  // passes whose residual is on its way at a time
  constexpr int PART = 16 / sizeof(real) < VECTOR ? 16 / sizeof(real) : VECTOR;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int warp_m = warp / WARPS_N;
  const int first_row = row0 + warp_m * WM;
  const int local_column = warp % WARPS_N * WN + lane % LANES * VECTOR;
  const int column = column0 + local_column;
  real* const staging = reinterpret_cast<real*>(shared + warp * STAGING_BYTES);
  const T* const added = STATISTICS ? nullptr : epilogue.residual;
  const T* const positive = STATISTICS ? nullptr : epilogue.positive;
  const bool whole = pitch % VECTOR == 0 && columns % VECTOR == 0 && aligned16(y) &&
                     (!added || aligned16(added)) && (!positive || aligned16(positive));

  real scale[VECTOR], shift[VECTOR];
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    const bool inside = !STATISTICS && column + v < columns;
    scale[v] = inside && epilogue.scale ? (real)epilogue.scale[column + v] : (real)1;
    shift[v] = inside && epilogue.shift ? (real)epilogue.shift[column + v]
               : inside && epilogue.bias ? epilogue.bias[column + v] : (real)0;
  }
  real pivot[VECTOR] = {}, total[VECTOR] = {}, square[VECTOR] = {};  // unused without STATISTICS

#pragma unroll
  for (int i = 0; i < WM / 16; i++) {
    Vector<T, VECTOR> residual[FLIGHT] = {}, above_zero[FLIGHT] = {};
    const auto ask = [&](const T* array, int first_pass, Vector<T, VECTOR>(&values)[FLIGHT]) {
      if (!array) return;
#pragma unroll
      for (int pass = 0; pass < FLIGHT; pass++) {
        const int row = first_row + 16 * i + (first_pass + pass) * AT_ONCE + lane / LANES;
        if (row < rows && column < columns)
          load_up_to(array + (offset(row) + column), columns - column, whole, values[pass]);
      }
    };
    // On their way while the sums go through shared memory; or after, when these are all the warp's sums and
    // leave their registers to them.
    if (WM > 16) ask(added, 0, residual), ask(positive, 0, above_zero);
    __syncwarp();  // the rows before have been taken
#pragma unroll
    for (int j = 0; j < WN / 8; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const Vector<real, 2> pair = {{sum[i][j][2 * half], sum[i][j][2 * half + 1]}};
        store<2>(staging + (half * 8 + lane / 4) * STAGING_ROW + 8 * j + lane % 4 * 2, pair);
      }
    if (WM == 16) ask(added, 0, residual), ask(positive, 0, above_zero);
    __syncwarp();
    if (STATISTICS && i == 0) {
#pragma unroll
      for (int v = 0; v < VECTOR; v++) {
        Out rounded;
        from_real(staging[lane % LANES * VECTOR + v], rounded);  // of the warp's first row
        pivot[v] = to_real(rounded);
      }
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      if (pass && pass % FLIGHT == 0) ask(added, pass, residual), ask(positive, pass, above_zero);
      const int row_here = pass * AT_ONCE + lane / LANES, row = first_row + 16 * i + row_here;
      const real* const from = staging + row_here * STAGING_ROW + lane % LANES * VECTOR;
      if (row >= rows || column >= columns) continue;
      const i64 to = offset(row) + column;
      Vector<Out, VECTOR> out;
      real values[VECTOR];
#pragma unroll
      for (int v = 0; v < VECTOR; v += PART) {
        const Vector<real, PART> part = load<PART>(from + v);
#pragma unroll
        for (int u = 0; u < PART; u++) values[v + u] = part.at[u];
      }
#pragma unroll
      for (int v = 0; v < VECTOR; v++) {
        if (STATISTICS) continue;
        if (epilogue.row_scale) values[v] *= (real)epilogue.row_scale[row];
        values[v] = values[v] * scale[v] + shift[v] + to_real(residual[pass % FLIGHT].at[v]);
        if (epilogue.relu) values[v] = values[v] < 0 ? (real)0 : values[v];  // keeps a NaN
        if (positive && to_real(above_zero[pass % FLIGHT].at[v]) <= 0) values[v] = 0;
      }
      round_to(values, out);
      if (STATISTICS) {
#pragma unroll
        for (int v = 0; v < VECTOR; v++) {
          const real d = to_real(out.at[v]) - pivot[v];
          total[v] += d;
          square[v] += d * d;
        }
      }
      if (whole) {
        store<VECTOR>(y + to, out);
      } else {
#pragma unroll
        for (int v = 0; v < VECTOR; v++)
          if (column + v < columns) y[to + v] = out.at[v];
      }
    }
  }

  if constexpr (STATISTICS) {
    // Lanes of the same columns, then warps of the same columns, each in a fixed order.
    real* const mean_of = reinterpret_cast<real*>(shared + WARPS * STAGING_BYTES);  // [WARPS_M][BN]
    real* const squares_of = mean_of + WARPS_M * BN;
    const int rows_of_warp = max(0, min(rows - first_row, WM));
#pragma unroll
    for (int v = 0; v < VECTOR; v++) {
#pragma unroll
      for (int step = LANES; step < WARP; step *= 2) {
        total[v] += __shfl_xor_sync(EVERY_LANE, total[v], step);
        square[v] += __shfl_xor_sync(EVERY_LANE, square[v], step);
      }
      if (lane < LANES) {
        const Moments m = Moments::about(pivot[v], rows_of_warp, total[v], square[v]);
        mean_of[warp_m * BN + local_column + v] = m.mean;
        squares_of[warp_m * BN + local_column + v] = m.squares;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BN; i += THREADS)
      if (column0 + i < columns) {
        Moments all = {0, 0, 0};
#pragma unroll
        for (int w = 0; w < WARPS_M; w++)
          all.add({(real)max(0, min(rows - row0 - w * WM, WM)), mean_of[w * BN + i],
                   squares_of[w * BN + i]});
        moments[column0 + i] = all.mean;
        moments[pitch + column0 + i] = all.squares;
      }
  }
}
