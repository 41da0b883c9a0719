// The matrix product under convolution and dense layers: sum[m][n] = sum over k of a(m, k) b(n, k).
//
// A block of threads computes BM x BN results, each warp WM x WN of them, BK products of k at a time.
// Where a and b come from is the business of a Source (conv2d.cu, conv2d_weight.cu), which copies slices of
// BM x BK and BN x BK into shared memory; what becomes of the sums is that of `finish` (epilogue.cuh).
//
//     T       operands: float, double or bf16. On tensor cores: bf16, and float with TF32.
//     real    the sums
//
// A slice is 64 bytes deep for every T (BK = 32 bf16, 16 floats, 8 doubles), so BM x BN = 128 x 128 needs
// 16 KB of shared memory and STAGES = 4 slices in flight 64 KB. While one slice is multiplied, the next
// three are on their way (cp.async); one barrier for each slice.
//
// mma.sync runs on sm_80 and everything later. On sm_90a four warps together (WGMMA, a warpgroup) reach more of the
// peak: wgmma takes its operands from shared memory by itself. Its slices are 128 bytes deep, and STAGES = 3. Sums
// lie in the same registers as those of mma.sync if each warp has 16 rows and all columns of the tile.
//
// Registers: a thread holds WM * WN / 32 sums. Up to 64 of them (64 x 32 for a warp) the kernels keep to
// 128 registers, so that 512 threads fit on a multiprocessor; with more, for double, and where single elements are
// copied, to 255 for 256.
//
// What limits it, for tiles of 128 x 128 and warps of 64 x 64, in cycles of a multiprocessor for a slice of bf16:
// 256 mma.sync take 512 on an A100 and some 400 on an H100; fragments and copies pass 48 KB through shared memory,
// 384 (64 KB and 512 with warps of 64 x 32); 4 warps issue 660 to 900 instructions on 4 schedulers, 165 to 225.
#pragma once
#include "common.cuh"
#include "ptx.cuh"

#ifndef TF32
#define TF32 0
#endif

#ifndef WGMMA
#define WGMMA 0
#endif

constexpr bool TENSOR_CORES = sizeof(T) == 2 || TF32;
constexpr int CHUNK = Width<T>::value;  // elements in 16 bytes, the unit of copying
constexpr int CHUNKS = WGMMA ? 8 : 4;   // of k in a slice
constexpr int BK = CHUNKS * CHUNK;
constexpr int WARPGROUP = 4 * WARP;
constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN;
constexpr int THREADS = WARP * WARPS_M * WARPS_N;
constexpr bool WHOLE_CHUNKS = PIECE_A == CHUNK && PIECE_B == CHUNK;
constexpr int MIN_BLOCKS =
    (WM * WN > 64 * 32 || sizeof(T) == 8 || !WHOLE_CHUNKS ? 256 : 512) / THREADS;

static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0, "warps tile the block");
static_assert(BM * CHUNKS % THREADS == 0 && BN * CHUNKS % THREADS == 0, "threads share the copying evenly");
static_assert(!WGMMA || (sizeof(T) == 2 && WM == 16 && WN == BN && BM % 64 == 0), "wgmma's sums");

// ---- how a slice of EXTENT x BK lies in shared memory ----
//
// Rows are arranged so that the 8 chunks (ldmatrix) or 32 words that a warp reads in one go lie in different
// banks, of which there are 32 with 4 bytes each.

// Chunks lie along k: row i (of m or n) has 4 chunks, two rows fill all the banks. Chunks change places
// within their row, so that eight successive rows have chunk c in eight different places. So they have with the 8
// chunks of wgmma, whose hardware prescribes the places.
template <int EXTENT>
struct AlongK {
  static constexpr bool ALONG_K = true;
  static constexpr int BYTES = EXTENT * CHUNKS * 16;
  static DEVICE int at(int i, int chunk) {
    return i * CHUNKS * 16 + ((chunk ^ (CHUNKS == 8 ? i & 7 : (i >> 1) & 3)) << 4);
  }
  static DEVICE int element(int i, int k) {
    return at(i, k / CHUNK) + k % CHUNK * (int)sizeof(T);
  }
};

// Chunks lie across k: row k has EXTENT / CHUNK chunks. bf16 is read by ldmatrix, eight successive rows at
// one chunk: again they change places. float is read word by word, lane / 4 along i and lane % 4 along k:
// there each row starts 8 banks after the one before. wgmma wants panels: rows of 64 elements, all k of them.
template <int EXTENT>
struct AcrossK {
  static constexpr bool ALONG_K = false;
  static constexpr int IN_ROW = EXTENT / CHUNK;  // chunks
  static constexpr int PITCH = WGMMA ? 128 : EXTENT * sizeof(T) + (sizeof(T) == 4 ? 32 : 0);
  static constexpr int PANEL = BK * PITCH;
  static constexpr int BYTES = BK * (EXTENT * sizeof(T) + (sizeof(T) == 4 ? 32 : 0));
  static DEVICE int at(int k, int chunk) {
    if (WGMMA) return chunk / 8 * PANEL + k * PITCH + ((chunk % 8 ^ (k & 7)) << 4);
    const int place = sizeof(T) == 2 ? chunk ^ (k & 7 & (IN_ROW - 1)) : chunk;
    return k * PITCH + (place << 4);
  }
  static DEVICE int element(int i, int k) {
    return at(k, i / CHUNK) + i % CHUNK * (int)sizeof(T);
  }
};

// Copy a chunk into shared memory in pieces of PIECE elements. next(from) tells where the next piece is,
// and false if it is to be zeros. Pieces of 4 bytes or more arrive later, single bf16 numbers at once.
template <int PIECE, class Next>
DEVICE void copy_chunk(u8* to, const T* somewhere, Next next) {
  if constexpr (PIECE * sizeof(T) >= 4) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += PIECE) {
      const T* from = somewhere;
      const bool valid = next(from);
      cp_async<PIECE * sizeof(T)>(to + i * sizeof(T), valid ? from : somewhere, valid);
    }
  } else {
    Vector<T, CHUNK> chunk = {};
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      const T* from = somewhere;
      if (next(from)) chunk.at[i] = *from;
    }
    store<CHUNK>(reinterpret_cast<T*>(to), chunk);
  }
}

// ---- from shared memory to the sums ----

typedef real Sums[WM / 16][WN / 8][4];  // [i][j] as an accumulator of mma.m16n8, see ptx.cuh

// One side of a slice as a warp reads it: fragments of 16 of its EXTENT rows (of m or n), DEEP of k. Where a lane
// reads is found before the first slice; all that is left to add are constants and the slice's place.
template <class Layout, int EXTENT>
struct Fragments {
  static constexpr int DEEP = 2 * CHUNK;  // of k in one instruction of the tensor cores
  // Rows that follow lie at constants apart along k, and so do slices of k across it.
  static constexpr int PLACES = Layout::ALONG_K ? BK / DEEP : sizeof(T) == 2 ? EXTENT / 16 : 1;
  int place[PLACES];

  // matrix_b: whether the fragments are those of b, whose matrices of 8 x 8 come in another order.
  DEVICE Fragments(int first, int lane, bool matrix_b) {
    const int low = lane & 7, third = (lane >> 3) & 1, fourth = lane >> 4;
#pragma unroll
    for (int i = 0; i < PLACES; i++) {
      if constexpr (Layout::ALONG_K)
        place[i] = Layout::at(first + low + (matrix_b ? fourth : third) * 8,
                              2 * i + (matrix_b ? third : fourth));
      else if constexpr (sizeof(T) == 2)
        place[i] = Layout::at(low + (matrix_b ? third : fourth) * 8,
                              first / CHUNK + 2 * i + (matrix_b ? fourth : third));
      else
        place[i] = Layout::element(first + lane / 4, lane % 4);
      keep_in_register(place[i]);
    }
  }

