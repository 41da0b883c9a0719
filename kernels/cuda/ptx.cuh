// Every instruction that C++ has no name for, and all inline PTX of the project: matrix products on tensor
// cores, loads of their operands, and copies to shared memory that run by themselves. For sm_80 and later.
//
// A fragment is what one thread of a warp holds of a small matrix. With g = lane / 4 and q = lane % 4
// (PTX ISA, "Matrix Fragments for mma.m16n8k8" and "... m16n8k16"), the accumulator of 16 x 8 is
//     d[0], d[1]: row g, columns 2q, 2q + 1        d[2], d[3]: row g + 8, the same columns.
//
// On the CPU (CUSHIM) each wrapper calls a twin with the same fragments, written from the same manual.
#pragma once
#include "types.cuh"

#ifdef CUSHIM

template <class Type>
DEVICE void keep_in_register(Type&) {}
DEVICE u32 to_tf32(float x) { return cushim::tf32_rna(x); }
DEVICE u32 pack_bf16(float low, float high) {
  return cushim::bf16_rn(low) | (u32)cushim::bf16_rn(high) << 16;
}
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, CUSHIM_CALLER) {
  const u32 b[2] = {b0, b1};
  cushim::mma_m16n8k8_tf32(d, a, b, site);
}
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, CUSHIM_CALLER) {
  const u32 b[2] = {b0, b1};
  cushim::mma_m16n8k16_bf16(d, a, b, site);
}
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row, CUSHIM_CALLER) {
  cushim::ldmatrix(r, 4, false, row, site);
}
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row, CUSHIM_CALLER) {
  cushim::ldmatrix(r, 4, true, row, site);
}
template <int BYTES>
DEVICE void cp_async(void* shared, const void* global, bool valid, CUSHIM_CALLER) {
  cushim::cp_async(shared, global, BYTES, valid ? BYTES : 0, site);
}
DEVICE void cp_async_commit() { cushim::cp_async_commit(); }
template <int GROUPS_LEFT>
DEVICE void cp_async_wait() {
  cushim::cp_async_wait(GROUPS_LEFT);
}
DEVICE u64 wgmma_operand(const void* tile, int leading, int stride, CUSHIM_CALLER) {
  return cushim::wgmma_operand(tile, leading, stride, site);
}
DEVICE void wgmma_fence(CUSHIM_CALLER) { cushim::wgmma_fence(site); }
template <int N, bool A_ACROSS, bool B_ACROSS>
DEVICE void wgmma_m64k16_bf16(float (&d)[N / 8][4], u64 a, u64 b, CUSHIM_CALLER) {
  static_assert(N == 64 || N == 128, "the widths that we use");
  cushim::wgmma_bf16(&d[0][0], N, a, b, A_ACROSS, B_ACROSS, site);
}
DEVICE void wgmma_commit(CUSHIM_CALLER) { cushim::wgmma_commit(site); }
template <int GROUPS_LEFT>
DEVICE void wgmma_wait(CUSHIM_CALLER) {
  cushim::wgmma_wait(GROUPS_LEFT, site);
}
DEVICE void fence_proxy_async() { cushim::fence_proxy_async(); }

#else

// The block's dynamic shared memory, as a pointer to Type.
#define DYN_SHARED(Type, name)                                        \
  extern __shared__ __align__(1024) unsigned char dynamic_shared_[];  \
  Type* name = reinterpret_cast<Type*>(dynamic_shared_)

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Forget how x was computed. What depends on the thread only the compiler would rather compute again for each
// slice than hold in a register.
DEVICE void keep_in_register(int& x) { asm volatile("" : "+r"(x)); }
template <int COUNT>
DEVICE void keep_in_register(float (&d)[COUNT][4]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
}

