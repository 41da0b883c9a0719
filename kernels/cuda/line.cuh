// slope * x + shift, written as (x - zero) * slope + rest.
//
// Where a channel's mean is many times its standard deviation, slope * x and shift are large and nearly
// cancel. x - zero, with `zero` where the line is zero, cancels before anything is rounded. `zero` itself
// has to be rounded; `rest` makes up for that, exactly but for its own rounding (one fused operation in
// double). Slope and shift come in double for the same reason: a shift in float32 would have lost as many
// digits as the mean has standard deviations.
#pragma once
#include "common.cuh"

struct Line {
  real zero, slope, rest;
  DEVICE real at(real x) const { return (x - zero) * slope + rest; }
};

DEVICE Line line(double slope, double shift) {
  real zero = -(real)shift / (real)slope;
  if (!(zero - zero == 0)) zero = 0;  // not finite: the line is level
  return {zero, (real)slope, (real)fma(slope, (double)zero, shift)};
}

// The lines of N channels from c on.
template <int N>
DEVICE void load_lines(const double* __restrict__ slope, const double* __restrict__ shift, int c,
                       Line (&lines)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) lines[i] = line(slope[c + i], shift[c + i]);
}
