// Batch normalisation: four passes over the picture elements, and what little there is per channel.
//
// Floor: memory. statistics reads x; apply reads x (and a residual) and writes y; reduce reads dy, x (and
// y, for a ReLU) and may write dz; dx reads the same again and writes dx. Nothing else is worth a pass,
// so each is fused as far as it goes. To get there: 16 bytes an access, channels along the warp so that
// rows of a tile are contiguous, per-channel numbers in registers over many rows, and several rows in
// flight at a time.
//
// x, y, dy, residual: rows of C channels      mean, var, scale, shift, a, b, c, sums: C, in double, as on the
// CPU: they are few, and a mean of many standard deviations costs no digits then
//
// A block is a tile: threadIdx.x along channels, N of them each; threadIdx.y along rows. Sums are taken
// in `real` over SPAN rows of one thread, in double from there on: over a thread, over the block by a
// tree, over the blocks by a second kernel. Rows are dealt by the size of the array alone. So the result
// depends neither on the card nor on who comes first.
#include "line.cuh"

// Threads of a tile. The bounds ask for two blocks on a multiprocessor, which leaves 128 registers a thread:
// they go into loads in flight, and those, not more threads, fill the memory's latency.
#define THREADS 256
#define SPAN 32      // rows that one thread adds up in `real`
#define FLIGHT 4     // rows whose loads a thread has under way at a time
#define LANES 32     // threads that share a channel in the second kernel
#define COLUMNS 8    // channels of one of its blocks

// Add two sums of each channel over the rows of the block; write them to partial[block][2][channels].
template <int N>
DEVICE void add_over_block(const double (&first)[N], const double (&second)[N], int c, int channels,
                           double* __restrict__ partial) {
  __shared__ double part[2 * N][THREADS];
  // A thread's own place: what it holds from the channels before, only this thread has read since the tree.
  const int t = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int i = 0; i < N; i++) {
    part[i][t] = first[i];
    part[N + i][t] = second[i];
  }
  __syncthreads();
  for (int step = blockDim.y / 2; step; step /= 2) {
    if (threadIdx.y < step) {
#pragma unroll
      for (int i = 0; i < 2 * N; i++) part[i][t] += part[i][t + step * blockDim.x];
    }
    __syncthreads();
  }
  if (threadIdx.y == 0 && c < channels) {
    double* out = partial + (i64)blockIdx.x * 2 * channels + c;
#pragma unroll
    for (int i = 0; i < N; i++) {
      out[i] = part[i][t];
      out[channels + i] = part[N + i][t];
    }
  }
}

// Add the blocks' sums of channel c. Threads: COLUMNS channels x LANES. Valid where threadIdx.y == 0.
DEVICE void add_over_blocks(const double* __restrict__ partial, int blocks, int c, int channels,
                            double& first, double& second) {
  __shared__ double part[2][LANES][COLUMNS];
  double a = 0, b = 0;
  if (c < channels) {
#pragma unroll 4
    for (int i = threadIdx.y; i < blocks; i += LANES) {
      a += partial[(i64)i * 2 * channels + c];
      b += partial[(i64)i * 2 * channels + channels + c];
    }
  }
  part[0][threadIdx.y][threadIdx.x] = a;
  part[1][threadIdx.y][threadIdx.x] = b;
  __syncthreads();
  for (int step = LANES / 2; step; step /= 2) {
    if (threadIdx.y < step) {
      part[0][threadIdx.y][threadIdx.x] += part[0][threadIdx.y + step][threadIdx.x];
      part[1][threadIdx.y][threadIdx.x] += part[1][threadIdx.y + step][threadIdx.x];
    }
    __syncthreads();
  }
  first = part[0][0][threadIdx.x];
  second = part[1][0][threadIdx.x];
}

// ---- mean and variance ----
//
// Over a span the first row is subtracted, so that a mean far from zero costs no digits. A span of n rows
// with sum s and square sum q of these differences has mean near + s/n and squares q - s*s/n about it.
// Moved to the origin of the channel, its first value, with d = near + s/n - origin, it adds n*d to the
// sum and the squares about its mean + n*d*d to the squares; both in double.