// Round to tf32 (10 bits of fraction), to nearest, ties away from zero.
DEVICE u32 to_tf32(float x) {
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Round two numbers to bfloat16, to nearest, ties to even: the first into the lower half.
DEVICE u32 pack_bf16(float low, float high) {
  u32 bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// d += a b, 16 x 8 by 8 x 8.  a[0]: (g, q)  a[1]: (g + 8, q)  a[2]: (g, q + 4)  a[3]: (g + 8, q + 4)
// b0: (q, g)  b1: (q + 4, g), as (row, column).
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b, 16 x 16 by 16 x 8, two numbers in a register, the one with the lower index in the lower half.
// a[0]: (g, 2q ..)  a[1]: (g + 8, 2q ..)  a[2]: (g, 2q + 8 ..)  a[3]: (g + 8, 2q + 8 ..)
// b0: (2q .., g)  b1: (2q + 8 .., g), as (row, column).
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements. Lane 8 j + i gives the address of row i of matrix j: 16 bytes
// at a multiple of 16. r[j] holds elements 2q, 2q + 1 of row g of matrix j (transposed: of column g).
// Without transposition the elements may as well be 4 words of 32 bits: r[j] is then word q of row g.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Start copying 4, 8 or 16 bytes to shared memory, or zeros if not valid; both addresses are multiples
// of BYTES. `global` must be an address inside an array even if nothing is read from it.
template <int BYTES>
DEVICE void cp_async(void* shared, const void* global, bool valid) {
  const int bytes_read = valid ? BYTES : 0;
  if constexpr (BYTES == 16)  // past the first-level cache; the rest of the line is wanted soon
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes_read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(BYTES), "r"(bytes_read)
                 : "memory");
}
// Copies that this thread started since the last call become a group.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until all but the latest GROUPS_LEFT groups of this thread are there.
template <int GROUPS_LEFT>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}

// ---- products of a warpgroup: four warps, operands in shared memory. For sm_90a, and that alone ----

// A tile of bf16 with rows of 128 bytes, eight of which, from a multiple of 1024 bytes on, have their chunks of 16
// bytes in places of their own: chunk c of row r lies where c ^ r would (PTX ISA, "Matrix Descriptor Format").
// stride: bytes from eight rows to the next eight. leading: where rows run along m or n ("across" k), bytes from 64
// elements of it to the next; where they run along k, nothing.
DEVICE u64 wgmma_operand(const void* tile, int leading, int stride) {
  const u32 low = (shared_address(tile) >> 4 & 0x3fff) | (u32)leading >> 4 << 16;
  const u32 swizzle_128_bytes = 1u << 30, high = (u32)stride >> 4 | swizzle_128_bytes;
  return low | (u64)high << 32;
}

// Registers written so far may be those of the sums from now on.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

#define SUMS_OF(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SUMS_OF_8(j) \
  SUMS_OF(j), SUMS_OF(j + 1), SUMS_OF(j + 2), SUMS_OF(j + 3), SUMS_OF(j + 4), SUMS_OF(j + 5), \
      SUMS_OF(j + 6), SUMS_OF(j + 7)

// d += a b, 64 x 16 by 16 x N, begun. d[j]: of columns 8 j .. 8 j + 7 and the warp's 16 rows, as of mma.m16n8.
// ACROSS: whether that operand's rows run along m or n and not along k.
template <int N, bool A_ACROSS, bool B_ACROSS>
DEVICE void wgmma_m64k16_bf16(float (&d)[N / 8][4], u64 a, u64 b) {
  static_assert(N == 64 || N == 128, "the widths that we use");
  if constexpr (N == 64)
    asm volatile(
        "{.reg .pred add; setp.ne.b32 add, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, add, 1, 1, %34, %35;}"
        : SUMS_OF_8(0)
        : "l"(a), "l"(b), "n"((int)A_ACROSS), "n"((int)B_ACROSS)
        : "memory");
  else
    asm volatile(
        "{.reg .pred add; setp.ne.b32 add, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, add, 1, 1, %66, %67;}"
        : SUMS_OF_8(0), SUMS_OF_8(8)
        : "l"(a), "l"(b), "n"((int)A_ACROSS), "n"((int)B_ACROSS)
        : "memory");
}
#undef SUMS_OF_8
#undef SUMS_OF

// Products begun since the last call become a group.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until all but the latest GROUPS_LEFT groups are there. After it comes `keep_in_register(d)`: the compiler takes
// d for written when the product began, and might use it before the wait.
template <int GROUPS_LEFT>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS_LEFT) : "memory");
}

// What this thread has written to shared memory, copies that arrived included, becomes visible to products of a
// warpgroup that begin after a barrier.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif
