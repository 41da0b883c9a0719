// Watches every memory access of a kernel. g++ -fsanitize=thread puts a call before each load and store;
// usually the thread sanitizer's library answers these calls, here this file does, and likewise for the
// checks of -fsanitize=bounds, alignment and so on. (Neither sanitizer's library is linked.)
//
// A race is two accesses to a byte by different threads, one of them a write and not both atomic, with
// nothing between them that orders them. What orders:
//   __syncthreads       all that a block did before comes before all that it does after: a count of
//                       the barriers passed (`epoch`) says which
//   __syncwarp          joins the vector clocks of the warp's threads
//   wgmma.wait_group    by all 128 threads, then __syncthreads: what a tensor core read comes before
//   __threadfence, then an atomic; in another block an atomic on the same address: what the first had
//                       done or seen at its fence comes before what the second does
// A tensor core reads shared memory through the async proxy: what is there must come before for all threads of
// the warpgroup, and so must a fence.proxy.async that its writer passed since.
// Shuffles, votes and the order in which this runtime happens to run threads order nothing.
#include <algorithm>
#include <deque>
#include <stdlib.h>

#include "runtime.h"

// This module's own image, with its constant tables.
extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

namespace cushim {

namespace {

struct Cell {  // one past access to a group of four bytes
  unsigned block;
  unsigned short epoch, clock, thread;
  unsigned char bytes;  // which of the four; 0: the cell is empty
  unsigned char kind;
  unsigned code;  // where in this module
  void* pc() const { return __ehdr_start + code; }
};
const int CELLS = 4;  // kept for each group: a line of the cache
static_assert(sizeof(Cell) * CELLS == 64);
const unsigned MOST_COUNTED = 0xffff;  // barriers of a block, and fences and __syncwarps of a thread

struct AsyncRead {  // of all that one wgmma reads
  int first_thread, waiting;  // threads that have not waited for it
  unsigned epoch;             // of the last that has
  void* pc;
};
const int MOST_WARPGROUPS = 1024 / WARPGROUP;

struct Region {  // memory that may be touched
  char* base;
  size_t size;
  const char* name;
  bool read_only, shared;
  Cell* cells;
  void* memory_of_cells;
  // Shared memory only, for four bytes each: the block that last wrote there, and in the low bits, which bytes.
  unsigned* written_in;
  unsigned* written_by;  // shared memory only, for two bytes each: the thread, and its proxy fences then
  unsigned (*read_for)[MOST_WARPGROUPS];  // for 16 bytes each, by warpgroup: the last AsyncRead, from 1 on
  bool holds(const char* p) const { return p >= base && p < base + size; }
};

std::vector<Region> regions;
Region* last_region;  // of the last access, which is often that of the next
std::deque<Release> releases;
std::vector<const Release*> acquired_by_block;
std::vector<AsyncRead> async_reads;  // of this launch
size_t async_reads_before;           // of earlier blocks
std::vector<std::pair<void*, void*>> reported;  // pairs of code addresses
unsigned block, epoch;

const size_t MOST_REPORTS = 8;

const char* verb(int kind) { return kind & ATOMIC ? "atomic" : kind & WRITE ? "write" : "read"; }

// Code addresses are written as pc=0x...; host_module.py turns them into file and line.
void note(const char* what, const Region& region, const char* p, size_t bytes, int kind, void* pc,
          const Thread& thread, const Cell* other) {
  std::pair<void*, void*> places(pc, other ? other->pc() : nullptr);
  if (std::find(reported.begin(), reported.end(), places) != reported.end()) return;
  reported.push_back(places);
  if (reported.size() > MOST_REPORTS) return;
  char text[512];
  int n = snprintf(text, sizeof text, "%s: %s of %zu bytes at %s+%td by thread %d at pc=%p", what,
                   verb(kind), bytes, region.name, p - region.base, thread.linear, pc);
  if (other)
    snprintf(text + n, sizeof text - n, ", and %s by thread %d%s at pc=%p", verb(other->kind),
             other->thread, other->block == block ? "" : " of another block", other->pc());
  report(text);
}

bool covers(const Release& release, const Cell& cell) {
  return release.block == cell.block &&
         (cell.epoch < release.epoch || cell.clock <= release.clock.of(cell.thread));
}

bool comes_before(const Cell& cell, const Thread& thread) {
  if (cell.block == block) return cell.epoch < epoch || cell.clock <= thread.clock.of(cell.thread);
  for (const Release* release : acquired_by_block)
    if (covers(*release, cell)) return true;
  for (const Release* release : thread.acquired)
    if (covers(*release, cell)) return true;
  return false;
}

// Which bytes of a group of four lie from first to end, as bits.
unsigned touched_bytes(size_t group, size_t first, size_t end) {
  unsigned bits = 15;
  if (group * 4 < first) bits &= 15 << (first - group * 4);
  if (end < group * 4 + 4) bits &= 15 >> (group * 4 + 4 - end);
  return bits;
}

void check_races(Region& region, char* p, size_t bytes, int kind, void* pc, Thread& thread) {
  size_t first = p - region.base, end = first + bytes;
  Cell now{block, (unsigned short)epoch, (unsigned short)thread.clock.own(thread.linear),
           (unsigned short)thread.linear, 0, (unsigned char)kind, unsigned((char*)pc - __ehdr_start)};
  for (size_t group = first / 4; group * 4 < end; group++) {
    unsigned char touched = now.bytes = touched_bytes(group, first, end);
    Cell* cells = region.cells + group * CELLS;
    Cell* free_cell = nullptr;
    for (Cell* cell = cells; cell < cells + CELLS; cell++) {
      // Shared memory is a block's own, and what it did there before a barrier is done.
      bool over = region.shared && (cell->block != block || cell->epoch < epoch);
      if (!cell->bytes || over) {
        free_cell = cell;
        continue;
      }
      bool mine = cell->block == block && cell->thread == thread.linear;
      bool conflict = cell->bytes & touched && !mine && (kind | cell->kind) & WRITE &&
                      !(kind & cell->kind & ATOMIC);
      if (conflict && !comes_before(*cell, thread))
        note("DATA RACE", region, p, bytes, kind, pc, thread, cell);
      // This access stands for an older one of its own, and a write for all that it covers.
      bool replaces = (mine && cell->kind == kind && cell->bytes == touched) ||
                      (kind & WRITE && !(cell->bytes & ~touched));
      if (replaces) {
        cell->bytes = 0;
        free_cell = cell;
      }
    }
    if (!free_cell) free_cell = cells + random_number() % CELLS;
    *free_cell = now;
  }
}

void check_initialised(Region& region, char* p, size_t bytes, int kind, void* pc, Thread& thread) {
  size_t first = p - region.base, end = first + bytes;
  for (size_t group = first / 4; group * 4 < end; group++) {
    unsigned touched = touched_bytes(group, first, end);
    unsigned& written = region.written_in[group];
    unsigned there = written >> 4 == block ? written & 15 : 0;
    if (kind & READ && touched & ~there) {
      note("UNINITIALISED SHARED READ", region, p, bytes, kind, pc, thread, nullptr);
      return;
    }
    if (kind & WRITE) written = block << 4 | there | touched;
  }
}

// Whether a tensor core may be reading what is now written.
void check_async_reads(Region& region, char* p, size_t bytes, int kind, void* pc, Thread& thread) {
  if (async_reads.size() == async_reads_before) return;
  size_t first = p - region.base, end = first + bytes;
  for (size_t piece = first / 16; piece * 16 < end; piece++)
    for (unsigned number : region.read_for[piece]) {
      if (number <= async_reads_before) continue;
      const AsyncRead& read = async_reads[number - 1];
      if (!read.waiting && read.epoch < epoch) continue;
      Cell cell{block, (unsigned short)epoch, 0, (unsigned short)read.first_thread, 15, READ,
                unsigned((char*)read.pc - __ehdr_start)};
      note("DATA RACE", region, p, bytes, kind, pc, thread, &cell);
    }
}

Region* region_of(const char* p) {
  if (last_region && last_region->holds(p)) return last_region;
  for (Region& region : regions)
    if (region.holds(p)) return last_region = &region;
  return nullptr;
}

// Not in a region: allowed are the module's constants, the launch's arguments, threadIdx and the
// thread's stack.
void check_elsewhere(const char* p, size_t bytes, int kind, void* pc, Thread& thread) {
  auto within = [p](const char* base, size_t size) { return p >= base && p < base + size; };
  if (within(thread.stack, STACK_SIZE) || within(active->parameters, active->parameters_size)) return;
  if (within(__ehdr_start, _end - __ehdr_start)) return;
  if (within((char*)threads.data(), threads.size() * sizeof(Thread))) return;
  current = &thread;
  if (within(threads[0].stack, threads.size() * STACK_SIZE))
    fail("ANOTHER THREAD'S LOCAL MEMORY: %s of %zu bytes at pc=%p", verb(kind), bytes, pc);
  if (p < (char*)4096) fail("NULL POINTER: %s of %zu bytes at pc=%p", verb(kind), bytes, pc);
  const Region* nearest = nullptr;
  auto distance = [p](const Region& r) { return p < r.base ? r.base - p : p - (r.base + r.size); };
  for (const Region& region : regions)
    if (!nearest || distance(region) < distance(*nearest)) nearest = &region;
  if (!nearest) fail("OUT OF BOUNDS: %s of %zu bytes at pc=%p", verb(kind), bytes, pc);
  fail("OUT OF BOUNDS: %s of %zu bytes at %s%+td, which has %zu bytes, at pc=%p", verb(kind), bytes,
       nearest->name, p - nearest->base, nearest->size, pc);
}

const int FENCE_BITS = 22;  // of written_by; the rest is the thread's number

void note_writer(Region& region, const char* p, size_t bytes, const Thread& thread) {
  size_t first = p - region.base;
  unsigned by = (unsigned)thread.linear << FENCE_BITS | thread.proxy_fences.size();
  for (size_t i = first / 2; i * 2 < first + bytes; i++) region.written_by[i] = by;
}

bool comes_before_all(unsigned clock, unsigned its_epoch, int thread, int first_thread) {
  if (its_epoch < epoch) return true;
  for (int i = 0; i < WARPGROUP; i++)
    if (threads[first_thread + i].clock.of(thread) < clock) return false;
  return true;
}

}  // namespace

void access(const void* address, size_t bytes, int kind, void* pc, Thread& thread) {
  if (!active || !active->check || !bytes) return;
  char* p = (char*)address;
  Region* region = region_of(p);
  if (!region) return check_elsewhere(p, bytes, kind, pc, thread);
  ptrdiff_t offset = p - region->base;
  if (offset + bytes > region->size) {
    current = &thread;
    fail("OUT OF BOUNDS: %s of %zu bytes at %s%+td, which has %zu bytes, at pc=%p", verb(kind), bytes,
         region->name, offset, region->size, pc);
  }
  bool vector = bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16;
  if (vector && (uintptr_t)p & (bytes - 1)) {
    current = &thread;
    fail("MISALIGNED: %s of %zu bytes at %s%+td at pc=%p", verb(kind), bytes, region->name, offset, pc);
  }
  if (region->read_only && kind & WRITE) {
    current = &thread;
    fail("WRITE TO CONST: %s+%td at pc=%p", region->name, offset, pc);
  }
  if (region->shared) check_initialised(*region, p, bytes, kind, pc, thread);
  if (region->shared && kind & WRITE) {
    check_async_reads(*region, p, bytes, kind, pc, thread);
    note_writer(*region, p, bytes, thread);
  }
  check_races(*region, p, bytes, kind, pc, thread);
}

void forget_initialisation(const void* shared, size_t bytes) {
  if (!active->check) return;
  Region* region = region_of((const char*)shared);
  if (!region || !region->shared) return;
  size_t first = (const char*)shared - region->base, end = first + bytes;
  for (size_t group = first / 4; group * 4 < end; group++)
    region->written_in[group] &= ~touched_bytes(group, first, end);
}

// ------------------------------------------------------------------------ reads by a tensor core

void written_by_generic_proxy(const void* shared, size_t bytes) {
  if (!active->check) return;
  Region* region = region_of((const char*)shared);
  if (region && region->shared) note_writer(*region, (const char*)shared, bytes, self());
}

void fence_proxy_async() {
  if (!active->check) return;
  Thread& thread = self();
  thread.proxy_fences.push_back({thread.clock.own(thread.linear), epoch});
}

unsigned begin_async_read(int first_thread, void* pc) {
  async_reads.push_back({first_thread, WARPGROUP, epoch, pc});
  return async_reads.size();
}

void waited_for_async_read(unsigned reading) {
  AsyncRead& read = async_reads[reading - 1];
  read.waiting--;
  read.epoch = epoch;
}

// p is a multiple of 16, and 16 bytes are read.
void async_read(unsigned reading, char* p) {
  const AsyncRead& read = async_reads[reading - 1];
  Thread& thread = threads[read.first_thread];
  Region& region = *region_of(p);
  size_t offset = p - region.base;
  check_initialised(region, p, 16, READ, read.pc, thread);
  region.read_for[offset / 16][read.first_thread / WARPGROUP] = reading;
  Cell* cells = region.cells + offset / 4 * CELLS;
  for (Cell* cell = cells; cell < cells + 4 * CELLS; cell++) {
    if (cell->block != block || !cell->bytes || !(cell->kind & WRITE)) continue;
    if (!comes_before_all(cell->clock, cell->epoch, cell->thread, read.first_thread))
      note("DATA RACE", region, p, 16, READ, read.pc, thread, cell);
  }
  unsigned checked = ~0u;
  for (unsigned* by = region.written_by + offset / 2; by < region.written_by + offset / 2 + 8; by++) {
    if (*by == checked) continue;
    checked = *by;
    int writer = *by >> FENCE_BITS;
    size_t fences = *by & ((1 << FENCE_BITS) - 1);
    const auto& passed = threads[writer].proxy_fences;
    if (fences < passed.size() &&
        comes_before_all(passed[fences].clock, passed[fences].epoch, writer, read.first_thread))
      continue;
    const Cell* write = nullptr;
    for (Cell* cell = cells; cell < cells + 4 * CELLS; cell++)
      if (cell->block == block && cell->bytes && cell->kind & WRITE && cell->thread == writer) write = cell;
    note("NO PROXY FENCE", region, p, 16, READ, read.pc, thread, write);
  }
}

// -------------------------------------------------------------------------------------- ordering

void order_block() {
  if (!active->check) return;
  if (epoch++ == MOST_COUNTED) fail("the checker counts %u barriers of a block", MOST_COUNTED);
  for (Thread& thread : threads) {
    acquired_by_block.insert(acquired_by_block.end(), thread.acquired.begin(), thread.acquired.end());
    thread.acquired.clear();
  }
}

static void tick(Thread& thread) {
  if (thread.clock.own(thread.linear)++ == MOST_COUNTED)
    fail("the checker counts %u fences and __syncwarps of a thread", MOST_COUNTED);
}

void order_warp(unsigned mask, int first_thread) {
  if (!active->check) return;
  Clock joined{first_thread / 32, {}};
  std::vector<const Release*> acquired;
  auto each = [&](auto use) {
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) use(threads[first_thread + i]);
  };
  each([&](Thread& thread) {
    for (int k = 0; k < 32; k++) joined.lanes[k] = std::max(joined.lanes[k], thread.clock.lanes[k]);
    acquired.insert(acquired.end(), thread.acquired.begin(), thread.acquired.end());
  });
  each([&](Thread& thread) {
    thread.clock = joined;
    tick(thread);
    thread.acquired = acquired;
  });
}

