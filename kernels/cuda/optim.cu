// Steps of the optimizers: one pass over flat arrays, in place.
//
// Floor: memory. SGD with momentum reads parameter, gradient and velocity and writes two of them back; Adam
// reads four arrays and writes three. To get there: 16 bytes an access, all parameters of a group in one
// launch. A moving average of the weights is a pass of its own, for each parameter.
//
// T      float or double: parameters, gradients and what is remembered are never bfloat16
//
// The order of operations is PyTorch's, as on the CPU. Numbers that change from step to step are given or
// read from device memory (the pointers ..._at; null: the number given holds), so that a recorded step
// follows them.
//
// Clipping reads the gradients once for their norm, and once more, to write them, only if that is too large.
#include "common.cuh"

#define THREADS 256

extern "C" __global__ void sgd_step(T* __restrict__ param, const T* __restrict__ grad, i64 n, T lr,
                                    const float* __restrict__ lr_at, T weight_decay) {
  const T rate = lr_at ? (T)*lr_at : lr;
  for_each<Width<T>::value>(n, aligned16(param, grad), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    T p[N], g[N];
    load_real(param + i, p);
    load_real(grad + i, g);
#pragma unroll
    for (int k = 0; k < N; k++) p[k] -= rate * (g[k] + weight_decay * p[k]);
    store_real(param + i, p);
  });
}

// first, *first_at: not 0 where velocity has no value yet.
extern "C" __global__ void sgd_momentum_step(T* __restrict__ param, const T* __restrict__ grad,
                                             T* __restrict__ velocity, i64 n, T lr,
                                             const float* __restrict__ lr_at, T momentum, T weight_decay,
                                             int nesterov, i64 first, const i64* __restrict__ first_at) {
  const T rate = lr_at ? (T)*lr_at : lr;
  const bool starts = (first_at ? *first_at : first) != 0;
  for_each<Width<T>::value>(n, aligned16(param, grad, velocity), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    T p[N], g[N], v[N];
    load_real(param + i, p);
    load_real(grad + i, g);
    load_real(velocity + i, v);
#pragma unroll
    for (int k = 0; k < N; k++) {
      g[k] += weight_decay * p[k];
      v[k] = starts ? g[k] : momentum * v[k] + g[k];
      p[k] -= rate * (nesterov ? g[k] + momentum * v[k] : v[k]);
    }
    store_real(velocity + i, v);
    store_real(param + i, p);
  });
}

// Corrections for the step are computed once for a block, in double: 1 - beta^step has few digits else.
extern "C" __global__ void adam_step(T* __restrict__ param, const T* __restrict__ grad,
                                     T* __restrict__ m, T* __restrict__ v, i64 n, double lr,
                                     const float* __restrict__ lr_at, i64 step,
                                     const i64* __restrict__ step_at, double beta1, double beta2, T eps,
                                     double weight_decay, int decoupled) {
  __shared__ T shared[3];
  if (threadIdx.x == 0) {
    const double rate = lr_at ? (double)*lr_at : lr;
    const double count = step_at ? *step_at : step;
    shared[0] = (T)(rate / (1 - pow(beta1, count)));
    shared[1] = (T)sqrt(1 - pow(beta2, count));
    shared[2] = (T)(decoupled ? 1 - rate * weight_decay : 1);
  }
  __syncthreads();
  const T rate = shared[0], root_correction = shared[1], shrink = shared[2];
  const T m_share = (T)(1 - beta1), v_keep = (T)beta2, v_share = (T)(1 - beta2);
  const T l2 = decoupled ? 0 : (T)weight_decay;
  for_each<Width<T>::value>(n, aligned16(param, grad, m, v), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    T p[N], g[N], mean[N], square[N];
    load_real(param + i, p);
    load_real(grad + i, g);
    load_real(m + i, mean);
    load_real(v + i, square);
#pragma unroll
    for (int k = 0; k < N; k++) {
      p[k] *= shrink;
      g[k] += l2 * p[k];
      mean[k] += m_share * (g[k] - mean[k]);
      square[k] = v_keep * square[k] + v_share * (g[k] * g[k]);
      p[k] -= rate * (mean[k] / (sqrt(square[k]) / root_correction + eps));
    }
    store_real(m + i, mean);
    store_real(v + i, square);
    store_real(param + i, p);
  });
}

extern "C" __global__ void average_step(T* __restrict__ average, const T* __restrict__ value, i64 n,
                                        T share) {
  for_each<Width<T>::value>(n, aligned16(average, value), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    T a[N], v[N];
    load_real(average + i, a);
    load_real(value + i, v);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] += share * (v[k] - a[k]);
    store_real(average + i, a);
  });
}

// ---- all gradients scaled by one factor, so that their norm together is at most `most` ----

// A block's sum of squares, in double: squares of large numbers are beyond float. Elements are dealt to
// threads by the size of the array and of the grid alone.
extern "C" __global__ void sum_of_squares(const T* __restrict__ gradient, i64 n,
                                          double* __restrict__ partial) {
  double sum = 0;
  for_each<Width<T>::value>(n, aligned16(gradient), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    double g[N];
    load_real(gradient + i, g);
#pragma unroll
    for (int k = 0; k < N; k++) sum += g[k] * g[k];
  });
  sum = block_sum<THREADS>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// For one block of THREADS. A NaN among the gradients makes the factor NaN.
extern "C" __global__ void clip_factor(const double* __restrict__ partial, int count, double most,
                                       double* __restrict__ factor) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) sum += partial[i];
  sum = block_sum<THREADS>(sum);
  const double share = most / (sqrt(sum) + 1e-6);
  if (threadIdx.x == 0) *factor = share > 1 ? 1 : share;
}

extern "C" __global__ void scale_gradient(T* __restrict__ gradient, i64 n,
                                          const double* __restrict__ factor) {
  const T by = (T)*factor;
  if (by == 1) return;
  for_each<Width<T>::value>(n, aligned16(gradient), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    T g[N];
    load_real(gradient + i, g);
#pragma unroll
    for (int k = 0; k < N; k++) g[k] *= by;
    store_real(gradient + i, g);
  });
}
