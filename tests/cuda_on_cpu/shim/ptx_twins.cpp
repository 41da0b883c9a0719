// Twins of the PTX instructions that ptx.cuh wraps. Which lane holds which element follows the PTX ISA's
// tables for the fragments of mma.m16n8k8 (tf32), mma.m16n8k16 (bf16) and ldmatrix.
#include "runtime.h"

namespace cushim {

static const unsigned FULL = 0xffffffffu;

unsigned tf32_rna(float x) {
  unsigned b = bits<unsigned>(x);
  bool finite = (b & 0x7f800000) != 0x7f800000;
  return finite ? (b + 0x1000) & ~0x1fffu : b;
}

unsigned short bf16_rn(float x) {
  unsigned b = bits<unsigned>(x);
  if ((b & 0x7fffffff) > 0x7f800000) return 0x7fff;  // NaN
  return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}

// ------------------------------------------------------------------------------------------- mma

struct Fragments {
  float* d;
  const unsigned *a, *b;
};

// d (16 x 8) += a (16 x K) b (K x 8), the sum in double: the hardware's order is not documented.
template <int K>
static void multiply(WarpOperation& op, const float (&a)[16][K], const float (&b)[K][8]) {
  for (int lane = 0; lane < 32; lane++) {
    float* d = static_cast<Fragments*>(op.arguments[lane])->d;
    for (int e = 0; e < 4; e++) {
      int row = lane / 4 + 8 * (e / 2), column = lane % 4 * 2 + e % 2;
      double sum = d[e];
      for (int k = 0; k < K; k++) sum += (double)a[row][k] * b[k][column];
      d[e] = (float)sum;
    }
  }
}

static float as_tf32(unsigned word) { return bits<float>(word & ~0x1fffu); }  // the low bits are ignored

void mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b, Site site) {
  Fragments fragments{d, a, b};
  auto work = [](WarpOperation& op) {
    float full_a[16][8], full_b[8][8];
    for (int lane = 0; lane < 32; lane++) {
      auto& f = *static_cast<Fragments*>(op.arguments[lane]);
      int group = lane / 4, in_group = lane % 4;
      for (int i = 0; i < 4; i++) full_a[group + 8 * (i % 2)][in_group + 4 * (i / 2)] = as_tf32(f.a[i]);
      for (int i = 0; i < 2; i++) full_b[in_group + 4 * i][group] = as_tf32(f.b[i]);
    }
    multiply(op, full_a, full_b);
  };
  warp_operation("mma.m16n8k8.tf32", FULL, &fragments, work, site);
}

static float bf16_half(unsigned word, int half) {
  return bits<float>(half ? word & 0xffff0000u : word << 16);
}

void mma_m16n8k16_bf16(float* d, const unsigned* a, const unsigned* b, Site site) {
  Fragments fragments{d, a, b};
  auto work = [](WarpOperation& op) {
    float full_a[16][16], full_b[16][8];
    for (int lane = 0; lane < 32; lane++) {
      auto& f = *static_cast<Fragments*>(op.arguments[lane]);
      int group = lane / 4, pair = lane % 4 * 2;
      for (int half = 0; half < 2; half++) {
        for (int i = 0; i < 4; i++)
          full_a[group + 8 * (i % 2)][pair + 8 * (i / 2) + half] = bf16_half(f.a[i], half);
        for (int i = 0; i < 2; i++) full_b[pair + 8 * i + half][group] = bf16_half(f.b[i], half);
      }
    }
    multiply(op, full_a, full_b);
  };
  warp_operation("mma.m16n8k16.bf16", FULL, &fragments, work, site);
}

// -------------------------------------------------------------------------------------- ldmatrix

struct LoadMatrix {
  unsigned* registers;
  const void* row;
  int matrices;
  bool transposed;
  void* pc;
};

