// One multiplication and one addition for each channel of codes, with given factors or with those of
// group and layer normalization: their statistics are exact integers, see ir.Normalize.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "api.h"

namespace {

// Mean in steps and inverse of the deviation, each operation rounded to double.
void moments(const ClipqAffine &spec, int64_t s, int64_t t, int64_t count, double *mean,
             double *inverse) {
  const double n = static_cast<double>(count);
  *mean = static_cast<double>(s) / n;
  const double variance = std::max(static_cast<double>(t) / n - *mean * *mean, 0.0);
  *inverse = 1.0 / std::sqrt(variance * (spec.step * spec.step) + spec.eps);
}

}  // namespace

#define CLIPQ_BODY "affine_body.h"
#include "targets.h"

namespace {

// Pixels of a piece whose codes stay in the first-level cache.
int64_t piece_of(const ClipqAffine &spec) {
  return std::min<int64_t>(std::max<int64_t>((1 << 14) / spec.channels, 16), 1 << 14);
}

// Factors and terms of each image and channel, from the statistics of its group.
void normalize_groups(const ClipqAffine &spec, const uint8_t *src, float *m, float *b) {
  const int64_t channels = spec.channels, piece = piece_of(spec);
  const int64_t pieces = (spec.pixels + piece - 1) / piece;
  const size_t all = static_cast<size_t>(spec.images * channels);
  std::vector<int64_t> sums(all), squares(all);
#pragma omp parallel
  {
    std::vector<int64_t> some_sums(all), some_squares(all);
#pragma omp for collapse(2) schedule(static) nowait
    for (int64_t image = 0; image < spec.images; ++image) {
      for (int64_t i = 0; i < pieces; ++i) {
        CLIPQ_BEST(add_moments)(spec, src + (image * spec.pixels + i * piece) * channels,
                                std::min(piece, spec.pixels - i * piece),
                                some_sums.data() + image * channels,
                                some_squares.data() + image * channels);
      }
    }
#pragma omp critical
    for (size_t i = 0; i < all; ++i) {
      sums[i] += some_sums[i];
      squares[i] += some_squares[i];
    }
  }
  const int64_t each = channels / spec.groups;
  for (int64_t first = 0; first < spec.images * channels; first += each) {
    int64_t s = 0, t = 0;
    for (int64_t i = first; i < first + each; ++i) {
      s += sums[static_cast<size_t>(i)];
      t += squares[static_cast<size_t>(i)];
    }
    double mean, inverse;
    moments(spec, s, t, each * spec.pixels, &mean, &inverse);
    for (int64_t i = first; i < first + each; ++i) {
      const double g = static_cast<double>(spec.multiplier[i % channels]) * inverse;
      m[i] = static_cast<float>(g * spec.step);
      b[i] = static_cast<float>(static_cast<double>(spec.bias[i % channels]) -
                                (mean * spec.step) * g);
    }
  }
}

}  // namespace

void clipq_step(const ClipqAffine &spec, const ClipqBuffers &buffers) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  auto *dst = buffers.at<char>(spec.dst);
  const int64_t channels = spec.channels, piece = piece_of(spec);
  const int64_t pieces = (spec.pixels + piece - 1) / piece;
  const int64_t item = spec.dst_float ? 4 : 1;
  std::vector<float> m, b;
  if (spec.statistics == kOfGroups) {
    m.resize(static_cast<size_t>(spec.images * channels));
    b.resize(m.size());
    normalize_groups(spec, src, m.data(), b.data());
  }
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t image = 0; image < spec.images; ++image) {
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t count = std::min(piece, spec.pixels - i * piece);
      const int64_t pixel = image * spec.pixels + i * piece;
      const uint8_t *from = src + pixel * channels;
      void *to = dst + pixel * spec.stride * item;
      if (spec.statistics == kGiven) {
        CLIPQ_BEST(affine)(spec, from, spec.multiplier, spec.bias, to, count, false);
      } else if (spec.statistics == kOfGroups) {
        CLIPQ_BEST(affine)(spec, from, m.data() + image * channels, b.data() + image * channels, to,
                           count, false);
      } else {
        std::vector<float> factors(static_cast<size_t>(count * channels)), terms(factors.size());
        for (int64_t k = 0; k < count; ++k) {
          CLIPQ_BEST(normalize_pixel)(spec, from + k * channels, factors.data() + k * channels,
                                      terms.data() + k * channels);
        }
        CLIPQ_BEST(affine)(spec, from, factors.data(), terms.data(), to, count, true);
      }
    }
  }
}