void fence() {
  if (!active->check) return;
  Thread& thread = self();
  releases.push_back({nullptr, block, epoch, thread.clock, thread.acquired});
  auto& acquired = releases.back().acquired;
  acquired.insert(acquired.end(), acquired_by_block.begin(), acquired_by_block.end());
  thread.fenced = &releases.back();
  tick(thread);  // what comes now is not covered
}

__attribute__((noinline)) void atomic_load(const void* p, void* value, int bytes) {
  memcpy(value, p, bytes);
}

__attribute__((noinline)) void atomic_store(void* p, const void* value, int bytes) {
  Thread& thread = self();
  access(p, bytes, READ | WRITE | ATOMIC, CUSHIM_PC, thread);
  memcpy(p, value, bytes);
  if (!active->check) return;
  std::vector<const Release*> found;
  for (const Release& release : releases)
    if (release.address == p) {
      found.push_back(&release);
      found.insert(found.end(), release.acquired.begin(), release.acquired.end());
    }
  thread.acquired.insert(thread.acquired.end(), found.begin(), found.end());
  if (thread.fenced) {
    releases.push_back(*thread.fenced);
    releases.back().address = p;
  }
}

// ------------------------------------------------------------------------------- a launch's course

static void add_region(char* base, size_t size, const char* name, bool read_only, bool shared) {
  if (!size) return;
  // Zeroed memory from calloc costs nothing until it is touched.
  const size_t line = sizeof(Cell) * CELLS, groups = size / 4 + 2;
  void* memory = calloc(groups + 1, line);
  Cell* cells = (Cell*)(((uintptr_t)memory + line - 1) / line * line);
  unsigned* written = shared ? (unsigned*)calloc(groups, sizeof(unsigned)) : nullptr;
  if (!memory || (shared && !written)) abort();
  auto by = shared ? (unsigned*)calloc(size / 2 + 1, sizeof(unsigned)) : nullptr;
  size_t row = sizeof(unsigned[MOST_WARPGROUPS]);
  auto read_for = shared ? (unsigned(*)[MOST_WARPGROUPS])calloc(size / 16 + 1, row) : nullptr;
  if (shared && (!by || !read_for)) abort();
  regions.push_back({base, size, name, read_only, shared, cells, memory, written, by, read_for});
}