template <int N>
DEVICE void statistics(const T* __restrict__ x, i64 rows, int channels, i64 chunk,
                       double* __restrict__ partial) {
  const i64 begin = blockIdx.x * chunk, end = min(begin + chunk, rows);
  const int down = blockDim.y;
  for (int base = blockIdx.y * blockDim.x * N; base < channels; base += gridDim.y * blockDim.x * N) {
    const int c = base + threadIdx.x * N;
    double total[N] = {}, square[N] = {};
    if (c < channels) {
      real origin[N];
      load_real(x + c, origin);
      for (i64 row = begin + threadIdx.y; row < end; row += SPAN * down) {
        const int n = (int)min((i64)SPAN, (end - row + down - 1) / down);
        const T* __restrict__ in = x + row * channels + c;
        real near[N], s[N] = {}, q[N] = {};
        load_real(in, near);
#pragma unroll 4
        for (int k = 1; k < n; k++) {
          real v[N];
          load_real(in + (i64)k * down * channels, v);
#pragma unroll
          for (int i = 0; i < N; i++) {
            const real d = v[i] - near[i];
            s[i] += d;
            q[i] += d * d;
          }
        }
        const double share = 1.0 / n;
#pragma unroll
        for (int i = 0; i < N; i++) {
          const double mean = s[i] * share;
          const double d = ((double)near[i] - origin[i]) + mean;
          total[i] += n * d;
          square[i] += (q[i] - s[i] * mean) + n * d * d;
        }
      }
    }
    add_over_block(total, square, c, channels, partial);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_statistics(i64 rows, int channels, i64 chunk, double* __restrict__ partial,
                         const T* __restrict__ x) {
  BY_WIDTH(aligned16(x), statistics<N>(x, rows, channels, chunk, partial));
}

extern "C" __global__ void batchnorm_statistics_finish(const double* __restrict__ partial, int blocks,
                                                       const T* __restrict__ x, i64 rows, int channels,
                                                       double* __restrict__ mean,
                                                       double* __restrict__ var) {
  const int c = blockIdx.x * COLUMNS + threadIdx.x;
  double total, square;
  add_over_blocks(partial, blocks, c, channels, total, square);
  if (threadIdx.y == 0 && c < channels) {
    const double d = total / rows, v = square / rows - d * d;
    mean[c] = to_real(x[c]) + d;
    var[c] = v < 0 ? 0 : v;  // a NaN stays a NaN
  }
}

// ---- per channel; the formulas are derived in minitl/ops/batchnorm.py ----

// mean, var: of the batch, over `pixels` values a channel; or null: the running ones are used.
extern "C" __global__ void batchnorm_fold(const double* __restrict__ mean,
                                          const double* __restrict__ var,
                                          const real* __restrict__ weight, const real* __restrict__ bias,
                                          real* __restrict__ running_mean, real* __restrict__ running_var,
                                          int channels, i64 pixels, double momentum, double eps,
                                          double* __restrict__ scale, double* __restrict__ shift,
                                          double* __restrict__ used_mean, double* __restrict__ inv_std) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  double m = running_mean[c], v = running_var[c];
  if (mean) {
    running_mean[c] = (real)(m + momentum * (mean[c] - m));
    running_var[c] = (real)(v + momentum * (var[c] * ((double)pixels / (pixels - 1)) - v));
    m = mean[c], v = var[c];
  }
  const double inverse = 1 / sqrt(v + eps), slope = weight[c] * inverse;
  scale[c] = slope;
  shift[c] = bias[c] - m * slope;
  used_mean[c] = m;
  inv_std[c] = inverse;
}

// dweight, dbias: null without sums. b, c: null with fixed statistics; the mean is not looked at then.
extern "C" __global__ void batchnorm_coefficients(const double* __restrict__ sum_dz,
                                                  const double* __restrict__ sum_dz_xhat,
                                                  const real* __restrict__ weight,
                                                  const double* __restrict__ mean,
                                                  const double* __restrict__ inv_std, int channels,
                                                  i64 pixels, double* __restrict__ a,
                                                  double* __restrict__ b, double* __restrict__ c,
                                                  real* __restrict__ dweight, real* __restrict__ dbias) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= channels) return;
  const double scale = weight[i] * inv_std[i];
  a[i] = scale;
  if (b) {
    const double slope = -scale * inv_std[i] * sum_dz_xhat[i] / pixels;
    b[i] = slope;
    c[i] = -scale * sum_dz[i] / pixels - slope * mean[i];
  }
  if (dweight) {
    dweight[i] = (real)sum_dz_xhat[i];
    dbias[i] = (real)sum_dz[i];
  }
}

