// Runs a kernel on the CPU. Blocks run one after another; the threads of a block are fibers that take
// turns: one runs until it must wait (barrier, warp operation) or returns. So a kernel's own order
// decides nothing that CUDA leaves open, and the launch's `order` can try several.
#include "runtime.h"

#include <algorithm>
#include <link.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cushim {

ThreadHead* current;
uint3 block_index, block_dim, grid_dim;
const Launch* active;
std::vector<Thread> threads;
char *static_shared, *dynamic_shared_base;
size_t static_shared_size;

static Thread launcher;  // the context that launch() itself runs in
static std::vector<int> runnable;  // threads in the order in which they became so
static size_t next_runnable;
static int threads_alive;
static void (*kernel)(void**);
static void** arguments;
static std::string messages;
static bool failed;
static unsigned long long random_state;

Thread& self() { return *static_cast<Thread*>(current); }

unsigned random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state >> 16;
}

// Names and files are mostly the same literal.
static bool same_text(const char* a, const char* b) { return a == b || !strcmp(a, b); }

const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

// ----------------------------------------------------------------------------------------- errors

static void leave_to_launcher();

void report(const std::string& message) { messages += message + "\n"; }

void fail(const char* format, ...) {
  char text[2048], where[160];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  uint3 t = current->index, b = block_index;
  snprintf(where, sizeof where, " [block %u,%u,%u thread %u,%u,%u]", b.x, b.y, b.z, t.x, t.y, t.z);
  report(std::string(text) + where);
  failed = true;
  leave_to_launcher();
  __builtin_unreachable();
}

void trap(const char* what, Site site) { fail("%s at %s:%d", what, base_name(site.file), site.line); }

// ----------------------------------------------------------------------------------------- fibers