void checker_begin() {
  reported.clear();
  last_region = nullptr;
  add_region(static_shared, static_shared_size, "shared memory", false, true);
  add_region(dynamic_shared_base, active->shared_size, "dynamic shared memory", false, true);
  for (int i = 0; i < active->buffer_count; i++) {
    const Buffer& buffer = active->buffers[i];
    add_region(buffer.base, buffer.size, buffer.name, buffer.read_only, false);
  }
}

void checker_begin_block(unsigned number) {
  block = number;
  epoch = 1;
  acquired_by_block.clear();
  async_reads_before = async_reads.size();
  for (Thread& thread : threads) {
    thread.clock = Clock{thread.linear / 32, {}};
    thread.clock.own(thread.linear) = 1;
    thread.acquired.clear();
    thread.fenced = nullptr;
  }
}

void checker_end() {
  for (Region& region : regions) {
    free(region.memory_of_cells);
    free(region.written_in);
    free(region.written_by);
    free(region.read_for);
  }
  regions.clear();
  async_reads.clear();
  releases.clear();
}

}  // namespace cushim

// ------------------------------------------------------- calls put in by -fsanitize=thread

using namespace cushim;

// A thread that uses wgmma touches its local variables, which may be what a product adds to.
static void touch_registers(char* p, size_t bytes, int kind, void* pc, Thread& thread) {
  for (auto& [sums, size] : thread.flying)
    if (p < sums + size && p + bytes > sums)
      fail("SUMS IN FLIGHT: %s of %zu bytes at pc=%p, before the wgmma that adds to them was waited for",
           verb(kind), bytes, pc);
  for (size_t word = (p - thread.stack) / 4; word * 4 < (p - thread.stack) + bytes; word++)
    thread.touched[word] = true;
}

