// Fits the cubic pieces of SiLU: pieces of one width from where the code no longer changes, or in small
// ranges from a few times its top, to where it saturates.

#include "curve.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "api.h"
#include "codes.h"

namespace {

constexpr double kLargestError = 0.02;  // steps; twice that share of values is computed again
constexpr double kSmallError = 0.004;
constexpr double kRounding = 1.0 / 1024;  // steps, of float32 in both ways to a place below 1024
constexpr int kSamples = 64;              // of a piece

double silu(double v) { return v / (1.0 + std::exp(-v)); }

// Coefficients of the cubic through the values of `f` at Chebyshev's points of [-1/2, 1/2].
template <typename Function>
void fit(Function f, double c[4]) {
  double x[4], difference[4];
  for (int i = 0; i < 4; ++i) {
    x[i] = 0.5 * std::cos((2 * i + 1) * M_PI / 8);
    difference[i] = f(x[i]);
  }
  for (int order = 1; order < 4; ++order) {
    for (int i = 3; i >= order; --i) {
      difference[i] = (difference[i] - difference[i - 1]) / (x[i] - x[i - order]);
    }
  }
  // Newton's form, multiplied out from the innermost bracket.
  double p[4] = {difference[3], 0, 0, 0};
  for (int i = 2; i >= 0; --i) {
    for (int k = 3; k > 0; --k) p[k] = p[k - 1] - x[i] * p[k];
    p[0] = difference[i] - x[i] * p[0];
  }
  std::copy(p, p + 4, c);
}

// Fills `curve` from `low` to `high`; returns the largest error of a place.
template <typename Place>
double fit_pieces(Place place, double low, double high, ClipqCurve *curve) {
  curve->per_width = static_cast<float>((ClipqCurve::kPieces - 1) / (high - low));
  curve->low = static_cast<float>(low);
  curve->high = static_cast<float>(high);
  const double width = 1 / static_cast<double>(curve->per_width);
  const auto first = static_cast<int>(std::nearbyint(curve->low * curve->per_width));
  double worst = 0;
  for (int i = 0; i < ClipqCurve::kPieces; ++i) {
    const int n = first + i, at = n & (ClipqCurve::kPieces - 1);
    double c[4];
    fit([&](double r) { return place((n + r) * width); }, c);
    for (int k = 0; k < 4; ++k) curve->coefficients[k][at] = static_cast<float>(c[k]);
    for (int s = 0; s <= kSamples; ++s) {
      const double r = static_cast<double>(s) / kSamples - 0.5;
      const double found = ((c[3] * r + c[2]) * r + c[1]) * r + c[0];
      worst = std::max(worst, std::abs(found - place((n + r) * width)));
    }
  }
  const double error = 2 * worst + kRounding;
  curve->most = static_cast<float>(0.5 - error);
  return error;
}

}  // namespace

bool clipq_fit_curve(const ClipqEpilogue &e, ClipqCurve *curve) {
  if (e.activation != kSilu || e.dst_float) return false;
  const auto place = [&](double v) { return silu(v) * e.scale; };
  // What is added behind the activation may bring any place back to where codes differ.
  const bool added = e.residual_order == 2;
  const double span = added ? 256.0 * e.residual_step * e.scale : 0.0;
  if (span > 512) return false;
  const double top = static_cast<double>(e.dst.high) + 1 + span, tail = added ? 1e-4 : 0.25;
  double low = -2, high = 1 / static_cast<double>(e.scale);
  while (place(low) < -tail) low -= 0.125;
  while (place(high) < top) high *= 1.03125;
  // Below `low` the code stays as it is.
  curve->least = -std::numeric_limits<float>::infinity();
  if (fit_pieces(place, low, high, curve) <= kSmallError) return true;
  // In small ranges few values lie so far below; those are computed operation by operation.
  curve->least = static_cast<float>(-4 * high);
  return fit_pieces(place, -4 * high, high, curve) <= kLargestError;
}