#if defined(__x86_64__)
// Saves the registers that a call must keep, swaps the stack pointers, restores.
extern "C" void cushim_switch(void** save, void* load);
asm(R"(
  .text
  .globl cushim_switch
  .hidden cushim_switch
cushim_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
static void swap_context(Thread& from, Thread& to) { cushim_switch(&from.context, to.context); }

static void prepare_context(Thread& thread, void (*entry)()) {
  void** top = reinterpret_cast<void**>(thread.stack + STACK_SIZE);
  *--top = nullptr;  // where entry would return to; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  thread.context = top;
}
#else
static std::vector<ucontext_t> contexts;  // the last one is the launcher's

static void swap_context(Thread& from, Thread& to) {
  swapcontext(static_cast<ucontext_t*>(from.context), static_cast<ucontext_t*>(to.context));
}

static void prepare_context(Thread& thread, void (*entry)()) {
  contexts.resize(1025);
  launcher.context = &contexts.back();
  ucontext_t* context = &contexts[thread.linear];
  getcontext(context);
  context->uc_stack.ss_sp = thread.stack;
  context->uc_stack.ss_size = STACK_SIZE;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  thread.context = context;
}
#endif

static void switch_to(Thread& to) {
  if (&to == current) return;
  Thread& from = self();
  current = &to;
  swap_context(from, to);
}

static void leave_to_launcher() {
  if (current == &launcher) abort();
  self().state = Thread::EXITED;  // a failing thread never runs again
  switch_to(launcher);
}

static std::string who_waits_where() {
  std::vector<std::pair<std::string, int>> places;
  int exited = 0;
  for (Thread& thread : threads) {
    if (thread.state == Thread::EXITED) {
      exited++;
      continue;
    }
    Site at = thread.waiting_at;
    std::string place =
        std::string(thread.waiting_in) + " at " + base_name(at.file) + ":" + std::to_string(at.line);
    auto same = std::find_if(places.begin(), places.end(), [&](auto& p) { return p.first == place; });
    if (same == places.end()) places.push_back({place, 1});
    else same->second++;
  }
  std::string text;
  for (auto& [place, count] : places) text += std::to_string(count) + " thread(s) in " + place + "; ";
  return text + std::to_string(exited) + " exited";
}

// The thread to run next; the launcher once all have returned.
static Thread& next_thread() {
  if (next_runnable == runnable.size()) {
    runnable.clear();
    next_runnable = 0;
    if (!threads_alive) return launcher;
    fail("DEADLOCK, not all threads came to the same place: %s", who_waits_where().c_str());
  }
  if (active->order == 2) {
    size_t chosen = next_runnable + random_number() % (runnable.size() - next_runnable);
    std::swap(runnable[next_runnable], runnable[chosen]);
  }
  return threads[runnable[next_runnable++]];
}

static void wake(int thread) {
  threads[thread].state = Thread::READY;
  runnable.push_back(thread);
}

static void wake_all(std::vector<int>& waiting) {
  if (active->order == 1) std::reverse(waiting.begin(), waiting.end());
  for (int thread : waiting) wake(thread);
  waiting.clear();
}

static std::vector<int> others;  // that the last to arrive wakes

static void wait_in(const char* name, Site site) {
  Thread& thread = self();
  thread.state = Thread::WAITING;
  thread.waiting_in = name;
  thread.waiting_at = site;
  switch_to(next_thread());
}

static void thread_main() {
  kernel(arguments);
  Thread& thread = self();
  thread.state = Thread::EXITED;
  threads_alive--;
  if (!thread.copies.empty()) fail("UNFINISHED COPY: the thread returns before its cp.async was waited for");
  check_no_products();
  switch_to(next_thread());
  __builtin_unreachable();
}

// ---------------------------------------------------------------------- barriers, warp operations

static std::vector<int> at_barrier;
static Site barrier_site;
static int predicates, predicates_of_last;

int barrier(int predicate, Site site) {
  if (at_barrier.empty()) {
    barrier_site = site;
    predicates = 0;
  } else if (site.line != barrier_site.line || !same_text(site.file, barrier_site.file)) {
    fail("BARRIER DIVERGENCE: __syncthreads at %s:%d while %zu thread(s) wait in the one at %s:%d",
         base_name(site.file), site.line, at_barrier.size(), base_name(barrier_site.file),
         barrier_site.line);
  }
  predicates += predicate;
  at_barrier.push_back(current->linear);
  if (at_barrier.size() == threads.size()) {
    predicates_of_last = predicates;
    order_block();
    wake_all(at_barrier);
  }
  // The last to arrive waits as well, for its turn among those it woke.
  wait_in("__syncthreads", site);
  return predicates_of_last;
}

static std::vector<WarpOperation*> pending;

static void check_mask(const char* name, unsigned mask, Site site) {
  int lane = current->linear % 32, first = current->linear - lane;
  const char* file = base_name(site.file);
  if (!(mask >> lane & 1))
    fail("WRONG MASK: %s at %s:%d, mask %08x lacks lane %d that calls it", name, file, site.line, mask,
         lane);
  for (int i = 0; i < 32; i++) {
    if (!(mask >> i & 1)) continue;
    if (first + i >= (int)threads.size())
      fail("WRONG MASK: %s at %s:%d, mask %08x names lane %d; the block has no such thread", name, file,
           site.line, mask, i);
    if (threads[first + i].state == Thread::EXITED)
      fail("WRONG MASK: %s at %s:%d, mask %08x names lane %d, which has returned", name, file,
           site.line, mask, i);
  }
}

void warp_operation(const char* name, unsigned mask, void* argument, void (*work)(WarpOperation&),
                    Site site) {
  check_mask(name, mask, site);
  int lane = current->linear % 32, first = current->linear - lane;
  WarpOperation* operation = nullptr;
  for (WarpOperation* other : pending) {
    if (other->first_thread != first || !(other->mask & mask)) continue;
    bool same = other->mask == mask && other->site.line == site.line && same_text(other->name, name) &&
                same_text(other->site.file, site.file);
    if (!same)
      fail("WARP DIVERGENCE: %s at %s:%d (mask %08x) while lanes wait in %s at %s:%d (mask %08x)", name,
           base_name(site.file), site.line, mask, other->name, base_name(other->site.file),
           other->site.line, other->mask);
    operation = other;
  }
  if (!operation) {
    operation = new WarpOperation{name, mask, site, first, 0, {}};
    pending.push_back(operation);
  }
  operation->arguments[lane] = argument;
  if (++operation->arrived < __builtin_popcount(mask)) {
    wait_in(name, site);
    return;
  }
  pending.erase(std::find(pending.begin(), pending.end(), operation));
  work(*operation);
  delete operation;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1 && i != lane) others.push_back(first + i);
  wake_all(others);
}