  // Rows 16 i .. 16 i + 15, from k on. Of a: the four registers of m16 x k. Of b: two for rows 16 i .. + 7, two for
  // the other eight.
  DEVICE void load(u32 (&words)[4], const u8* tile, int i, int k, bool matrix_b) const {
    if constexpr (Layout::ALONG_K) {
      ldmatrix_x4(words, tile + place[k / DEEP] + Layout::at(16 * i, 0));
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4_transposed(words, tile + place[i] + Layout::at(k, 0));
    } else {
#pragma unroll
      for (int word = 0; word < 4; word++) {
        const int row = matrix_b ? word / 2 : word % 2, deep = matrix_b ? word % 2 : word / 2;
        words[word] = *reinterpret_cast<const u32*>(
            tile + place[0] + Layout::element(16 * i + 8 * row, k + 4 * deep));
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int word = 0; word < 4; word++) words[word] = to_tf32(__uint_as_float(words[word]));
    }
  }
};

// Three ways to add the products of a slice to the sums of a warp, WM x WN from row m and column n of the block's
// tile on. received() follows the arrival of this thread's copies; begin() starts what runs by itself while the
// next copies are started, end() does the rest.
template <class LayoutA, class LayoutB>
struct ByWarp {
  Fragments<LayoutA, WM> a;
  Fragments<LayoutB, WN> b;
  DEVICE ByWarp(int m, int n, int lane) : a(m, lane, false), b(n, lane, true) {}

  DEVICE void received() const {}

  template <class Real>
  DEVICE void begin(Real (&)[WM / 16][WN / 8][4], const u8*, const u8*) const {}

  template <class Real>
  DEVICE void end(Real (&sum)[WM / 16][WN / 8][4], const u8* a_tile, const u8* b_tile) const {
    constexpr int DEEP = 2 * CHUNK;
#pragma unroll
    for (int k = 0; k < BK; k += DEEP) {
      u32 right[WN / 16][4];
#pragma unroll
      for (int j = 0; j < WN / 16; j++) b.load(right[j], b_tile, j, k, true);
#pragma unroll
      for (int i = 0; i < WM / 16; i++) {
        u32 left[4];
        a.load(left, a_tile, i, k, false);
#pragma unroll
        for (int j = 0; j < WN / 8; j++) {
          const u32 b0 = right[j / 2][j % 2 * 2], b1 = right[j / 2][j % 2 * 2 + 1];
          if constexpr (sizeof(T) == 2)
            mma_m16n8k16_bf16(sum[i][j], left, b0, b1);
          else
            mma_m16n8k8_tf32(sum[i][j], left, b0, b1);
        }
      }
    }
  }
};

template <class LayoutA, class LayoutB>
struct ByWarpgroup {
  int a_place;  // of the warpgroup's 64 rows
  DEVICE ByWarpgroup(int, int, int) {
    const int first = (int)threadIdx.x / WARPGROUP * 64;
    a_place = LayoutA::ALONG_K ? LayoutA::at(first, 0) : LayoutA::at(0, first / CHUNK);
  }

  DEVICE void received() const {
    fence_proxy_async();
  }

  // Eight rows are 1024 bytes. 16 of k are 32 bytes of a row that runs along k, or 16 rows that run across it.
  template <class Layout>
  static DEVICE u64 operand(const u8* tile, int k) {
    if constexpr (Layout::ALONG_K)
      return wgmma_operand(tile + k * (int)sizeof(T), 16, 1024);
    else
      return wgmma_operand(tile + k * Layout::PITCH, Layout::PANEL, 1024);
  }

  template <class Real>
  DEVICE void begin(Real (&sum)[WM / 16][WN / 8][4], const u8* a_tile, const u8* b_tile) const {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BK; k += 16)
      wgmma_m64k16_bf16<BN, !LayoutA::ALONG_K, !LayoutB::ALONG_K>(
          sum[0], operand<LayoutA>(a_tile + a_place, k), operand<LayoutB>(b_tile, k));
    wgmma_commit();
  }

  template <class Real>
  DEVICE void end(Real (&sum)[WM / 16][WN / 8][4], const u8*, const u8*) const {
    wgmma_wait<0>();
    keep_in_register(sum[0]);
  }
};

// The same sums in the same places, one multiplication at a time.
template <class LayoutA, class LayoutB>
struct OneByOne {
  int m, n, lane;
  DEVICE OneByOne(int m_, int n_, int lane_) : m(m_), n(n_), lane(lane_) {}

