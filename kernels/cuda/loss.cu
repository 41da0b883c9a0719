// Losses, each the mean over the batch.
//
// Floor: starting the kernels. Logits are small, a thousand numbers a picture; what matters is that nothing
// overflows, that sums keep their digits (they are taken in double, by fixed trees) and that no result
// is read back. Forward leaves what backward needs: for cross entropies that is the gradient itself, so
// that it is computed from unrounded probabilities also where logits are bfloat16.
//
// logits, prediction, gradient: T      targets, weights, loss: real
#include "common.cuh"

#define THREADS 128

DEVICE float exponential(float x) { return expf(x); }
DEVICE double exponential(double x) { return exp(x); }
DEVICE float log_of_1_and(float x) { return log1pf(x); }
DEVICE double log_of_1_and(double x) { return log1p(x); }

// ---- softmax cross entropy; the formulas are derived in minitl/ops/softmax_cross_entropy.py ----

// norm = the sum of the labels' weights. One block.
extern "C" __global__ void label_weights(const i64* __restrict__ labels,
                                         const real* __restrict__ class_weights, int pictures,
                                         double* __restrict__ norm) {
  double sum = 0;
  for (int n = threadIdx.x; n < pictures; n += THREADS) sum += class_weights[labels[n]];
  sum = block_sum<THREADS>(sum);
  if (threadIdx.x == 0) *norm = sum;
}

// A block for each picture. class_weights, norm: null for weights of 1.
//
// With z the logits less the largest, log p_k = z_k - log(sum_j exp z_j) and the target
//     q_k = w_k (smoothing / classes + (1 - smoothing) [k = label]),
// the picture adds -sum_k q_k log p_k / norm, and its gradient is (p_k sum_j q_j - q_k) / norm.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    softmax_cross_entropy_forward(const T* __restrict__ logits, const i64* __restrict__ labels,
                                  const real* __restrict__ class_weights,
                                  const double* __restrict__ norm, double smoothing, int classes,
                                  double* __restrict__ losses, T* __restrict__ gradient) {
  const i64 start = (i64)blockIdx.x * classes;
  const int label = (int)labels[blockIdx.x];
  const double share = 1 / (norm ? *norm : (double)gridDim.x);

  real largest = to_real(logits[start]);
  for (int k = threadIdx.x; k < classes; k += THREADS) {
    const real z = to_real(logits[start + k]);
    largest = z > largest || z != z ? z : largest;  // a NaN stays
  }
  largest = block_max<THREADS>(largest);

  double total = 0, weights = 0, weighted = 0;  // sums of exp(z), of w, of w * z
  for (int k = threadIdx.x; k < classes; k += THREADS) {
    const real z = to_real(logits[start + k]) - largest;
    const double w = class_weights ? class_weights[k] : 1;
    total += exponential(z);
    weights += w;
    weighted += w * z;
  }
  total = block_sum<THREADS>(total);
  weights = block_sum<THREADS>(weights);
  weighted = block_sum<THREADS>(weighted);

  const double log_total = log(total), label_weight = class_weights ? class_weights[label] : 1;
  const double spread = smoothing / classes, kept = 1 - smoothing;
  const double sum_q = spread * weights + kept * label_weight;
  if (threadIdx.x == 0) {
    const double chosen = log_total - (to_real(logits[start + label]) - largest);
    double loss = kept * chosen * label_weight;
    if (smoothing != 0) loss += spread * (weights * log_total - weighted);
    losses[blockIdx.x] = loss * share;
  }
  for (int k = threadIdx.x; k < classes; k += THREADS) {
    const double p = exponential(to_real(logits[start + k]) - largest) / total;
    const double w = class_weights ? class_weights[k] : 1;
    const double q = w * (k == label ? spread + kept : spread);
    from_real((real)((p * sum_q - q) * share), gradient[start + k]);
  }
}

// ---- sigmoid binary cross entropy ----

// With e = exp(-|z|), at most 1:    p = 1 / (1 + e) and 1 - p = e / (1 + e) for z >= 0, else the other way;
// -log p = log(1 + e) + max(-z, 0), and -log(1 - p) is z more.
// pos_weight repeats every `period` elements; null for 1.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    sigmoid_binary_cross_entropy_forward(const T* __restrict__ logits, const real* __restrict__ targets,
                                         const real* __restrict__ pos_weight, i64 period, i64 n,
                                         double* __restrict__ losses, T* __restrict__ gradient) {
  double sum = 0;
  for_each<1>(n, false, [&](i64 i, auto) {
    const real z = to_real(logits[i]), t = targets[i], w = pos_weight ? pos_weight[i % period] : 1;
    const real e = exponential(z < 0 ? z : -z), large = 1 / (1 + e), small = e / (1 + e);
    const real p = z < 0 ? small : large, not_p = z < 0 ? large : small;
    const real log_p = -(log_of_1_and(e) + (z < 0 ? -z : 0));
    sum += (1 - t) * z - (1 + (w - 1) * t) * log_p;
    from_real(((1 - t) * p - w * t * not_p) / n, gradient[i]);
  });
  sum = block_sum<THREADS>(sum);
  if (threadIdx.x == 0) losses[blockIdx.x] = sum / n;
}

// ---- mean squared error ----

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    mean_squared_error_forward(const T* __restrict__ prediction, const real* __restrict__ target, i64 n,
                               double* __restrict__ losses, T* __restrict__ difference) {
  double sum = 0;
  for_each<1>(n, false, [&](i64 i, auto) {
    const real d = to_real(prediction[i]) - target[i];
    sum += (double)d * d;
    from_real(d, difference[i]);
  });
  sum = block_sum<THREADS>(sum);
  if (threadIdx.x == 0) losses[blockIdx.x] = sum / n;
}

// ---- all of them ----

// The sum of the parts, in their order. One block.
extern "C" __global__ void add_losses(const double* __restrict__ losses, int parts,
                                      real* __restrict__ loss) {
  double sum = 0;
  for (int i = threadIdx.x; i < parts; i += THREADS) sum += losses[i];
  sum = block_sum<THREADS>(sum);
  if (threadIdx.x == 0) *loss = (real)sum;
}

// x * dloss * factor
extern "C" __global__ void times_dloss(const T* __restrict__ x, const real* __restrict__ dloss,
                                       real factor, T* __restrict__ out, i64 n) {
  const real by = *dloss * factor;
  for_each<Width<T>::value>(n, aligned16(x, out), [&](i64 i, auto count) {
    constexpr int N = decltype(count)::value;
    real v[N];
    load_real(x + i, v);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] *= by;
    store_real(out + i, v);
  });
}
