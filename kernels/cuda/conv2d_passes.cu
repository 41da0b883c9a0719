// Small passes around the convolutions: the weight as dx wants it, channels to copy 16 bytes at a time, sums
// of partial results, bias gradients.
//
// All sums run in a fixed order, the long ones in double.
#include "common.cuh"

constexpr int SIDE = 32;  // of a square piece of a matrix

// out (C, R*S, K/groups) in T from weight (K, R*S, C/groups): for each tap and group, a matrix transposed, and its
// filters multiplied by `scale` (or null).
// A block of SIDE x 8 threads moves SIDE x SIDE elements through shared memory, so that both sides are read
// and written along their rows.
extern "C" __global__ void conv2d_transpose_weight(const real* __restrict__ weight, T* __restrict__ out,
                                                   int k, int taps, int c, int groups,
                                                   const double* __restrict__ scale) {
  __shared__ real tile[SIDE][SIDE + 1];
  const int kg = k / groups, cg = c / groups;
  const int tiles_k = (kg + SIDE - 1) / SIDE, tiles_c = (cg + SIDE - 1) / SIDE;
  int i = blockIdx.x;
  const int k0 = i % tiles_k * SIDE;
  i /= tiles_k;
  const int c0 = i % tiles_c * SIDE;
  i /= tiles_c;
  const int tap = i % taps, group = i / taps;
  for (int y = threadIdx.y; y < SIDE; y += 8)
    if (k0 + y < kg && c0 + threadIdx.x < cg)
      tile[y][threadIdx.x] =
          weight[((i64)(group * kg + k0 + y) * taps + tap) * cg + c0 + threadIdx.x] *
          (scale ? (real)scale[group * kg + k0 + y] : (real)1);
  __syncthreads();
  for (int y = threadIdx.y; y < SIDE; y += 8)
    if (c0 + y < cg && k0 + threadIdx.x < kg)
      from_real(tile[threadIdx.x][y],
                out[((i64)(group * cg + c0 + y) * taps + tap) * kg + k0 + threadIdx.x]);
}

// out (rows, wide) from x (rows, channels): channels of zeros are added. wide: a multiple of 16 bytes.
extern "C" __global__ void conv2d_pad_channels(const T* __restrict__ x, i64 rows, int channels, int wide,
                                               T* __restrict__ out) {
  constexpr int N = Width<T>::value;
  const int pieces = wide / N;
  const i64 stride = (i64)gridDim.x * blockDim.x, count = rows * pieces;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const i64 row = i / pieces;
    const int first = (int)(i - row * pieces) * N;
    Vector<T, N> piece = {};
#pragma unroll
    for (int k = 0; k < N; k++)
      if (first + k < channels) piece.at[k] = x[row * channels + first + k];
    store<N>(out + i * N, piece);
  }
}

// y = sum of the splits [+ scale, shift, bias, residual, ReLU, positive, as in epilogue.cuh].
extern "C" __global__ void conv2d_sum_splits(const real* __restrict__ splits, int count, i64 size,
                                             int channels, const double* __restrict__ scale,
                                             const double* __restrict__ shift,
                                             const real* __restrict__ bias,
                                             const T* __restrict__ residual,
                                             const T* __restrict__ positive, int relu,
                                             T* __restrict__ y) {
  const i64 stride = (i64)gridDim.x * blockDim.x;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += stride) {
    real sum = splits[i];
    for (int s = 1; s < count; s++) sum += splits[s * size + i];
    const int channel = (int)(i % channels);
    if (scale) sum *= (real)scale[channel];
    if (shift) sum += (real)shift[channel];
    if (bias) sum += bias[channel];
    if (residual) sum += to_real(residual[i]);
    if (relu) sum = sum < 0 ? (real)0 : sum;
    if (positive && to_real(positive[i]) <= 0) sum = 0;
    from_real(sum, y[i]);
  }
}

// A block of 8 channels times 128 threads that share the rows; each gets the sum of its channel.
constexpr int CHANNELS = 8, SHARERS = 128;

DEVICE double sum_over_sharers(double v) {
  __shared__ double part[SHARERS][CHANNELS];
  __syncthreads();  // of an earlier call, everything has been read
  part[threadIdx.y][threadIdx.x] = v;
  for (int half = SHARERS / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half)
      part[threadIdx.y][threadIdx.x] += part[threadIdx.y + half][threadIdx.x];
  }
  __syncthreads();
  return part[0][threadIdx.x];
}

// mean and biased variance from the moments [tiles][2][channels] of tiles of tile_rows rows (the last one
// may have fewer): means and sums of squared distances from them. In double, about the mean of the first
// tile, the sums lose no digits that matter, however far from zero the means are.
extern "C" __global__ void conv2d_statistics_finish(const real* __restrict__ moments, int tiles,
                                                    int tile_rows, int rows, int channels,
                                                    double* __restrict__ mean,
                                                    double* __restrict__ var) {
  const int channel = blockIdx.x * CHANNELS + threadIdx.x;
  const bool inside = channel < channels;
  const double pivot = inside ? moments[channel] : 0;
  double total = 0, square = 0;
  if (inside)
#pragma unroll 4
    for (int t = threadIdx.y; t < tiles; t += SHARERS) {
      const double count = min(tile_rows, rows - t * tile_rows);
      const double d = moments[(i64)2 * t * channels + channel] - pivot;
      total += count * d;
      square += count * d * d + moments[(i64)(2 * t + 1) * channels + channel];
    }
  total = sum_over_sharers(total);
  square = sum_over_sharers(square);
  if (inside && threadIdx.y == 0) {
    const double d = total / rows;
    mean[channel] = pivot + d;
    var[channel] = max(square / rows - d * d, 0.0);
  }
}

// partial[blockIdx.y][k] = sum over a share of the rows of dy (rows, K); conv2d_db_finish adds the shares.
extern "C" __global__ void conv2d_db(const T* __restrict__ dy, int rows, int channels, int share,
                                     double* __restrict__ partial) {
  const int channel = blockIdx.x * CHANNELS + threadIdx.x;
  const int first = blockIdx.y * share, last = min(rows, first + share);
  double total = 0;
  if (channel < channels)
    for (int row = first + threadIdx.y; row < last; row += SHARERS)
      total += to_real(dy[(i64)row * channels + channel]);
  total = sum_over_sharers(total);
  if (channel < channels && threadIdx.y == 0) partial[(i64)blockIdx.y * channels + channel] = total;
}

extern "C" __global__ void conv2d_db_finish(const double* __restrict__ partial, int shares, int channels,
                                            real* __restrict__ db) {
  const int channel = blockIdx.x * CHANNELS + threadIdx.x;
  double total = 0;
  if (channel < channels)
    for (int s = threadIdx.y; s < shares; s += SHARERS) total += partial[(i64)s * channels + channel];
  total = sum_over_sharers(total);
  if (channel < channels && threadIdx.y == 0) db[channel] = (real)total;
}