// ---- y = max(x * scale + shift [+ residual], floor) ----

template <int N, bool ADD>
DEVICE void apply(const T* __restrict__ x, const T* __restrict__ residual, const double* __restrict__ scale,
                  const double* __restrict__ shift, T* __restrict__ y, i64 rows, int channels, real floor) {
  for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < channels;
       c += gridDim.y * blockDim.x * N) {
    Line lines[N];
    load_lines(scale, shift, c, lines);
    for_each_row<FLIGHT>(rows, [&](i64 row) {
      const i64 at = row * channels + c;
      real v[N], r[N];
      load_real(x + at, v);
      if (ADD) load_real(residual + at, r);
#pragma unroll
      for (int i = 0; i < N; i++) {
        real z = lines[i].at(v[i]);
        if (ADD) z += r[i];
        v[i] = z < floor ? floor : z;
      }
      store_real(y + at, v);
    });
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_apply(i64 rows, int channels, const T* __restrict__ x, const double* __restrict__ scale,
                    const double* __restrict__ shift, T* __restrict__ y, real floor) {
  BY_WIDTH(aligned16(x, y), (apply<N, false>(x, nullptr, scale, shift, y, rows, channels, floor)));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_apply_add(i64 rows, int channels, const T* __restrict__ x, const T* __restrict__ residual,
                        const double* __restrict__ scale, const double* __restrict__ shift,
                        T* __restrict__ y, real floor) {
  BY_WIDTH(aligned16(x, residual, y),
           (apply<N, true>(x, residual, scale, shift, y, rows, channels, floor)));
}

// ---- sum(dz) and sum(dz * xhat), with dz = dy, or dy where y > 0 ----

template <int N, bool RELU, bool KEEP>
DEVICE void reduce(const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x,
                   const double* __restrict__ mean, T* __restrict__ dz, i64 rows, int channels, i64 chunk,
                   double* __restrict__ partial) {
  const i64 begin = blockIdx.x * chunk, end = min(begin + chunk, rows);
  const int down = blockDim.y;
  for (int base = blockIdx.y * blockDim.x * N; base < channels; base += gridDim.y * blockDim.x * N) {
    const int c = base + threadIdx.x * N;
    double total[N] = {}, product[N] = {};
    if (c < channels) {
      real middle[N];
#pragma unroll
      for (int i = 0; i < N; i++) middle[i] = (real)mean[c + i];
      for (i64 row = begin + threadIdx.y; row < end; row += SPAN * down) {
        const int n = (int)min((i64)SPAN, (end - row + down - 1) / down);
        const i64 start = row * channels + c;
        real s[N] = {}, p[N] = {};
#pragma unroll 4
        for (int k = 0; k < n; k++) {
          const i64 at = start + (i64)k * down * channels;
          real g[N], v[N], z[N];
          load_real(dy + at, g);
          load_real(x + at, v);
          if (RELU) load_real(y + at, z);
#pragma unroll
          for (int i = 0; i < N; i++) {
            if (RELU) g[i] = z[i] <= 0 ? 0 : g[i];
            s[i] += g[i];
            p[i] += g[i] * (v[i] - middle[i]);
          }
          if (KEEP) store_real(dz + at, g);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
          total[i] += s[i];
          product[i] += p[i];
        }
      }
    }
    add_over_block(total, product, c, channels, partial);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_reduce(i64 rows, int channels, i64 chunk, double* __restrict__ partial,
                     const T* __restrict__ dy, const T* __restrict__ x, const double* __restrict__ mean) {
  BY_WIDTH(aligned16(dy, x), (reduce<N, false, false>(dy, nullptr, x, mean, nullptr, rows, channels, chunk,
                                                      partial)));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_reduce_relu(i64 rows, int channels, i64 chunk, double* __restrict__ partial,
                          const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x,
                          const double* __restrict__ mean) {
  BY_WIDTH(aligned16(dy, y, x),
           (reduce<N, true, false>(dy, y, x, mean, nullptr, rows, channels, chunk, partial)));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_reduce_relu_keep(i64 rows, int channels, i64 chunk, double* __restrict__ partial,
                               const T* __restrict__ dy, const T* __restrict__ y,
                               const T* __restrict__ x, const double* __restrict__ mean,
                               T* __restrict__ dz) {
  BY_WIDTH(aligned16(dy, y, x, dz),
           (reduce<N, true, true>(dy, y, x, mean, dz, rows, channels, chunk, partial)));
}

extern "C" __global__ void batchnorm_reduce_finish(const double* __restrict__ partial, int blocks,
                                                   const double* __restrict__ mean,
                                                   const double* __restrict__ inv_std, int channels,
                                                   double* __restrict__ sum_dz,
                                                   double* __restrict__ sum_dz_xhat) {
  const int c = blockIdx.x * COLUMNS + threadIdx.x;
  double total, product;
  add_over_blocks(partial, blocks, c, channels, total, product);
  if (threadIdx.y == 0 && c < channels) {
    product -= (mean[c] - (double)(real)mean[c]) * total;  // what was subtracted from x was rounded
    sum_dz[c] = total;
    sum_dz_xhat[c] = product * inv_std[c];
  }
}

// ---- dx = a * dz [+ b * x + c] ----

template <int N, bool RELU, bool TRAINING>
DEVICE void backward(const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x,
                     const double* __restrict__ a, const double* __restrict__ b, const double* __restrict__ c0,
                     T* __restrict__ dx, i64 rows, int channels) {
  for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < channels;
       c += gridDim.y * blockDim.x * N) {
    Line lines[N];
    real factor[N];
    if (TRAINING) load_lines(b, c0, c, lines);
#pragma unroll
    for (int i = 0; i < N; i++) factor[i] = (real)a[c + i];
    for_each_row<FLIGHT>(rows, [&](i64 row) {
      const i64 at = row * channels + c;
      real g[N], z[N], v[N];
      load_real(dy + at, g);
      if (RELU) load_real(y + at, z);
      if (TRAINING) load_real(x + at, v);
#pragma unroll
      for (int i = 0; i < N; i++) {
        g[i] = factor[i] * (RELU && z[i] <= 0 ? 0 : g[i]);
        if (TRAINING) g[i] += lines[i].at(v[i]);
      }
      store_real(dx + at, g);
    });
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_dx(i64 rows, int channels, const T* __restrict__ dy, const double* __restrict__ a,
                 T* __restrict__ dx) {
  BY_WIDTH(aligned16(dy, dx), (backward<N, false, false>(dy, nullptr, nullptr, a, nullptr, nullptr, dx,
                                                         rows, channels)));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_dx_relu(i64 rows, int channels, const T* __restrict__ dy, const T* __restrict__ y,
                      const double* __restrict__ a, T* __restrict__ dx) {
  BY_WIDTH(aligned16(dy, y, dx), (backward<N, true, false>(dy, y, nullptr, a, nullptr, nullptr, dx, rows,
                                                           channels)));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_dx_training(i64 rows, int channels, const T* __restrict__ dy, const T* __restrict__ x,
                          const double* __restrict__ a, const double* __restrict__ b,
                          const double* __restrict__ c, T* __restrict__ dx) {
  BY_WIDTH(aligned16(dy, x, dx),
           (backward<N, false, true>(dy, nullptr, x, a, b, c, dx, rows, channels)));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    batchnorm_dx_training_relu(i64 rows, int channels, const T* __restrict__ dy, const T* __restrict__ y,
                               const T* __restrict__ x, const double* __restrict__ a,
                               const double* __restrict__ b, const double* __restrict__ c,
                               T* __restrict__ dx) {
  BY_WIDTH(aligned16(dy, y, x, dx), (backward<N, true, true>(dy, y, x, a, b, c, dx, rows, channels)));
}