static std::vector<WarpgroupOperation*> pending_in_warpgroups;

void warpgroup_operation(const char* name, void* argument, void (*work)(WarpgroupOperation&), Site site) {
  int member = current->linear % WARPGROUP, first = current->linear - member;
  const char* file = base_name(site.file);
  if (first + WARPGROUP > (int)threads.size())
    fail("WRONG WARPGROUP: %s at %s:%d, the block has no threads %d to %d", name, file, site.line, first,
         first + WARPGROUP - 1);
  WarpgroupOperation* operation = nullptr;
  for (WarpgroupOperation* other : pending_in_warpgroups) {
    if (other->first_thread != first) continue;
    if (other->site.line != site.line || !same_text(other->name, name) ||
        !same_text(other->site.file, site.file))
      fail("WARPGROUP DIVERGENCE: %s at %s:%d while threads wait in %s at %s:%d", name, file, site.line,
           other->name, base_name(other->site.file), other->site.line);
    operation = other;
  }
  if (!operation) {
    for (int i = 0; i < WARPGROUP; i++)
      if (threads[first + i].state == Thread::EXITED)
        fail("WRONG WARPGROUP: %s at %s:%d, thread %d has returned", name, file, site.line, first + i);
    operation = new WarpgroupOperation{name, site, first, 0, {}};
    pending_in_warpgroups.push_back(operation);
  }
  operation->arguments[member] = argument;
  if (++operation->arrived < WARPGROUP) {
    wait_in(name, site);
    return;
  }
  auto place = std::find(pending_in_warpgroups.begin(), pending_in_warpgroups.end(), operation);
  pending_in_warpgroups.erase(place);
  work(*operation);
  delete operation;
  for (int i = 0; i < WARPGROUP; i++)
    if (i != member) others.push_back(first + i);
  wake_all(others);
}

void sync_warp(unsigned mask, Site site) {
  auto work = [](WarpOperation& op) { order_warp(op.mask, op.first_thread); };
  warp_operation("__syncwarp", mask, nullptr, work, site);
}

struct ShuffleArgument {
  unsigned value, result;
  Shuffle kind;
  int operand, width;
};

static int source_lane(const ShuffleArgument& a, int lane) {
  int first = lane / a.width * a.width, end = first + a.width, source = lane;
  switch (a.kind) {
    case FROM_LANE: return first + (a.operand & (a.width - 1));
    case UP: source = lane - a.operand; return source < first ? lane : source;
    case DOWN: source = lane + a.operand; break;
    case XOR: source = lane ^ a.operand; break;
  }
  return source >= end ? lane : source;
}

unsigned shuffle(unsigned mask, unsigned value, Shuffle kind, int operand, int width, Site site) {
  ShuffleArgument argument{value, 0, kind, operand, width};
  auto work = [](WarpOperation& op) {
    for (int lane = 0; lane < 32; lane++) {
      if (!(op.mask >> lane & 1)) continue;
      auto& mine = *static_cast<ShuffleArgument*>(op.arguments[lane]);
      int source = source_lane(mine, lane);
      if (!(op.mask >> source & 1))
        fail("WRONG MASK: shuffle at %s:%d, lane %d reads lane %d, which is not in mask %08x",
             base_name(op.site.file), op.site.line, lane, source, op.mask);
      mine.result = static_cast<ShuffleArgument*>(op.arguments[source])->value;
    }
  };
  warp_operation("shuffle", mask, &argument, work, site);
  return argument.result;
}

