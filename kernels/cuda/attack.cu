// What an attack does with pictures: where it starts, and one step of it.
//
// Floor: memory. A step reads pictures, where the attack is, and the gradient, and writes where it goes; the
// box around each value is worked out again rather than read. Both are small beside the network's passes.
//
// x, images, gradient, out: rows of 3 channels      box, move, darkest, brightest: a number for each channel
#include "common.cuh"
#include "philox.cuh"

// Not an array: with a running index it would leave the registers.
struct Channels {
  real first, second, third;
  DEVICE real at(int c) const { return c == 0 ? first : c == 1 ? second : third; }
};

#define CHANNELS(name) real name##0, real name##1, real name##2
#define AS_CHANNELS(name) const Channels name = {name##0, name##1, name##2}

// What a value of channel c may become.
struct Limits {
  real low, high;
  DEVICE Limits(real image, int c, const Channels& box, const Channels& darkest,
                const Channels& brightest) {
    low = max(image - box.at(c), darkest.at(c));
    high = min(image + box.at(c), brightest.at(c));
  }
};

// A thread takes blocks of four random words, for four elements.
extern "C" __global__ void attack_start(const T* __restrict__ images, T* __restrict__ out, i64 n,
                                        CHANNELS(box), CHANNELS(darkest), CHANNELS(brightest),
                                        u64 seed) {
  AS_CHANNELS(box);
  AS_CHANNELS(darkest);
  AS_CHANNELS(brightest);
  const i64 threads = (i64)gridDim.x * blockDim.x;
  for (i64 b = (i64)blockIdx.x * blockDim.x + threadIdx.x; 4 * b < n; b += threads) {
    u32 words[4];
    philox4x32((u64)b, seed, words);
    const int first = (int)(4 * b % 3);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const i64 i = 4 * b + j;
      if (i >= n) break;
      const Limits limits(to_real(images[i]), (first + j) % 3, box, darkest, brightest);
      const real place = (real)(words[j] >> 8) * (real)(1.0 / (1 << 24));
      from_real(min(limits.low + place * (limits.high - limits.low), limits.high), out[i]);
    }
  }
}

extern "C" __global__ void attack_step(const T* __restrict__ x, const T* __restrict__ gradient,
                                       const T* __restrict__ images, T* __restrict__ out, i64 n,
                                       CHANNELS(move), CHANNELS(box), CHANNELS(darkest),
                                       CHANNELS(brightest)) {
  AS_CHANNELS(move);
  AS_CHANNELS(box);
  AS_CHANNELS(darkest);
  AS_CHANNELS(brightest);
  for_each<Width<T>::value>(n, aligned16(x, gradient, images, out), [&](i64 start, auto count) {
    constexpr int N = decltype(count)::value;
    real v[N], g[N], image[N];
    load_real(x + start, v);
    load_real(gradient + start, g);
    const int first = (int)(start % 3);
    load_real(images + start, image);
#pragma unroll
    for (int k = 0; k < N; k++) {
      const int c = (first + k) % 3;
      const Limits limits(image[k], c, box, darkest, brightest);
      const real by = move.at(c);
      v[k] += g[k] > 0 ? by : g[k] < 0 ? -by : g[k];  // the sign of 0 is 0, that of a NaN a NaN
      v[k] = v[k] < limits.low ? limits.low : v[k];
      v[k] = v[k] > limits.high ? limits.high : v[k];
    }
    store_real(out + start, v);
  });
}