// Lanes 8m to 8m + 7 point to the eight rows of matrix m, each of eight 16-bit elements; lane l gets
// elements 2 (l % 4) and the next of row l / 4, or of the transposed matrix.
static void load_matrices(WarpOperation& op) {
  auto lane_argument = [&op](int lane) { return static_cast<LoadMatrix*>(op.arguments[lane]); };
  int matrices = lane_argument(0)->matrices;
  for (int lane = 0; lane < 8 * matrices; lane++) {
    LoadMatrix* mine = lane_argument(lane);
    Thread& thread = threads[op.first_thread + lane];
    if ((uintptr_t)mine->row & 15) {
      current = &thread;
      fail("MISALIGNED: ldmatrix at %s:%d, the row's address is not a multiple of 16",
           base_name(op.site.file), op.site.line);
    }
    access(mine->row, 16, READ, mine->pc, thread);
  }
  for (int lane = 0; lane < 32; lane++)
    for (int m = 0; m < matrices; m++) {
      auto element = [&](int row, int column) {
        return static_cast<const unsigned short*>(lane_argument(8 * m + row)->row)[column];
      };
      unsigned pair[2];
      for (int h = 0; h < 2; h++) {
        int outer = lane / 4, inner = lane % 4 * 2 + h;
        pair[h] = lane_argument(lane)->transposed ? element(inner, outer) : element(outer, inner);
      }
      lane_argument(lane)->registers[m] = pair[0] | pair[1] << 16;
    }
}

__attribute__((noinline)) void ldmatrix(unsigned* registers, int matrices, bool transposed,
                                        const void* row, Site site) {
  LoadMatrix argument{registers, row, matrices, transposed, CUSHIM_PC};
  warp_operation("ldmatrix", FULL, &argument, load_matrices, site);
}

// -------------------------------------------------------------------------------------- cp.async

static void finish(Copy& copy, void* pc) {
  if (copy.done) return written_by_generic_proxy(copy.to, copy.bytes);
  copy.done = true;
  access(copy.to, copy.bytes, WRITE, pc, self());
  memcpy(copy.to, copy.from, copy.bytes_read);
  memset((char*)copy.to + copy.bytes_read, 0, copy.bytes - copy.bytes_read);
}

// With async_late the bytes arrive at the wait, and count as never written until then.
__attribute__((noinline)) void cp_async(void* shared, const void* global, int bytes, int bytes_read,
                                        Site site) {
  uintptr_t misaligned = ((uintptr_t)shared | (bytes_read ? (uintptr_t)global : 0)) & (bytes - 1);
  if (misaligned)
    fail("MISALIGNED: cp.async of %d bytes at %s:%d", bytes, base_name(site.file), site.line);
  shared_address(shared);  // fails unless it is shared memory
  Thread& thread = self();
  access(global, bytes_read, READ, CUSHIM_PC, thread);
  access(shared, bytes, WRITE, CUSHIM_PC, thread);
  Copy copy{shared, global, bytes, bytes_read, false};
  if (active->async_late) forget_initialisation(shared, bytes);
  else finish(copy, CUSHIM_PC);
  thread.copies.push_back(copy);
  thread.uncommitted_copies++;
}

void cp_async_commit() {
  Thread& thread = self();
  thread.copy_groups.push_back(thread.uncommitted_copies);
  thread.uncommitted_copies = 0;
}

__attribute__((noinline)) void cp_async_wait(int groups_left) {
  Thread& thread = self();
  int groups = thread.copy_groups.size() - groups_left;
  if (groups <= 0) return;
  auto end = thread.copies.begin();
  for (int i = 0; i < groups; i++) end += thread.copy_groups[i];
  for (auto copy = thread.copies.begin(); copy != end; ++copy) finish(*copy, CUSHIM_PC);
  thread.copies.erase(thread.copies.begin(), end);
  thread.copy_groups.erase(thread.copy_groups.begin(), thread.copy_groups.begin() + groups);
}

}  // namespace cushim
