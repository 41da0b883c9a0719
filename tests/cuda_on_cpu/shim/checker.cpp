// Watches every memory access of a kernel. g++ -fsanitize=thread puts a call before each load and store;
// usually the thread sanitizer's library answers these calls, here this file does, and likewise for the
// checks of -fsanitize=bounds, alignment and so on. (Neither sanitizer's library is linked.)
//
// A race is two accesses to a byte by different threads, one of them a write and not both atomic, with
// nothing between them that orders them. What orders:
//   __syncthreads       all that a block did before comes before all that it does after: a count of
//                       the barriers passed (`epoch`) says which
//   __syncwarp          joins the vector clocks of the warp's threads
//   __threadfence, then an atomic; in another block an atomic on the same address: what the first had
//                       done or seen at its fence comes before what the second does
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
  unsigned clock, epoch, block;
  unsigned short thread;
  unsigned char bytes;  // which of the four; 0: the cell is empty
  unsigned char kind;
  void* pc;
};
const int CELLS = 4;  // kept for each group

struct Region {  // memory that may be touched
  char* base;
  size_t size;
  const char* name;
  bool read_only, shared;
  Cell* cells;
  unsigned* written_in;  // shared memory only: the block that last wrote each byte
  bool holds(const char* p) const { return p >= base && p < base + size; }
};

std::vector<Region> regions;
std::deque<Release> releases;
std::vector<const Release*> acquired_by_block;
std::vector<std::pair<void*, void*>> reported;  // pairs of code addresses
unsigned block, epoch;

const size_t MOST_REPORTS = 8;

const char* verb(int kind) { return kind & ATOMIC ? "atomic" : kind & WRITE ? "write" : "read"; }

// Code addresses are written as pc=0x...; host_module.py turns them into file and line.
void note(const char* what, const Region& region, const char* p, size_t bytes, int kind, void* pc,
          const Thread& thread, const Cell* other) {
  std::pair<void*, void*> places(pc, other ? other->pc : nullptr);
  if (std::find(reported.begin(), reported.end(), places) != reported.end()) return;
  reported.push_back(places);
  if (reported.size() > MOST_REPORTS) return;
  char text[512];
  int n = snprintf(text, sizeof text, "%s: %s of %zu bytes at %s+%td by thread %d at pc=%p", what,
                   verb(kind), bytes, region.name, p - region.base, thread.linear, pc);
  if (other)
    snprintf(text + n, sizeof text - n, ", and %s by thread %d%s at pc=%p", verb(other->kind),
             other->thread, other->block == block ? "" : " of another block", other->pc);
  report(text);
}

bool covers(const Release& release, const Cell& cell) {
  return release.block == cell.block &&
         (cell.epoch < release.epoch || cell.clock <= release.clock[cell.thread]);
}

bool comes_before(const Cell& cell, const Thread& thread) {
  if (cell.block == block) return cell.epoch < epoch || cell.clock <= thread.clock[cell.thread];
  for (const Release* release : acquired_by_block)
    if (covers(*release, cell)) return true;
  for (const Release* release : thread.acquired)
    if (covers(*release, cell)) return true;
  return false;
}

void check_races(Region& region, char* p, size_t bytes, int kind, void* pc, Thread& thread) {
  size_t first = p - region.base, end = first + bytes;
  for (size_t group = first / 4; group * 4 < end; group++) {
    unsigned char touched = 0;
    for (size_t i = 0; i < 4; i++)
      if (group * 4 + i >= first && group * 4 + i < end) touched |= 1 << i;
    Cell* cells = region.cells + group * CELLS;
    Cell* free_cell = nullptr;
    for (Cell* cell = cells; cell < cells + CELLS; cell++) {
      if (region.shared && cell->block != block) cell->bytes = 0;  // another block's shared memory
      if (!cell->bytes) {
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
    unsigned clock = thread.clock[thread.linear];
    *free_cell = {clock, epoch, block, (unsigned short)thread.linear, touched, (unsigned char)kind, pc};
  }
}

void check_initialised(Region& region, char* p, size_t bytes, int kind, void* pc, Thread& thread) {
  unsigned* written = region.written_in + (p - region.base);
  for (size_t i = 0; i < bytes; i++) {
    if (kind & READ && written[i] != block) {
      note("UNINITIALISED SHARED READ", region, p, bytes, kind, pc, thread, nullptr);
      return;
    }
    if (kind & WRITE) written[i] = block;
  }
}

Region* region_of(const char* p) {
  for (Region& region : regions)
    if (region.holds(p)) return &region;
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
  check_races(*region, p, bytes, kind, pc, thread);
}

void forget_initialisation(const void* shared, size_t bytes) {
  if (!active->check) return;
  Region* region = region_of((const char*)shared);
  if (!region || !region->shared) return;
  unsigned* written = region->written_in + ((const char*)shared - region->base);
  std::fill(written, written + bytes, 0);
}

// -------------------------------------------------------------------------------------- ordering

void order_block() {
  if (!active->check) return;
  epoch++;
  for (Thread& thread : threads) {
    acquired_by_block.insert(acquired_by_block.end(), thread.acquired.begin(), thread.acquired.end());
    thread.acquired.clear();
  }
}

void order_warp(unsigned mask, int first_thread) {
  if (!active->check) return;
  Clock joined(threads.size());
  std::vector<const Release*> acquired;
  auto each = [&](auto use) {
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) use(threads[first_thread + i]);
  };
  each([&](Thread& thread) {
    for (size_t k = 0; k < joined.size(); k++) joined[k] = std::max(joined[k], thread.clock[k]);
    acquired.insert(acquired.end(), thread.acquired.begin(), thread.acquired.end());
  });
  each([&](Thread& thread) {
    thread.clock = joined;
    thread.clock[thread.linear]++;
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
  thread.clock[thread.linear]++;  // what comes now is not covered
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
  Cell* cells = (Cell*)calloc((size + 7) / 4 * CELLS, sizeof(Cell));
  unsigned* written = shared ? (unsigned*)calloc(size, sizeof(unsigned)) : nullptr;
  if (!cells || (shared && !written)) abort();
  regions.push_back({base, size, name, read_only, shared, cells, written});
}

void checker_begin() {
  reported.clear();
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
  for (Thread& thread : threads) {
    thread.clock.assign(threads.size(), 0);
    thread.clock[thread.linear] = 1;
    thread.acquired.clear();
    thread.fenced = nullptr;
  }
}

void checker_end() {
  for (Region& region : regions) {
    free(region.cells);
    free(region.written_in);
  }
  regions.clear();
  releases.clear();
}

}  // namespace cushim

// ------------------------------------------------------- calls put in by -fsanitize=thread

using namespace cushim;

static inline void hook(void* address, size_t bytes, int kind, void* pc) {
  if (!active || !active->check) return;
  Thread& thread = self();
  char* p = (char*)address;
  if (p >= thread.stack && p < thread.stack + STACK_SIZE) return;
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
