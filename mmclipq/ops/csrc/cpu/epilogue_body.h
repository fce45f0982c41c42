// Compiled by epilogue.cpp through targets.h.

// Results of the layer's channels from `channel` on, all lanes or the first `count`.
template <int kActivation, int kOrder, bool kAll, typename Result, typename Near>
CLIPQ_INLINE void put(const ClipqEpilogue &e, [[maybe_unused]] const Near &near,
                      const int32_t *sums, const uint8_t *residual, int64_t channel, Result *to,
                      int64_t count) {
  const Ints sum = kAll ? load<Ints>(sums) : load_first<Ints>(sums, count);
  Floats v = __builtin_convertvector(sum, Floats);
  v = v * load<Floats>(e.multiplier + channel);
  v = v + load<Floats>(e.bias + channel);
  Floats r{};
  if (kOrder) {
    const Codes codes = kAll ? load<Codes>(residual) : load_first<Codes>(residual, count);
    r = numbers(codes, e.residual) * e.residual_step;
  }
  if (kOrder == 1) v = v + r;
  const auto finish = [&](auto result) {
    if (kAll) {
      store(result, to);
    } else {
      store_first(result, to, count);
    }
  };
#ifdef CLIPQ_AVX512
  if constexpr (Near::value) {
    Floats place = near.curve(v);
    if (kOrder == 2) place = place + r * e.scale;
    Codes codes;
    if (__builtin_expect(near.curve.codes(place, &codes), 1)) return finish(codes);
  }
#endif
  v = activate<kActivation>(v, e.alpha);
  if (kOrder == 2) v = v + r;
  if constexpr (sizeof(Result) == 1) {
    finish(codes_of(v * e.scale, e.dst));
  } else {
    finish(v);
  }
}

// Without a curve.
struct Exactly {
  static constexpr bool value = false;
};

#ifdef CLIPQ_AVX512
template <bool kClipped>
struct Nearly {
  static constexpr bool value = true;
  Curve<kClipped> curve;
};
#endif

struct Rows {
  const ClipqEpilogue &epilogue;
  const int32_t *sums;
  int64_t sum_stride;
  const uint8_t *residual;
  int64_t residual_stride;
  void *dst;
  int64_t dst_stride, pixels, first, channels;

  // `kVectors`: those of a pixel, the last one perhaps in part, or 0 for any number.
  template <int kActivation, int kOrder, typename Result, int kVectors, typename Near>
  CLIPQ_INLINE void run_pixels(const Near &near) const {
    const ClipqEpilogue e = epilogue;  // a copy, which no store can change
    const int64_t channels = this->channels, first = this->first, pixels = this->pixels;
    const int64_t rest = channels % kLanes;
    const int64_t whole = (kVectors ? kVectors - (rest != 0) : channels / kLanes) * kLanes;
    const int32_t *from = sums;
    const uint8_t *added = residual;
    Result *to = static_cast<Result *>(dst);
    const int64_t from_step = sum_stride, added_step = residual_stride, to_step = dst_stride;
    const auto all_of = [&](int64_t c) __attribute__((always_inline)) {
      put<kActivation, kOrder, true>(e, near, from + c, added + c, first + c, to + c, kLanes);
    };
    for (int64_t i = 0; i < pixels; ++i, from += from_step, to += to_step) {
      if constexpr (kVectors) {
#pragma GCC unroll 2
        for (int64_t c = 0; c < (kVectors - 1) * kLanes; c += kLanes) all_of(c);
        if (!rest) all_of((kVectors - 1) * kLanes);
      } else {
        for (int64_t c = 0; c < whole; c += kLanes) all_of(c);
      }
      if (rest) {
        put<kActivation, kOrder, false>(e, near, from + whole, added + whole, first + whole, to + whole,
                                        rest);
      }
      if (kOrder) added += added_step;
    }
  }

  template <int kActivation, int kOrder, typename Result, typename Near>
  CLIPQ_INLINE void run(const Near &near) const {
    if constexpr (Near::value) {
      switch ((channels + kLanes - 1) / kLanes) {
        case 1: return run_pixels<kActivation, kOrder, Result, 1>(near);
        case 2: return run_pixels<kActivation, kOrder, Result, 2>(near);
        case 3: return run_pixels<kActivation, kOrder, Result, 3>(near);
      }
    }
    run_pixels<kActivation, kOrder, Result, 0>(near);
  }

  template <int kActivation, int kOrder, typename Result>
  CLIPQ_INLINE void run() const {
#ifdef CLIPQ_AVX512
    if constexpr (kActivation == kSilu && sizeof(Result) == 1) {
      if (epilogue.curve != nullptr) {
        const auto run_curve = [&](auto clipped) __attribute__((always_inline)) {
          constexpr bool kClipped = decltype(clipped)::value;
          const Curve<kClipped> curve(*epilogue.curve, epilogue.dst);
          run<kActivation, kOrder, Result>(Nearly<kClipped>{curve});
        };
        if (kOrder < 2 && epilogue.curve->clipped) return run_curve(Constant<kOrder < 2>{});
        return run_curve(Constant<0>{});
      }
    }
#endif
    run<kActivation, kOrder, Result>(Exactly{});
  }

  template <int kActivation>
  void any() const {
    if (epilogue.dst_float) {
      if (epilogue.residual_order == 1) return run<kActivation, 1, float>();
      if (epilogue.residual_order == 2) return run<kActivation, 2, float>();
      return run<kActivation, 0, float>();
    }
    if (epilogue.residual_order == 1) return run<kActivation, 1, uint8_t>();
    if (epilogue.residual_order == 2) return run<kActivation, 2, uint8_t>();
    return run<kActivation, 0, uint8_t>();
  }
};

void finish(const ClipqEpilogue &epilogue, const int32_t *sums, int64_t sum_stride,
            const uint8_t *residual, int64_t residual_stride, void *dst, int64_t dst_stride,
            int64_t pixels, int64_t first, int64_t channels) {
  const Rows rows{epilogue, sums,       sum_stride, residual, residual_stride,
                  dst,      dst_stride, pixels,     first,    channels};
  for_activation(epilogue.activation, [&](auto chosen) {
    rows.any<decltype(chosen)::value>();
  });
}