  DEVICE void received() const {}

  template <class Real>
  DEVICE void begin(Real (&)[WM / 16][WN / 8][4], const u8*, const u8*) const {}

  template <class Real>
  DEVICE void end(Real (&sum)[WM / 16][WN / 8][4], const u8* a_tile, const u8* b_tile) const {
#pragma unroll 4
    for (int k = 0; k < BK; k++) {
      Real a[WM / 8], b[WN / 4];
#pragma unroll
      for (int i = 0; i < WM / 8; i++)
        a[i] = to_real(
            *reinterpret_cast<const T*>(a_tile + LayoutA::element(m + 8 * i + lane / 4, k)));
#pragma unroll
      for (int j = 0; j < WN / 4; j++)
        b[j] = to_real(*reinterpret_cast<const T*>(
            b_tile + LayoutB::element(n + j / 2 * 8 + lane % 4 * 2 + j % 2, k)));
#pragma unroll
      for (int i = 0; i < WM / 8; i++)
#pragma unroll
        for (int j = 0; j < WN / 4; j++)
          sum[i / 2][j / 2][i % 2 * 2 + j % 2] += a[i] * b[j];
    }
  }
};

#if WGMMA
template <class LayoutA, class LayoutB>
using Multiplier = ByWarpgroup<LayoutA, LayoutB>;
#else
template <bool, class LayoutA, class LayoutB>
struct Chosen {
  typedef OneByOne<LayoutA, LayoutB> type;
};
template <class LayoutA, class LayoutB>
struct Chosen<true, LayoutA, LayoutB> {
  typedef ByWarp<LayoutA, LayoutB> type;
};
template <class LayoutA, class LayoutB>
using Multiplier = typename Chosen<TENSOR_CORES, LayoutA, LayoutB>::type;
#endif

// Multiply `slices` slices. source.load(a_tile, b_tile) starts copying the next slice.
//
// A thread waits for its own copies; the barrier makes everyone's visible and says as well that everyone is
// done with the slice before, whose place the copies started right after it will take.
template <class LayoutA, class LayoutB, class Source>
DEVICE void matmul(Sums& sum, Source& source, int slices, u8* shared) {
  constexpr int A_BYTES = LayoutA::BYTES, STAGE_BYTES = A_BYTES + LayoutB::BYTES;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const Multiplier<LayoutA, LayoutB> multiplier(warp / WARPS_N * WM, warp % WARPS_N * WN, lane);
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < slices) source.load(shared + i * STAGE_BYTES, shared + i * STAGE_BYTES + A_BYTES);
    cp_async_commit();  // an empty group as well: they are counted
  }
  int place = 0, before = (STAGES - 1) * STAGE_BYTES;  // of this slice, and of the one before
  for (int i = 0; i < slices; i++) {
    cp_async_wait<STAGES - 2>();
    multiplier.received();
    __syncthreads();
    multiplier.begin(sum, shared + place, shared + place + A_BYTES);
    if (i + STAGES - 1 < slices) source.load(shared + before, shared + before + A_BYTES);
    cp_async_commit();
    multiplier.end(sum, shared + place, shared + place + A_BYTES);
    before = place;
    place = place + STAGE_BYTES < STAGES * STAGE_BYTES ? place + STAGE_BYTES : 0;
  }
  cp_async_wait<0>();
  __syncthreads();  // shared memory is free for other uses
}

// ---- which part of the work is whose ----

// The part of `slices` that split number `split` of `splits` multiplies.
struct Part {
  int first, count;
  DEVICE Part(int slices, int split, int splits) {
    const int each = (slices + splits - 1) / splits;
    first = min(each * split, slices);
    count = min(each, slices - first);
  }
};

// A number written in digits of three sizes, such as tap row, tap column and channel. The first digit has no end.
struct Odometer {
  int high, middle, low;
  DEVICE Odometer(int value, int middle_size, int low_size) {
    high = value / (middle_size * low_size);
    const int rest = value - high * middle_size * low_size;
    middle = rest / low_size;
    low = rest - middle * low_size;
  }
};
