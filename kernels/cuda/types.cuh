// The names of types and of functions on the device; included by everything else.
#pragma once

#ifdef CUSHIM  // compiled for the CPU, by the tests
#include "cushim.h"
#endif

#define DEVICE __device__ __forceinline__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// bfloat16: the upper half of a float.
struct __align__(2) bf16 {
  u16 bits;
};
