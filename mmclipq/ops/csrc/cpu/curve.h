// Smooth activations by cubic curves that are near enough to tell the code, but for values close to a
// tie, which are then computed operation by operation.
#pragma once

#include <cstdint>

// From values before the activation to steps of the result. Value x lies in piece n = round(x /
// width), r = x / width - n; its place is ((c3 r + c2) r + c1) r + c0, the coefficients those of n
// modulo kPieces. Beyond low and high the code is that at the end.
struct ClipqCurve {
  static constexpr int kPieces = 32;
  float coefficients[4][kPieces];
  float low, high, per_width;
  float least;  // values below are not known
  float most;  // a place further than this from its nearest whole number may be on the wrong side
};

struct ClipqEpilogue;

// The curve of an epilogue without its own, or false where none is near enough.
bool clipq_fit_curve(const ClipqEpilogue &epilogue, ClipqCurve *curve);
