// What a CUDA kernel sees when g++ compiles it for the CPU: the language's keywords, built-in variables
// and functions. Included before the kernel's source; only what NVRTC itself offers is defined here,
// everything else comes from the kernels' own headers. The functions live in runtime.cpp, checker.cpp,
// ptx_twins.cpp and wgmma.cpp.
//
// Left out on purpose: atomicAdd on floats (results must not depend on the order of threads).
#pragma once
// C's functions only: those of C++, which has each of them for float too, take half of the time that it takes to
// read this file. `OF_FLOAT` below has the ones that kernels use.
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <math.h>
#undef _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

// ---------------------------------------------------------------------------------------- keywords

#ifndef CUSHIM_LIST_KERNELS  // host_module.py looks for __global__ in the preprocessed source
#define __global__
#endif
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
// The library's thread-local storage holds all shared variables and nothing else, so that the runtime
// knows where shared memory is. (All threads of a block are fibers of one real thread.)
#define __shared__ static thread_local
// Dynamic shared memory, in place of `extern __shared__ T name[]`.
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(cushim::dynamic_shared())

// ------------------------------------------------------------------------------------ vector types

struct uint3 {
  unsigned x, y, z;
};
typedef uint3 dim3;

#define CUSHIM_VECTOR(T, name, align4)                                             \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                               \
  struct name##3 { T x, y, z; };                                                   \
  struct alignas(align4) name##4 { T x, y, z, w; };                                \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                       \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }               \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 uint3_  // defined above, as blockIdx needs it
CUSHIM_VECTOR(signed char, char, 4)
CUSHIM_VECTOR(unsigned char, uchar, 4)
CUSHIM_VECTOR(short, short, 8)
CUSHIM_VECTOR(unsigned short, ushort, 8)
CUSHIM_VECTOR(int, int, 16)
CUSHIM_VECTOR(unsigned, uint, 16)
CUSHIM_VECTOR(long long, longlong, 16)
CUSHIM_VECTOR(unsigned long long, ulonglong, 16)
CUSHIM_VECTOR(float, float, 16)
CUSHIM_VECTOR(double, double, 16)
#undef uint3
#undef CUSHIM_VECTOR

// ------------------------------------------------------------------------------------- the runtime

namespace cushim {

// A place in a kernel's source: barriers and warp operations must be met at the same one.
struct Site {
  const char* file;
  int line;
};
#define CUSHIM_HERE (cushim::Site{__FILE__, __LINE__})
// As a last parameter: the place of the call.
#define CUSHIM_CALLER cushim::Site site = {__builtin_FILE(), __builtin_LINE()}

struct ThreadHead {
  uint3 index;  // threadIdx
  int linear;   // its number in the block
};
extern ThreadHead* current;
extern uint3 block_index, block_dim, grid_dim;

struct Launch;
int launch(const Launch* launch, void (*kernel)(void**), void** arguments);
void* dynamic_shared();
unsigned shared_address(const void* p);  // as __cvta_generic_to_shared

int barrier(int predicate, Site site);  // returns how many threads gave a true predicate
void sync_warp(unsigned mask, Site site);
enum Shuffle { FROM_LANE, UP, DOWN, XOR };
unsigned shuffle(unsigned mask, unsigned value, Shuffle kind, int operand, int width, Site site);
unsigned ballot(unsigned mask, int predicate, Site site);
enum Reduction { ADD, MIN, MAX, AND, OR, BITXOR };
long long reduce(unsigned mask, long long value, Reduction kind, Site site);

void atomic_load(const void* p, void* value, int bytes);  // both together are one atomic operation:
void atomic_store(void* p, const void* value, int bytes);  // threads change only where they wait
void fence();
[[noreturn]] void trap(const char* what, Site site);

// Twins of tensor-core and asynchronous-copy instructions, for ptx.cuh.
void mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b, CUSHIM_CALLER);
void mma_m16n8k16_bf16(float* d, const unsigned* a, const unsigned* b, CUSHIM_CALLER);
void ldmatrix(unsigned* registers, int matrices, bool transposed, const void* row, CUSHIM_CALLER);
void cp_async(void* shared, const void* global, int bytes, int bytes_read, CUSHIM_CALLER);
void cp_async_commit();
void cp_async_wait(int groups_left);
unsigned long long wgmma_operand(const void* tile, int leading, int stride, CUSHIM_CALLER);
void wgmma_fence(CUSHIM_CALLER);
void wgmma_bf16(float* d, int n, unsigned long long a, unsigned long long b, bool a_across, bool b_across,
                CUSHIM_CALLER);
