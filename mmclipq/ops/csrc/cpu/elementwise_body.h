// Compiled by elementwise.cpp through targets.h.

void sum(const ClipqSum &spec, const uint8_t *a, const uint8_t *b, uint8_t *dst, int64_t count) {
  const ClipqCodes a_kind(spec.a_signed, spec.a_offset), b_kind(spec.b_signed, spec.b_offset);
  const ClipqCodes dst_kind(spec.dst_signed, spec.dst_offset);
  const float a_step = spec.a_step, b_step = spec.b_step, scale = spec.scale, alpha = spec.alpha;
  for_activation(spec.activation, [&](auto chosen) {
    constexpr int kActivation = decltype(chosen)::value;
    if (b == nullptr) {
      for_lanes(a, a, dst, count, [&](const uint8_t *x, const uint8_t *, uint8_t *to) {
        const Floats v = activate<kActivation>(numbers(x, a_kind) * a_step, alpha);
        store(codes_of(v * scale, dst_kind), to);
      });
    } else {
      for_lanes(a, b, dst, count, [&](const uint8_t *x, const uint8_t *y, uint8_t *to) {
        const Floats v = numbers(x, a_kind) * a_step + numbers(y, b_kind) * b_step;
        store(codes_of(activate<kActivation>(v, alpha) * scale, dst_kind), to);
      });
    }
  });
}

// Values of the channels of one pixel, or of the same channel for all.
template <bool kEach>
CLIPQ_INLINE Floats operand(const uint8_t *codes, Floats same, const ClipqCodes &kind, float step) {
  return kEach ? numbers(codes, kind) * step : same;
}

CLIPQ_INLINE Floats first_of(const uint8_t *codes, const ClipqCodes &kind, float step) {
  return all(static_cast<float>((*codes ^ kind.flip) - kind.subtrahend) * step);
}

// A row of pixels of a sum or product that broadcasts.
template <bool kProduct, bool kEachA, bool kEachB>
CLIPQ_INLINE void pairwise_of(const ClipqPairwise &spec, const uint8_t *a, const uint8_t *b,
                              uint8_t *dst, int64_t pixels, int64_t count) {
  const ClipqCodes a_kind(spec.a_signed, spec.a_offset), b_kind(spec.b_signed, spec.b_offset);
  const ClipqCodes dst_kind(spec.dst_signed, spec.dst_offset);
  const float a_step = spec.a_step, b_step = spec.b_step, scale = spec.scale, alpha = spec.alpha;
  const int64_t next_a = spec.a_strides[2], next_b = spec.b_strides[2], next = spec.stride;
  for_activation(spec.activation, [&](auto chosen) {
    constexpr int kActivation = decltype(chosen)::value;
    for (int64_t i = 0; i < pixels; ++i, a += next_a, b += next_b, dst += next) {
      const Floats same_a = first_of(a, a_kind, a_step), same_b = first_of(b, b_kind, b_step);
      // What is the same for all channels is not read again: those pointers may move.
      const uint8_t *from_a = kEachA ? a : b, *from_b = kEachB ? b : a;
      for_lanes(from_a, from_b, dst, count, [&](const uint8_t *x, const uint8_t *y, uint8_t *to) {
        const Floats one = operand<kEachA>(x, same_a, a_kind, a_step);
        const Floats two = operand<kEachB>(y, same_b, b_kind, b_step);
        const Floats v = kProduct ? one * two : one + two;
        store(codes_of(activate<kActivation>(v, alpha) * scale, dst_kind), to);
      });
    }
  });
}

void pairwise(const ClipqPairwise &spec, const uint8_t *a, const uint8_t *b, uint8_t *dst,
              int64_t pixels, int64_t count) {
  const auto run = [&](auto product) {
    constexpr bool kProduct = decltype(product)::value;
    const bool each_a = spec.a_strides[3], each_b = spec.b_strides[3];
    if (each_a && each_b) return pairwise_of<kProduct, true, true>(spec, a, b, dst, pixels, count);
    if (each_a) return pairwise_of<kProduct, true, false>(spec, a, b, dst, pixels, count);
    return pairwise_of<kProduct, false, true>(spec, a, b, dst, pixels, count);
  };
  if (spec.product) {
    run(Constant<1>{});
  } else {
    run(Constant<0>{});
  }
}

void quantize(const float *src, uint8_t *dst, int64_t count, float scale, const ClipqCodes &given) {
  const ClipqCodes kind = given;
  for_lanes(src, src, dst, count, [&](const float *x, const float *, uint8_t *to) {
    store(codes_of(load<Floats>(x) * scale, kind), to);
  });
}

void dequantize(const uint8_t *src, float *dst, int64_t count, float step,
                const ClipqCodes &given) {
  const ClipqCodes kind = given;
  for_lanes(src, src, dst, count, [&](const uint8_t *x, const uint8_t *, float *to) {
    store(numbers(x, kind) * step, to);
  });
}