static inline void hook(void* address, size_t bytes, int kind, void* pc) {
  if (!active || !active->check) return;
  Thread& thread = self();
  char* p = (char*)address;
  if (p >= thread.stack && p < thread.stack + STACK_SIZE) {
    if (!thread.touched.empty()) touch_registers(p, bytes, kind, pc, thread);
    return;
  }
  access(address, bytes, kind, pc, thread);
}

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
#define HOOKS(prefix, bytes)                                                               \
  void __tsan_##prefix##read##bytes(void* p) { hook(p, bytes, READ, CUSHIM_PC); }          \
  void __tsan_##prefix##write##bytes(void* p) { hook(p, bytes, WRITE, CUSHIM_PC); }
HOOKS(, 1) HOOKS(, 2) HOOKS(, 4) HOOKS(, 8) HOOKS(, 16)
HOOKS(volatile_, 1) HOOKS(volatile_, 2) HOOKS(volatile_, 4) HOOKS(volatile_, 8) HOOKS(volatile_, 16)
HOOKS(unaligned_, 2) HOOKS(unaligned_, 4) HOOKS(unaligned_, 8) HOOKS(unaligned_, 16)
void __tsan_read_range(void* p, size_t bytes) { hook(p, bytes, READ, CUSHIM_PC); }
void __tsan_write_range(void* p, size_t bytes) { hook(p, bytes, WRITE, CUSHIM_PC); }
}

// --------------------------------- calls put in by -fsanitize=bounds,alignment,shift and the like

struct UbsanSite {  // what g++ passes first
  const char* file;
  unsigned line, column;
};

static void undefined(const char* what, void* data) {
  auto* site = static_cast<UbsanSite*>(data);
  if (active) fail("UNDEFINED BEHAVIOUR: %s at %s:%u", what, base_name(site->file), site->line);
}

extern "C" {
void __ubsan_handle_type_mismatch_v1(void* data, void* pointer) {
  undefined(pointer ? "misaligned access" : "null pointer", data);
}
#define UBSAN(name, what) \
  void __ubsan_handle_##name(void* data, void*, void*) { undefined(what, data); }
UBSAN(out_of_bounds, "index out of bounds")
UBSAN(add_overflow, "signed overflow (+)")
UBSAN(sub_overflow, "signed overflow (-)")
UBSAN(mul_overflow, "signed overflow (*)")
UBSAN(negate_overflow, "signed overflow (-)")
UBSAN(shift_out_of_bounds, "shift out of range")
UBSAN(divrem_overflow, "division by zero or overflow")
}
