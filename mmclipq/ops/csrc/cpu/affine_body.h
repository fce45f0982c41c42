// Compiled by affine.cpp through targets.h.

template <int kActivation, typename Result>
CLIPQ_INLINE void affine_of(const ClipqAffine &spec, const uint8_t *src, const float *m,
                            const float *b, Result *dst, int64_t pixels, bool moves) {
  const ClipqCodes src_kind(spec.src_signed, spec.src_offset);
  const ClipqCodes dst_kind(spec.dst_signed, spec.dst_offset);
  const float scale = spec.scale, alpha = spec.alpha;
  const int64_t channels = spec.channels, stride = spec.stride;
  const int64_t whole = channels / kLanes * kLanes, rest = channels - whole;
  const auto put = [&](const uint8_t *x, const float *factor, const float *term, Result *to) {
    Floats v = numbers(x, src_kind) * load<Floats>(factor);
    v = activate<kActivation>(v + load<Floats>(term), alpha);
    if constexpr (sizeof(Result) == 1) {
      store(codes_of(v * scale, dst_kind), to);
    } else {
      store(v, to);
    }
  };
  const int64_t step = moves ? channels : 0;
  for (int64_t i = 0; i < pixels; ++i, src += channels, dst += stride, m += step, b += step) {
    for (int64_t c = 0; c < whole; c += kLanes) put(src + c, m + c, b + c, dst + c);
    if (rest == 0) continue;
    uint8_t codes[kLanes] = {};
    float factor[kLanes] = {}, term[kLanes] = {};
    Result last[kLanes];
    for (int64_t c = 0; c < rest; ++c) {
      codes[c] = src[whole + c], factor[c] = m[whole + c], term[c] = b[whole + c];
    }
    put(codes, factor, term, last);
    for (int64_t c = 0; c < rest; ++c) dst[whole + c] = last[c];
  }
}

// Results of `pixels`; m and b are those of each channel, and move on to the next pixel's if `moves`.
void affine(const ClipqAffine &spec, const uint8_t *src, const float *m, const float *b, void *dst,
            int64_t pixels, bool moves) {
  for_activation(spec.activation, [&](auto chosen) {
    constexpr int kActivation = decltype(chosen)::value;
    if (spec.dst_float) {
      affine_of<kActivation>(spec, src, m, b, static_cast<float *>(dst), pixels, moves);
    } else {
      affine_of<kActivation>(spec, src, m, b, static_cast<uint8_t *>(dst), pixels, moves);
    }
  });
}

// Adds codes less their offset, and their squares, of at most 2^14 pixels to the sums of each channel.
void add_moments(const ClipqAffine &spec, const uint8_t *src, int64_t pixels, int64_t *sums,
                 int64_t *squares) {
  const ClipqCodes kind(spec.src_signed, spec.src_offset);
  const int64_t channels = spec.channels, whole = channels / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    Ints s{}, t{};
    for (int64_t i = 0; i < pixels; ++i) {
      const Ints q = integers(src + i * channels + c, kind);
      s += q;
      t += q * q;
    }
    for (int k = 0; k < kLanes; ++k) {
      sums[c + k] += s[k];
      squares[c + k] += t[k];
    }
  }
  for (int64_t c = whole; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t q = (src[i * channels + c] ^ kind.flip) - kind.subtrahend;
      sums[c] += q;
      squares[c] += q * q;
    }
  }
}

// Factors and terms of one pixel that is normalized over its channels.
void normalize_pixel(const ClipqAffine &spec, const uint8_t *codes, float *m, float *b) {
  const ClipqCodes kind(spec.src_signed, spec.src_offset);
  const int64_t channels = spec.channels;
  int64_t s = 0, t = 0;
  for (int64_t from = 0; from < channels; from += 1 << 14) {
    int32_t sum = 0;
    uint32_t square = 0;
    for (int64_t c = from; c < std::min<int64_t>(from + (1 << 14), channels); ++c) {
      const int32_t q = (codes[c] ^ kind.flip) - kind.subtrahend;
      sum += q;
      square += static_cast<uint32_t>(q * q);
    }
    s += sum;
    t += square;
  }
  double mean, inverse;
  moments(spec, s, t, channels, &mean, &inverse);
  const double centre = mean * spec.step, step = spec.step;
  const float *weight = spec.multiplier, *bias = spec.bias;
  for (int64_t c = 0; c < channels; ++c) {
    const double g = static_cast<double>(weight[c]) * inverse;
    m[c] = static_cast<float>(g * step);
    b[c] = static_cast<float>(static_cast<double>(bias[c]) - centre * g);
  }
}