void wgmma_commit(CUSHIM_CALLER);
void wgmma_wait(int groups_left, CUSHIM_CALLER);
void fence_proxy_async();
unsigned tf32_rna(float x);      // cvt.rna.tf32.f32: to nearest, ties away from zero
unsigned short bf16_rn(float x);  // cvt.rn.bf16.f32: to nearest, ties to even

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "");
  return __builtin_bit_cast(To, value);
}

template <class T>
inline T shuffle_any(unsigned mask, T value, Shuffle kind, int operand, int width, Site site) {
  struct Parts {
    unsigned word[(sizeof(T) + 3) / 4];
  };
  Parts parts = {};
  __builtin_memcpy(&parts, &value, sizeof value);
  for (unsigned& word : parts.word) word = shuffle(mask, word, kind, operand, width, site);
  __builtin_memcpy(&value, &parts, sizeof value);
  return value;
}

template <class T, class Update>
inline T atomic(T* p, Update update) {
  T old;
  atomic_load(p, &old, sizeof old);
  T next = update(old);
  atomic_store(p, &next, sizeof next);
  return old;
}

// ------------------------------------------------------------- from a launch's arguments to a call

template <class... P, size_t... I>
inline void invoke(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
}

template <class... P>
constexpr size_t count(void (*)(P...)) {
  return sizeof...(P);
}

template <class T>
constexpr char kind_of() {
  if (std::is_class_v<T>) return 's';
  if (std::is_same_v<T, bool>) return 'b';
  if (std::is_floating_point_v<T>) return 'f';
  return std::is_signed_v<T> ? 'i' : 'u';
}

// Describes one parameter: "f4" a float, "pf4" a pointer to floats, "cpf4" to const floats.
template <class T>
int describe(char* out) {
  typedef std::remove_pointer_t<T> Pointee;
  if constexpr (std::is_pointer_v<T>) {
    typedef std::remove_cv_t<Pointee> E;
    const char* prefix = std::is_const_v<Pointee> ? "cp" : "p";
    if constexpr (std::is_void_v<E>) return sprintf(out, "%ss1,", prefix);
    else return sprintf(out, "%s%c%zu,", prefix, kind_of<E>(), sizeof(E));
  } else {
    return sprintf(out, "%c%zu,", kind_of<T>(), sizeof(T));
  }
}

template <class... P>
const char* signature(void (*)(P...)) {
  static char text[1024];
  char* end = text;
  int unused[] = {0, (end += describe<std::remove_cv_t<P>>(end), 0)...};
  (void)unused;
  return text;
}

inline unsigned mask_argument(unsigned mask = 0xffffffffu) { return mask; }
inline int width_argument(int width = 32) { return width; }

}  // namespace cushim

#define CUSHIM_EXPORT(name)                                                                    \
  extern "C" int cushim_run_##name(const cushim::Launch* launch, void** arguments) {           \
    auto call = [](void** p) {                                                                 \
      cushim::invoke(&name, p, std::make_index_sequence<cushim::count(&name)>());              \
    };                                                                                         \
    return cushim::launch(launch, call, arguments);                                            \
  }                                                                                            \
  extern "C" const char* cushim_signature_##name() { return cushim::signature(&name); }

// ------------------------------------------------------- built-in variables, barriers, warp functions

#define threadIdx (static_cast<const uint3&>(cushim::current->index))
#define blockIdx (static_cast<const uint3&>(cushim::block_index))
#define blockDim (static_cast<const uint3&>(cushim::block_dim))
#define gridDim (static_cast<const uint3&>(cushim::grid_dim))
#define warpSize 32

#define __syncthreads() ((void)cushim::barrier(0, CUSHIM_HERE))
#define __syncthreads_count(p) cushim::barrier(!!(p), CUSHIM_HERE)
#define __syncthreads_or(p) (cushim::barrier(!!(p), CUSHIM_HERE) != 0)
#define __syncthreads_and(p) (cushim::barrier(!(p), CUSHIM_HERE) == 0)
#define __syncwarp(...) cushim::sync_warp(cushim::mask_argument(__VA_ARGS__), CUSHIM_HERE)

#define CUSHIM_SHUFFLE(mask, value, kind, operand, ...)                                 \
  cushim::shuffle_any(mask, value, cushim::kind, operand,                               \
                      cushim::width_argument(__VA_ARGS__), CUSHIM_HERE)
#define __shfl_sync(mask, value, lane, ...) CUSHIM_SHUFFLE(mask, value, FROM_LANE, lane, __VA_ARGS__)
#define __shfl_up_sync(mask, value, delta, ...) CUSHIM_SHUFFLE(mask, value, UP, delta, __VA_ARGS__)
#define __shfl_down_sync(mask, value, delta, ...) CUSHIM_SHUFFLE(mask, value, DOWN, delta, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, lanes, ...) CUSHIM_SHUFFLE(mask, value, XOR, lanes, __VA_ARGS__)

