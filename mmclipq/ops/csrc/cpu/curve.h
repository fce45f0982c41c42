// Smooth activations by cubic curves that are near enough to tell the code, but for values close to a
// tie, which are then computed operation by operation.
#pragma once

#include <cstdint>

// From values before the activation to codes. Value x, clipped to [low, high], lies in piece n =
// round(x * per_width); its place is ((c3 x + c2) x + c1) x + c0, the coefficients those of n modulo
// kPieces. The last bits of a place, fraction(clipped) of them, are its fraction, the bits above it end
// with those of the code: c0 holds magic(clipped), the offset, a half for rounding, and the largest
// error of a place, so that fractions of less than twice that error, and no others, may belong to
// either of two codes.
struct ClipqCurve {
  static constexpr int kPieces = 32;
  float coefficients[4][kPieces];
  float low, high, per_width;
  int32_t sure;     // bits of the fraction that are all zero where the code is not certain
  int32_t clipped;  // whether no place leaves the range of codes, so that fewer bits hold it

  static constexpr int fraction(bool clipped) { return clipped ? 14 : 12; }
  // 1.5 * 2^(23 - fraction), and its bits less those of the fraction.
  static constexpr float magic(bool clipped) { return clipped ? 768.0f : 3072.0f; }
  static constexpr int32_t magic_code(bool clipped) { return clipped ? 0x11100 : 0x45400; }
};

struct ClipqEpilogue;

// The curve of an epilogue without its own, or false where none is near enough.
bool clipq_fit_curve(const ClipqEpilogue &epilogue, ClipqCurve *curve);