struct Vote {
  int predicate;
  unsigned result;
};

unsigned ballot(unsigned mask, int predicate, Site site) {
  Vote vote{predicate, 0};
  auto work = [](WarpOperation& op) {
    unsigned result = 0;
    for (int lane = 0; lane < 32; lane++)
      if (op.mask >> lane & 1 && static_cast<Vote*>(op.arguments[lane])->predicate) result |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
      if (op.mask >> lane & 1) static_cast<Vote*>(op.arguments[lane])->result = result;
  };
  warp_operation("vote", mask, &vote, work, site);
  return vote.result;
}

struct ReduceArgument {
  long long value;
  Reduction kind;
};

long long reduce(unsigned mask, long long value, Reduction kind, Site site) {
  ReduceArgument argument{value, kind};
  auto work = [](WarpOperation& op) {
    int first = __builtin_ctz(op.mask);
    long long total = static_cast<ReduceArgument*>(op.arguments[first])->value;
    for (int lane = first + 1; lane < 32; lane++) {
      if (!(op.mask >> lane & 1)) continue;
      auto& a = *static_cast<ReduceArgument*>(op.arguments[lane]);
      switch (a.kind) {
        case ADD: total += a.value; break;
        case MIN: total = std::min(total, a.value); break;
        case MAX: total = std::max(total, a.value); break;
        case AND: total &= a.value; break;
        case OR: total |= a.value; break;
        case BITXOR: total ^= a.value; break;
      }
    }
    for (int lane = 0; lane < 32; lane++)
      if (op.mask >> lane & 1) static_cast<ReduceArgument*>(op.arguments[lane])->value = total;
  };
  warp_operation("__reduce_sync", mask, &argument, work, site);
  return argument.value;
}

// ---------------------------------------------------------------------------------- shared memory

static size_t dynamic_capacity;

// Dynamic shared memory begins where a card's would: after what the system keeps, at a multiple of 1024. The
// static variables, here of all kernels of a file, lie beyond all addresses that a card has.
static const unsigned DYNAMIC_WINDOW = 1024, STATIC_WINDOW = 0x100000;

void* dynamic_shared() { return dynamic_shared_base; }

unsigned shared_address(const void* p) {
  const char* c = static_cast<const char*>(p);
  if (c >= dynamic_shared_base && c <= dynamic_shared_base + active->shared_size)
    return DYNAMIC_WINDOW + (c - dynamic_shared_base);
  if (c >= static_shared && c <= static_shared + static_shared_size)
    return STATIC_WINDOW + (c - static_shared);
  fail("NOT SHARED MEMORY: a shared address was asked of a pointer to something else");
}

char* shared_pointer(unsigned address) {
  unsigned offset = address - DYNAMIC_WINDOW;
  return offset < active->shared_size ? dynamic_shared_base + offset : nullptr;
}

static void poison_shared_memory() {  // all bits set: floats read before they are written are NaN
  memset(static_shared, 0xff, static_shared_size);
  memset(dynamic_shared_base, 0xff, active->shared_size);
}

// ----------------------------------------------------------------------------------------- launch

static void make_stacks(Stacks& stacks, size_t count) {
  if (stacks.count >= count) return;
  if (stacks.base) munmap(stacks.base, stacks.count * STACK_SIZE);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  stacks.base = (char*)mmap(nullptr, count * STACK_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (stacks.base == MAP_FAILED) abort();
  stacks.count = count;
  for (size_t i = 0; i < count; i++) mprotect(stacks.base + i * STACK_SIZE, 4096, PROT_NONE);
}

// Storage comes into being when a thread first touches it.
static thread_local char touched;
__attribute__((noinline)) static void touch_thread_local_storage() {
  *const_cast<volatile char*>(&touched) = 1;
}

// Called for each loaded library: finds the thread-local storage of the one that this code is in.
static int find_static_shared(dl_phdr_info* library, size_t, void*) {
  const char* here = reinterpret_cast<const char*>(&find_static_shared);
  bool mine = false;
  size_t size = 0;
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const ElfW(Phdr)& part = library->dlpi_phdr[i];
    const char* begin = (const char*)library->dlpi_addr + part.p_vaddr;
    mine |= part.p_type == PT_LOAD && here >= begin && here < begin + part.p_memsz;
    if (part.p_type == PT_TLS) size = part.p_memsz;
  }
  if (!mine) return 0;
  static_shared = (char*)library->dlpi_tls_data;
  static_shared_size = static_shared ? size : 0;
  return 1;
}