#define __ballot_sync(mask, p) cushim::ballot(mask, !!(p), CUSHIM_HERE)
#define __any_sync(mask, p) (cushim::ballot(mask, !!(p), CUSHIM_HERE) != 0)
#define __all_sync(mask, p) (cushim::ballot(mask, !(p), CUSHIM_HERE) == 0)
#define CUSHIM_REDUCE(mask, v, kind) ((decltype(v))cushim::reduce(mask, v, cushim::kind, CUSHIM_HERE))
#define __reduce_add_sync(mask, v) CUSHIM_REDUCE(mask, v, ADD)
#define __reduce_min_sync(mask, v) CUSHIM_REDUCE(mask, v, MIN)
#define __reduce_max_sync(mask, v) CUSHIM_REDUCE(mask, v, MAX)
#define __reduce_and_sync(mask, v) CUSHIM_REDUCE(mask, v, AND)
#define __reduce_or_sync(mask, v) CUSHIM_REDUCE(mask, v, OR)
#define __reduce_xor_sync(mask, v) CUSHIM_REDUCE(mask, v, BITXOR)

#define __threadfence() cushim::fence()
#define __trap() cushim::trap("__trap()", CUSHIM_HERE)
#define assert(x) ((x) ? (void)0 : cushim::trap("assert(" #x ")", CUSHIM_HERE))

// ------------------------------------------------------------------------------------------ atomics

#define CUSHIM_ATOMIC(name, T, result)                            \
  inline T name(T* p, T v) {                                      \
    return cushim::atomic(p, [v]([[maybe_unused]] T old) -> T { return result; }); \
  }
#define CUSHIM_ATOMICS(T)                            \
  CUSHIM_ATOMIC(atomicAdd, T, old + v)               \
  CUSHIM_ATOMIC(atomicMax, T, old < v ? v : old)     \
  CUSHIM_ATOMIC(atomicMin, T, v < old ? v : old)     \
  CUSHIM_ATOMIC(atomicOr, T, old | v)                \
  CUSHIM_ATOMIC(atomicAnd, T, old & v)               \
  CUSHIM_ATOMIC(atomicExch, T, v)                    \
  inline T atomicCAS(T* p, T expected, T v) {        \
    return cushim::atomic(p, [=](T old) -> T { return old == expected ? v : old; }); \
  }
CUSHIM_ATOMICS(int)
CUSHIM_ATOMICS(unsigned)
CUSHIM_ATOMICS(unsigned long long)
inline unsigned atomicInc(unsigned* p, unsigned last) {
  return cushim::atomic(p, [=](unsigned old) { return old >= last ? 0 : old + 1; });
}

// ------------------------------------------------------------------------ memory, bits, arithmetic

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, T v) { *p = v; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }
template <class T> inline void __stwt(T* p, T v) { *p = v; }
inline size_t __cvta_generic_to_shared(const void* p) { return cushim::shared_address(p); }

inline float __uint_as_float(unsigned v) { return cushim::bits<float>(v); }
inline unsigned __float_as_uint(float v) { return cushim::bits<unsigned>(v); }
inline float __int_as_float(int v) { return cushim::bits<float>(v); }
inline int __float_as_int(float v) { return cushim::bits<int>(v); }
inline double __longlong_as_double(long long v) { return cushim::bits<double>(v); }
inline long long __double_as_longlong(double v) { return cushim::bits<long long>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned __int128)a * b >> 64;
}

#define OF_FLOAT(name) \
  inline float name(float x) { return name##f(x); }
OF_FLOAT(sqrt) OF_FLOAT(exp) OF_FLOAT(log) OF_FLOAT(log1p) OF_FLOAT(fabs)
#undef OF_FLOAT
inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
inline float pow(float a, float b) { return powf(a, b); }
inline float fmin(float a, float b) { return fminf(a, b); }
inline float fmax(float a, float b) { return fmaxf(a, b); }

inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline double rsqrt(double x) { return 1. / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }

// As CUDA has them: of one type, or of two integers; of floats, the number where one is NaN.
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
  typedef std::common_type_t<A, B> C;
  if constexpr (std::is_floating_point_v<C>) return fmin((C)a, (C)b);
  else return (C)b < (C)a ? (C)b : (C)a;
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
  typedef std::common_type_t<A, B> C;
  if constexpr (std::is_floating_point_v<C>) return fmax((C)a, (C)b);
  else return (C)a < (C)b ? (C)b : (C)a;
}
