// What the runtime's own files share; kernels never see it.
#pragma once
#include <string>
#include <vector>

#include "cushim.h"

namespace cushim {

struct Buffer {  // memory that a launch may touch
  char* base;
  size_t size;
  const char* name;
  int read_only;
};

struct Stacks {  // of the threads, one for all libraries: a process may have only so many pieces of memory
  char* base;
  size_t count;
};

struct Launch {  // filled by host_module.py: keep the two alike
  unsigned grid[3], block[3];
  size_t shared_size;
  int order;  // of blocks and threads: 0 forward, 1 backward, 2 random by seed
  unsigned seed;
  int check;       // whether memory accesses are watched
  int async_late;  // cp.async copies at its wait (else at once)
  const Buffer* buffers;
  int buffer_count;
  char* arena;  // holds the buffers, with free space between them
  size_t arena_size;
  char* parameters;  // the kernel's arguments and the pointers to them
  size_t parameters_size;
  Stacks* stacks;
};

// How far a thread knows each thread of its warp; of others it knows nothing but the barriers passed.
struct Clock {
  int warp = 0;
  unsigned lanes[32] = {};
  unsigned of(int thread) const { return thread / 32 == warp ? lanes[thread % 32] : 0; }
  unsigned& own(int thread) { return lanes[thread % 32]; }
};

// What a thread had seen at a __threadfence, for whoever reads an atomic that it writes afterwards.
struct Release {
  const void* address;
  unsigned block, epoch;
  Clock clock;
  std::vector<const Release*> acquired;
};

struct ProxyFence {  // when a thread passed a fence.proxy.async
  unsigned clock, epoch;
};

struct Copy {  // one cp.async
  void* to;
  const void* from;
  int bytes, bytes_read;
  bool done;
};

struct Thread : ThreadHead {
  enum State { READY, WAITING, EXITED } state;
  const char* waiting_in;
  Site waiting_at;
  void* context;  // the stack pointer while it does not run
  char* stack;
  Clock clock;
  std::vector<const Release*> acquired;
  const Release* fenced;
  std::vector<Copy> copies;      // cp.async not waited for, oldest first
  std::vector<int> copy_groups;  // how many of them each commit added
  int uncommitted_copies;        // the last of them
  std::vector<ProxyFence> proxy_fences;
  // wgmma: the n-th product of a thread is the n-th of its warpgroup.
  int products, products_waited_for;
  std::vector<int> product_groups;            // committed, oldest first: how many products there were
  std::vector<std::pair<char*, int>> flying;  // sums that a product may still change, and their bytes
  std::vector<bool> touched;  // words of the stack used since the last wgmma.fence; empty before the first
};

const size_t STACK_SIZE = 64 << 10;

extern const Launch* active;  // the launch under way
extern std::vector<Thread> threads;
extern char *static_shared, *dynamic_shared_base;  // this block's shared memory
extern size_t static_shared_size;

Thread& self();
unsigned random_number();
const char* base_name(const char* path);
void report(const std::string& message);  // an error, after which the kernel may go on
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// One operation of a whole warp. The last of the threads in `mask` to arrive runs `work` for all of
// them: arguments[lane] is what that lane passed.
struct WarpOperation {
  const char* name;
  unsigned mask;
  Site site;
  int first_thread;
  int arrived;
  void* arguments[32];
};
void warp_operation(const char* name, unsigned mask, void* argument, void (*work)(WarpOperation&),
                    Site site);

// One operation of a warpgroup: four warps, the first thread's number a multiple of 128.
const int WARPGROUP = 128;
struct WarpgroupOperation {
  const char* name;
  Site site;
  int first_thread;
  int arrived;
  void* arguments[WARPGROUP];
};
void warpgroup_operation(const char* name, void* argument, void (*work)(WarpgroupOperation&), Site site);

char* shared_pointer(unsigned address);  // into dynamic shared memory; null if the address is outside

// wgmma.cpp
void begin_products();     // of a block
void check_no_products();  // the thread returns

// checker.cpp
enum Access : unsigned char { READ = 1, WRITE = 2, ATOMIC = 4 };
void access(const void* p, size_t bytes, int kind, void* pc, Thread& thread);
void checker_begin();
void checker_begin_block(unsigned block);
void checker_end();
void order_block();                                         // all came through a barrier
void order_warp(unsigned mask, int first_thread);           // these came through __syncwarp
void forget_initialisation(const void* shared, size_t bytes);  // a copy into it is on its way
void written_by_generic_proxy(const void* shared, size_t bytes);
// Reads of shared memory that a tensor core does by itself for a warpgroup: begin once for each product, with
// the address of the code that asks for it; then each piece; then each thread says that it has waited.
unsigned begin_async_read(int first_thread, void* pc);
void async_read(unsigned reading, char* p);  // 16 bytes, of shared memory, at a multiple of 16
void waited_for_async_read(unsigned reading);

}  // namespace cushim

#define CUSHIM_PC __builtin_return_address(0)