static void make_shared_memory() {
  touch_thread_local_storage();
  // To look through all libraries takes longer than many a kernel: once for each thread of the host.
  static const char* found_from;
  if (found_from != &touched) dl_iterate_phdr(find_static_shared, nullptr);
  found_from = &touched;
  if (dynamic_shared_base && dynamic_capacity >= active->shared_size) return;
  free(dynamic_shared_base);
  dynamic_capacity = (active->shared_size + 1024) / 1024 * 1024;
  dynamic_shared_base = (char*)aligned_alloc(1024, dynamic_capacity);
}

static std::vector<unsigned> block_order() {
  std::vector<unsigned> blocks(grid_dim.x * grid_dim.y * grid_dim.z);
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = i;
  if (active->order == 1) std::reverse(blocks.begin(), blocks.end());
  if (active->order == 2)
    for (size_t i = blocks.size(); i > 1; i--) std::swap(blocks[i - 1], blocks[random_number() % i]);
  return blocks;
}

static void start_threads() {
  runnable.clear();
  next_runnable = 0;
  threads_alive = threads.size();
  for (size_t i = 0; i < threads.size(); i++) {
    Thread& thread = threads[i];
    unsigned x = i % block_dim.x, y = i / block_dim.x % block_dim.y, z = i / block_dim.x / block_dim.y;
    thread.index = {x, y, z};
    thread.linear = i;
    thread.state = Thread::READY;
    thread.stack = active->stacks->base + i * STACK_SIZE;
    thread.copies.clear();
    thread.copy_groups.clear();
    thread.uncommitted_copies = 0;
    thread.proxy_fences.clear();
    thread.products = thread.products_waited_for = 0;
    thread.product_groups.clear();
    thread.flying.clear();
    thread.touched.clear();
    prepare_context(thread, thread_main);
    runnable.push_back(active->order == 1 ? threads.size() - 1 - i : i);
  }
}

static void run_block(unsigned block, unsigned number) {
  block_index = {block % grid_dim.x, block / grid_dim.x % grid_dim.y, block / grid_dim.x / grid_dim.y};
  poison_shared_memory();
  at_barrier.clear();
  for (WarpOperation* operation : pending) delete operation;
  pending.clear();
  for (WarpgroupOperation* operation : pending_in_warpgroups) delete operation;
  pending_in_warpgroups.clear();
  begin_products();
  start_threads();
  if (active->check) checker_begin_block(number);
  current = &launcher;
  switch_to(next_thread());
}

int launch(const Launch* launch, void (*function)(void**), void** given) {
  active = launch;
  kernel = function;
  arguments = given;
  messages.clear();
  failed = false;
  random_state = 0x9E3779B97F4A7C15ull ^ launch->seed * 0x2545F4914F6CDD1Dull;
  block_dim = {launch->block[0], launch->block[1], launch->block[2]};
  grid_dim = {launch->grid[0], launch->grid[1], launch->grid[2]};
  size_t count = (size_t)block_dim.x * block_dim.y * block_dim.z;
  if (threads.size() != count) threads.assign(count, Thread());
  current = &launcher;
  make_stacks(*launch->stacks, count);
  make_shared_memory();
  if (launch->check) checker_begin();
  unsigned number = 0;
  for (unsigned block : block_order()) {
    run_block(block, ++number);
    if (failed) break;
  }
  if (launch->check) checker_end();
  active = nullptr;
  return !messages.empty();
}

}  // namespace cushim

extern "C" const char* cushim_messages() { return cushim::messages.c_str(); }
