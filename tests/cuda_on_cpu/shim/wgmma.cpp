// The twin of wgmma.mma_async (sm_90a): a matrix product that a warpgroup asks for and a tensor core
// computes by itself, of operands in shared memory. Written from the PTX ISA, "Asynchronous Warpgroup Level
// Matrix Multiply-Accumulate Instructions".
//
// Until a thread waits, its sums are out of its hands: they are kept here, and the thread's registers hold a
// NaN that no arithmetic leaves as it is. With async_late the product is computed when the first thread
// waits, with what shared memory holds by then; else at once.
#include <deque>
#include <list>

#include "runtime.h"

namespace cushim {

typedef unsigned long long u64;

const unsigned OUT_OF_HANDS = 0x7fa05eed;  // a signalling NaN
const int M = 64, K = 16, WIDEST = 256;

// ------------------------------------------------------------------------------------- operands

// A matrix of `rows` (of M or N) x 16, as a descriptor with 128-byte swizzle has it. Not across: a row's 16
// numbers lie side by side, 8 rows of 128 bytes make an atom, and `stride` leads to the next 8 rows. Across: 64
// rows' numbers of one k lie side by side, 8 k make an atom; `stride` leads to the next 8 k, `leading` to the
// next 64 rows.
struct Operand {
  unsigned start, leading, stride;
  bool across;
  int rows;
};

// The 16 bytes with the numbers (row .., k) to (row .., k + 7), or across (row, k) to (row + 7, k).
static unsigned address_of(const Operand& o, int row, int k) {
  unsigned address = o.across ? o.start + row / 64 * o.leading + k / 8 * o.stride + k % 8 * 128 + row % 64 * 2
                              : o.start + row / 8 * o.stride + row % 8 * 128 + k * 2;
  return address ^ (address >> 7 & 7) << 4;
}

template <class Use>
static void for_each_piece(const Operand& o, Use use) {
  int row_step = o.across ? 8 : 1, k_step = o.across ? 1 : 8;
  for (int row = 0; row < o.rows; row += row_step)
    for (int k = 0; k < K; k += k_step) use(row, k, address_of(o, row, k));
}

u64 wgmma_operand(const void* tile, int leading, int stride, Site site) {
  unsigned start = shared_address(tile);
  if (start % 16)
    fail("MISALIGNED: wgmma_operand at %s:%d, the address is not a multiple of 16", base_name(site.file),
         site.line);
  if (start >= 1 << 18)
    fail("WRONG OPERAND: wgmma_operand at %s:%d, static shared memory; the twin wants it to be dynamic",
         base_name(site.file), site.line);
  for (int offset : {leading, stride})
    if (offset % 16 || offset < 0 || offset >= 1 << 18)
      fail("WRONG OPERAND: wgmma_operand at %s:%d, an offset of %d is no multiple of 16 below 2^18",
           base_name(site.file), site.line, offset);
  return start >> 4 | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}

static Operand decode(u64 descriptor, int rows, bool across, const char* name, Site site) {
  auto field = [descriptor](int bit) { return (unsigned)(descriptor >> bit & 0x3fff) << 4; };
  Operand o{field(0), field(16), field(32), across, rows};
  const u64 fields = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
  const char* problem = nullptr;
  if (descriptor & ~fields) problem = "bits that belong to no field are set";
  else if (descriptor >> 62 != 1) problem = "the swizzle is not that of 128 bytes";
  else if (descriptor >> 49 & 7) problem = "the base offset is not 0";
  else if (o.start & 0x380 || (across && o.start & 0x7f))
    problem = "its atoms do not begin at multiples of 1024, as a base offset of 0 says";
  else if (!across && (o.start & 0x7f) + 2 * K > 128) problem = "16 numbers from there on leave the row";
  else if (o.stride % 1024) problem = "the stride is no multiple of an atom's 1024 bytes";
  else if (across && rows > 64 && o.leading % 1024)
    problem = "the leading offset is no multiple of an atom's 1024 bytes";
  if (problem)
    fail("WRONG OPERAND: wgmma at %s:%d, %s (start 0x%x, leading %u, stride %u): %s", base_name(site.file),
         site.line, name, o.start, o.leading, o.stride, problem);
  return o;
}

static void check_reads(const Operand& o, unsigned reading, const char* name, Site site) {
  for_each_piece(o, [&](int row, int k, unsigned address) {
    char* p = shared_pointer(address);
    if (!p || !shared_pointer(address + 15))
      fail("OUT OF BOUNDS: wgmma at %s:%d, (%d, %d) of %s at shared address 0x%x, where nothing is",
           base_name(site.file), site.line, row, k, name, address);
    if (active->check) async_read(reading, p);
  });
}

// As [k][row].
static void load(const Operand& o, double (*to)[WIDEST]) {
  for_each_piece(o, [&](int row, int k, unsigned address) {
    unsigned short piece[8];
    memcpy(piece, shared_pointer(address), sizeof piece);
    for (int i = 0; i < 8; i++)
      (o.across ? to[k][row + i] : to[k + i][row]) = bits<float>((unsigned)piece[i] << 16);
  });
}

// ------------------------------------------------------------------------------------- products

// What threads' registers hold of 64 x n sums; the same for all products that add to the same registers.
struct Sums {
  int n;
  float* registers[WARPGROUP];
  bool held[WARPGROUP];  // here, not in the thread's registers
  int last;              // the last product that adds to it
  Site site;             // where it was asked for
  float at[M][WIDEST];
};

struct Product {
  Operand a, b;
  Sums* sums;
  unsigned reading;
  int waiting;  // threads that have not waited for it
  bool computed;
};

struct Warpgroup {
  std::deque<Product> products;
  int forgotten;  // products before the first of these
  std::list<Sums> sums;
  Product& product(int number) { return products[number - forgotten]; }
};
static std::vector<Warpgroup> warpgroups;

void begin_products() {
  warpgroups.clear();
  warpgroups.resize(threads.size() / WARPGROUP);
}

void check_no_products() {
  Thread& thread = self();
  if (thread.products > thread.products_waited_for)
    fail("UNFINISHED PRODUCT: the thread returns before its wgmma was waited for");
}

// A thread's four sums for 8 columns each, as in mma.m16n8: warp w has rows 16 w to 16 w + 15.
template <class Use>
static void for_each_sum(Sums& sums, int thread, Use use) {
  int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
  for (int i = 0; i < sums.n / 2; i++)
    use(sums.registers[thread][i], sums.at[row + i % 4 / 2 * 8][i / 4 * 8 + column + i % 2]);
}

// Products of bfloat16 are exact in double, so it makes no difference whether a processor fuses them with sums.
#if defined(__x86_64__)
__attribute__((target_clones("default", "avx2", "avx512f")))
#endif
static void multiply(const double (*a)[WIDEST], const double (*b)[WIDEST], float (*d)[WIDEST], int n) {
  typedef double Eight __attribute__((vector_size(64)));
  typedef float EightFloats __attribute__((vector_size(32)));
  for (int column = 0; column < n; column += 8)
    for (int row = 0; row < M; row += 4) {
      Eight sum[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        EightFloats before;
        memcpy(&before, &d[row + i][column], sizeof before);
        sum[i] = __builtin_convertvector(before, Eight);
      }
      for (int k = 0; k < K; k++) {
        Eight right;
        memcpy(&right, &b[k][column], sizeof right);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sum[i] += right * a[k][row + i];
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        EightFloats after = __builtin_convertvector(sum[i], EightFloats);
        memcpy(&d[row + i][column], &after, sizeof after);
      }
    }
}

static void compute(Product& product) {
  if (product.computed) return;
  product.computed = true;
  static double a[K][WIDEST], b[K][WIDEST];  // too large for the stack of a thread
  load(product.a, a);
  load(product.b, b);
  multiply(a, b, product.sums->at, product.b.rows);
}

static void hand_over(Sums& sums, int first_thread, int i) {
  for_each_sum(sums, i, [&](float& mine, float sum) {
    if (bits<unsigned>(mine) != OUT_OF_HANDS) {
      current = &threads[first_thread + i];
      fail("SUMS IN FLIGHT: changed by the thread before the wgmma at %s:%d was waited for",
           base_name(sums.site.file), sums.site.line);
    }
    mine = sum;
  });
  sums.held[i] = false;
}

static void take(Sums& sums, int i) {
  for_each_sum(sums, i, [](float& mine, float& sum) {
    sum = mine;
    mine = bits<float>(OUT_OF_HANDS);
  });
  sums.held[i] = true;
}

// ------------------------------------------------------------------------------------ instructions

struct Request {
  float* d;
  int n;
  u64 a, b;
  bool a_across, b_across;
  void* pc;
};

static Sums& sums_of(Warpgroup& warpgroup, WarpgroupOperation& op) {
  auto request = [&op](int i) { return static_cast<Request*>(op.arguments[i]); };
  int n = request(0)->n;
  for (Sums& sums : warpgroup.sums) {
    bool same = sums.n == n, overlap = false;
    for (int i = 0; i < WARPGROUP; i++) {
      float *mine = request(i)->d, *others = sums.registers[i];
      same &= mine == others;
      overlap |= sums.held[i] && mine < others + sums.n / 2 && others < mine + n / 2;
    }
    if (same) return sums;
    if (overlap)
      fail("SUMS IN FLIGHT: wgmma at %s:%d adds to registers that one of another shape still adds to",
           base_name(op.site.file), op.site.line);
  }
  Sums& sums = warpgroup.sums.emplace_back();
  sums.n = n;
  for (int i = 0; i < WARPGROUP; i++) sums.registers[i] = request(i)->d;
  return sums;
}

static void check_fence(const Request& request, Thread& thread, Site site) {
  if (thread.touched.empty()) {
    current = &thread;
    fail("NO WGMMA FENCE: wgmma at %s:%d, and no wgmma.fence before", base_name(site.file), site.line);
  }
  int first = ((char*)request.d - thread.stack) / 4;
  for (int word = first; word < first + request.n / 2; word++)
    if (thread.touched[word]) {
      current = &thread;
      fail("NO WGMMA FENCE: wgmma at %s:%d, the thread used its sums after its last wgmma.fence",
           base_name(site.file), site.line);
    }
}

static void start(WarpgroupOperation& op) {
  const Request& first = *static_cast<Request*>(op.arguments[0]);
  for (int i = 0; i < WARPGROUP; i++) {
    const Request& request = *static_cast<Request*>(op.arguments[i]);
    bool same = request.a == first.a && request.b == first.b && request.n == first.n &&
                request.a_across == first.a_across && request.b_across == first.b_across;
    if (!same) {
      current = &threads[op.first_thread + i];
      fail("WARPGROUP DIVERGENCE: wgmma at %s:%d, operands %016llx %016llx, and %016llx %016llx of thread %d",
           base_name(op.site.file), op.site.line, request.a, request.b, first.a, first.b, op.first_thread);
    }
  }
  Warpgroup& warpgroup = warpgroups[op.first_thread / WARPGROUP];
  Sums& sums = sums_of(warpgroup, op);
  for (int i = 0; i < WARPGROUP && active->check; i++)
    if (!sums.held[i])
      check_fence(*static_cast<Request*>(op.arguments[i]), threads[op.first_thread + i], op.site);
  Product product{decode(first.a, M, first.a_across, "a", op.site),
                  decode(first.b, first.n, first.b_across, "b", op.site), &sums, 0, WARPGROUP, false};
  if (active->check) product.reading = begin_async_read(op.first_thread, first.pc);
  check_reads(product.a, product.reading, "a", op.site);
  check_reads(product.b, product.reading, "b", op.site);
  sums.last = threads[op.first_thread].products;
  sums.site = op.site;
  for (int i = 0; i < WARPGROUP; i++) {
    Thread& thread = threads[op.first_thread + i];
    thread.products++;
    if (!sums.held[i]) take(sums, i);
    std::pair<char*, int> where((char*)sums.registers[i], sums.n * 2);
    bool flies = false;
    for (auto& other : thread.flying) flies |= other == where;
    if (!flies) thread.flying.push_back(where);
  }
  warpgroup.products.push_back(product);
  if (active->async_late) return;
  compute(warpgroup.products.back());
  for (int i = 0; i < WARPGROUP; i++) hand_over(sums, op.first_thread, i);
}

__attribute__((noinline)) void wgmma_bf16(float* d, int n, u64 a, u64 b, bool a_across, bool b_across,
                                          Site site) {
  Request request{d, n, a, b, a_across, b_across, CUSHIM_PC};
  warpgroup_operation("wgmma", &request, start, site);
}

static void come_together(const char* name, Site site) {
  warp_operation(name, 0xffffffffu, nullptr, [](WarpOperation&) {}, site);
}

void wgmma_fence(Site site) {
  come_together("wgmma.fence", site);
  if (active->check) self().touched.assign(STACK_SIZE / 4, false);
}

void wgmma_commit(Site site) {
  come_together("wgmma.commit_group", site);
  self().product_groups.push_back(self().products);
}

void wgmma_wait(int groups_left, Site site) {
  come_together("wgmma.wait_group", site);
  Thread& thread = self();
  while ((int)thread.product_groups.size() > groups_left) {
    int member = thread.linear % WARPGROUP, until = thread.product_groups.front();
    thread.product_groups.erase(thread.product_groups.begin());
    for (; thread.products_waited_for < until; thread.products_waited_for++) {
      int number = thread.products_waited_for;
      Warpgroup& warpgroup = warpgroups[thread.linear / WARPGROUP];
      Product& product = warpgroup.product(number);
      compute(product);
      if (active->check) waited_for_async_read(product.reading);
      Sums& sums = *product.sums;
      if (sums.last == number) {
        if (sums.held[member]) hand_over(sums, thread.linear - member, member);
        for (size_t i = thread.flying.size(); i-- > 0;)
          if (thread.flying[i].first == (char*)sums.registers[member])
            thread.flying.erase(thread.flying.begin() + i);
      }
      product.waiting--;
      while (!warpgroup.products.empty() && !warpgroup.products.front().waiting) {
        warpgroup.products.pop_front();
        warpgroup.forgotten++;
      }
    }
  }
}

}  // namespace cushim
