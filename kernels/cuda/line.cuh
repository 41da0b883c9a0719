// slope * x + shift, written as (x - zero) * slope + rest.
//
// Where a channel's mean is many times its standard deviation, slope * x and shift are large and nearly
// cancel. x - zero, with `zero` where the line is zero, cancels before anything is rounded. `zero` itself
// has to be rounded; `rest` makes up for that, exactly but for its own rounding (one fused operation).
#pragma once
#include "common.cuh"

struct Line {
  real zero, slope, rest;
  DEVICE real at(real x) const { return (x - zero) * slope + rest; }
};

DEVICE real fused(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE real fused(double a, double b, double c) { return fma(a, b, c); }

DEVICE Line line(real slope, real shift) {
  real zero = -shift / slope;
  if (!(zero - zero == 0)) zero = 0;  // not finite: the line is level
  return {zero, slope, fused(slope, zero, shift)};
}

// The lines of N channels from c on.
template <int N>
DEVICE void load_lines(const real* __restrict__ slope, const real* __restrict__ shift, int c,
                       Line (&lines)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) lines[i] = line(slope[c + i], shift[c + i]);
}
