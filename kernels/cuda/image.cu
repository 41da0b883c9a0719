// From pictures as they come, bytes, to a network's input: cut out, mirrored, normalised.
//
// Floor: memory, and of that mostly the writes: 3 bytes of a pixel are read, 6 or 12 written. To get there:
// 16 bytes a store, neighbouring threads on neighbouring addresses; the bytes are picked one by one,
// from lines that a warp shares.
//
// images: N, H, W, 3 bytes      out: N, crop_h, crop_w, 3
#include "common.cuh"

// (byte * scale - mean) / std = byte * factor + offset.
struct Normalisation {
  real factor[3], offset[3];
};

template <int N>
DEVICE void normalize(const u8* __restrict__ images, int height, int width,
                      const Normalisation& channels, const u8* __restrict__ flip,
                      const int* __restrict__ top, const int* __restrict__ left, int middle_top,
                      int middle_left, T* __restrict__ out, i64 rows, int crop_h, int crop_w) {
  const int length = 3 * crop_w;
  for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows;
       row += (i64)gridDim.x * blockDim.y) {
    const i64 n = row / crop_h;
    const int h = (int)(row % crop_h) + (top ? top[n] : middle_top);
    const int start = left ? left[n] : middle_left;
    const bool mirrored = flip && flip[n];
    const u8* __restrict__ line = images + ((n * height + h) * width + start) * 3;
    for (int e = threadIdx.x * N; e < length; e += blockDim.x * N) {
      real v[N];
#pragma unroll
      for (int k = 0; k < N; k++) {
        const int w = (e + k) / 3, c = (e + k) % 3;
        const real byte = line[3 * (mirrored ? crop_w - 1 - w : w) + c];
        // Not channels.factor[c]: an array with a running index would leave the registers.
        v[k] = c == 0   ? byte * channels.factor[0] + channels.offset[0]
               : c == 1 ? byte * channels.factor[1] + channels.offset[1]
                        : byte * channels.factor[2] + channels.offset[2];
      }
      store_real(out + row * length + e, v);
    }
  }
}

// flip, top, left: one for each picture, or null: not mirrored, cut out of the middle.
extern "C" __global__ void normalize_images(const u8* __restrict__ images, int height, int width,
                                            real factor0, real factor1, real factor2, real offset0,
                                            real offset1, real offset2, const u8* __restrict__ flip,
                                            const int* __restrict__ top, const int* __restrict__ left,
                                            int middle_top, int middle_left, T* __restrict__ out,
                                            i64 rows, int crop_h, int crop_w) {
  const Normalisation channels = {{factor0, factor1, factor2}, {offset0, offset1, offset2}};
  constexpr int N = Width<T>::value;
  if (3 * crop_w % N == 0 && aligned16(out))
    normalize<N>(images, height, width, channels, flip, top, left, middle_top, middle_left, out, rows,
                 crop_h, crop_w);
  else
    normalize<1>(images, height, width, channels, flip, top, left, middle_top, middle_left, out, rows,
                 crop_h, crop_w);
}
