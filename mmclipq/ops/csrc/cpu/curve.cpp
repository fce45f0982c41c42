// Fits the cubic pieces of SiLU: pieces of one width from where the code no longer changes, or in small
// ranges from a few times its top, to where it saturates.

#include "curve.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "api.h"
#include "codes.h"

namespace {

constexpr int kSamples = 64;  // of a piece
constexpr double kUnit = 1.0 / (1 << 24);  // of float32's rounding, relative
constexpr double kFarthest = 1000;         // steps that the bits of a place hold
constexpr double kFewUnsure = 0.004, kMostUnsure = 0.04;  // of the values

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

// From coefficients of powers of r = x * per_width - n to those of powers of x.
void expand(double per_width, int n, double c[4]) {
  double p[4] = {c[3], 0, 0, 0};
  for (int i = 2; i >= 0; --i) {
    for (int k = 3; k > 0; --k) p[k] = p[k - 1] * per_width - n * p[k];
    p[0] = c[i] - n * p[0];
  }
  std::copy(p, p + 4, c);
}

class Fit {
 public:
  Fit(const ClipqEpilogue &e, ClipqCurve *curve) : e_(e), curve_(curve) {}

  // Pieces from `low` to `high`; below, the place is that of `low` if it `ends` there, else unknown.
  // Returns the share of values whose code is not certain.
  double pieces(double low, double high, bool ends) {
    curve_->per_width = static_cast<float>((ClipqCurve::kPieces - 3) / (high - low));
    const double per_width = static_cast<double>(curve_->per_width), width = 1 / per_width;
    const auto first = static_cast<int>(std::nearbyint(low * per_width));
    curve_->low = static_cast<float>(ends ? low : (first - 1) * width);
    curve_->high = static_cast<float>(high);
    const auto last = static_cast<int>(std::nearbyint(high * per_width));
    for (auto &c : curve_->coefficients) std::fill(std::begin(c), std::end(c), 0.0f);
    double worst = 0, lowest = place(high), highest = lowest;
    for (int n = first; n <= last; ++n) {
      double c[4];
      fit([&](double r) { return place((n + r) * width); }, c);
      expand(per_width, n, c);
      float *to = curve_->coefficients[0] + at(n);
      for (int k = 0; k < 4; ++k) to[k * ClipqCurve::kPieces] = static_cast<float>(c[k]);
      for (int s = 0; s <= kSamples; ++s) {
        const double x = (n + static_cast<double>(s) / kSamples - 0.5) * width;
        worst = std::max(worst, error(to, x));
        lowest = std::min(lowest, place(x));
        if (x <= high) highest = std::max(highest, place(x));
      }
    }
    return finish(first, last, worst, lowest, highest);
  }

  double place(double v) const { return silu(v) * static_cast<double>(e_.scale); }

  // What residual codes add behind the activation, at most.
  double span() const {
    return e_.residual_order == 2
               ? 256 * static_cast<double>(e_.residual_step) * static_cast<double>(e_.scale)
               : 0;
  }

 private:
  static int at(int n) { return n & (ClipqCurve::kPieces - 1); }

  // How far a place may lie from the reference's: what the cubic misses, its roundings, and those of
  // the activation operation by operation.
  double error(const float *c, double x) const {
    const auto of = [&](int k) { return static_cast<double>(c[k * ClipqCurve::kPieces]); };
    const double q = of(3) * x + of(2), p = q * x + of(1), wanted = place(x);
    return 1.25 * std::abs(p * x + of(0) - wanted) +
           kUnit * (std::abs(q) * x * x + std::abs(p * x) + 8 * std::abs(wanted));
  }

  double finish(int first, int last, double worst, double lowest, double highest) {
    const double span = this->span();
    if (std::max(highest, -lowest) + span + std::abs(e_.dst.offset) > kFarthest) return 1;
    const bool clipped = span == 0 && worst < 0.1 &&
                         highest < static_cast<double>(e_.dst.high) + 0.25 &&
                         lowest > static_cast<double>(e_.dst.low) - 0.25;
    const int fraction = ClipqCurve::fraction(clipped);
    const double grid = 1 << fraction;
    // c0 and the place are rounded to the grid, and so is the sum with the residual's.
    worst += 1 / grid;
    if (span > 0) worst += 0.5 / grid + 4 * kUnit * (span + highest - lowest);
    int unsure = 0;
    while (unsure < fraction && (1 << unsure) <= 2 * worst * grid) ++unsure;
    curve_->sure = (1 << fraction) - (1 << unsure);
    curve_->clipped = clipped;
    const double added =
        static_cast<double>(ClipqCurve::magic(clipped)) + e_.dst.offset + 0.5 + worst;
    // Of the other pieces nothing is certain: the fraction of what is no number is zero, whatever is
    // added to it.
    float *c0 = curve_->coefficients[0];
    for (int i = 0; i < ClipqCurve::kPieces; ++i) {
      const bool used = at(i - first) <= last - first;
      c0[i] = used ? static_cast<float>(c0[i] + added) : std::numeric_limits<float>::quiet_NaN();
    }
    return (1 << unsure) / grid;
  }

  const ClipqEpilogue &e_;
  ClipqCurve *curve_;
};

}  // namespace

bool clipq_fit_curve(const ClipqEpilogue &e, ClipqCurve *curve) {
  if (e.activation != kSilu || e.dst_float) return false;
  Fit fit(e, curve);
  // From the top on the code stays that at the top, and below `low` zero's; with residual codes added
  // behind the activation the former holds as well, the latter does not.
  const double top = static_cast<double>(e.dst.high) + fit.span();
  double low = -2, high = 1 / static_cast<double>(e.scale);
  while (fit.place(low) < -0.25) low -= 0.125;
  while (fit.place(high) < top) high *= 1.03125;
  double below = high / 1.03125;
  for (int i = 0; i < 60; ++i) {
    const double middle = (below + high) / 2;
    (fit.place(middle) < top ? below : high) = middle;
  }
  const double unsure = fit.pieces(low, high, e.residual_order != 2);
  if (unsure <= kFewUnsure) return true;
  // In small ranges few values lie far below; those are computed operation by operation.
  const ClipqCurve whole = *curve;
  const double near = fit.pieces(-2 * high, high, false);
  if (near >= unsure) *curve = whole;
  return std::min(near, unsure) <= kMostUnsure;
}
