// Smooth activations by cubic curves that are near enough to tell the code, but for values close to a
// tie, which are then computed operation by operation.
#pragma once

#include <cstdint>

// From values before the activation to codes. Value x, clipped to [low, high], lies in piece n =
// round(x * per_width); its place is ((c3 x + c2) x + c1) x + c0, the coefficients those of n modulo
// kPieces. The last kFraction bits of a place are its fraction, the bits above it end with those of the
// code: c0 holds kMagic, the offset, a half for rounding, and the largest error of a place, so that
// fractions of less than twice that error, and no others, may belong to either of two codes.
struct ClipqCurve {
  static constexpr int kPieces = 32, kFraction = 12;
  static constexpr float kMagic = 3072.0f;            // 1.5 * 2^(23 - kFraction)
  static constexpr int32_t kMagicCode = 0x45400;      // its bits less those of the fraction
  float coefficients[4][kPieces];
  float low, high, per_width;
  int32_t sure;     // bits of the fraction that are all zero where the code is not certain
  int32_t clipped;  // whether no place leaves the range of codes
};

struct ClipqEpilogue;

// The curve of an epilogue without its own, or false where none is near enough.
bool clipq_fit_curve(const ClipqEpilogue &epilogue, ClipqCurve *curve);
