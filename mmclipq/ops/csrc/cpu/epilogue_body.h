// Compiled by epilogue.cpp through targets.h.

// kLanes results of the layer's channels from `channel` on.
template <int kActivation, int kOrder, typename Result>
CLIPQ_INLINE void put(const ClipqEpilogue &e, const int32_t *sums, const uint8_t *residual,
                      int64_t channel, Result *to) {
  Floats v = __builtin_convertvector(load<Ints>(sums), Floats);
  v = v * load<Floats>(e.multiplier + channel);
  v = v + load<Floats>(e.bias + channel);
  if (kOrder == 1) v = v + numbers(residual, e.residual) * e.residual_step;
  v = activate<kActivation>(v, e.alpha);
  if (kOrder == 2) v = v + numbers(residual, e.residual) * e.residual_step;
  if constexpr (sizeof(Result) == 1) {
    store(codes_of(v * e.scale, e.dst), to);
  } else {
    store(v, to);
  }
}

struct Rows {
  const ClipqEpilogue &epilogue;
  const int32_t *sums;
  int64_t sum_stride;
  const uint8_t *residual;
  int64_t residual_stride;
  void *dst;
  int64_t dst_stride, pixels, first, channels;

  template <int kActivation, int kOrder, typename Result>
  CLIPQ_INLINE void run() const {
    const ClipqEpilogue e = epilogue;  // a copy, which no store can change
    const int64_t channels = this->channels, first = this->first, pixels = this->pixels;
    const int64_t whole = channels / kLanes * kLanes, rest = channels - whole;
    const int32_t *from = sums;
    const uint8_t *added = residual;
    Result *to = static_cast<Result *>(dst);
    const int64_t from_step = sum_stride, added_step = residual_stride, to_step = dst_stride;
    for (int64_t i = 0; i < pixels; ++i, from += from_step, to += to_step) {
      for (int64_t c = 0; c < whole; c += kLanes) {
        put<kActivation, kOrder>(e, from + c, added + c, first + c, to + c);
      }
      if (rest) {
        int32_t last_sums[kLanes] = {};
        uint8_t last_added[kLanes] = {};
        Result last[kLanes];
        for (int64_t c = 0; c < rest; ++c) last_sums[c] = from[whole + c];
        if (kOrder) {
          for (int64_t c = 0; c < rest; ++c) last_added[c] = added[whole + c];
        }
        put<kActivation, kOrder>(e, last_sums, last_added, first + whole, last);
        for (int64_t c = 0; c < rest; ++c) to[whole + c] = last[c];
      }
      if (kOrder) added += added_step;
    }
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
