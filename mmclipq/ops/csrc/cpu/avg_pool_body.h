// Compiled by avg_pool.cpp through targets.h.

// Adds the codes of pixels, `stride` apart, less their offset to the sums of their channels.
void add_pixels(const uint8_t *codes, int64_t stride, int64_t pixels, int32_t *sums,
                int64_t channels, const ClipqCodes &given) {
  const ClipqCodes kind = given;
  const int64_t whole = channels / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    Ints sum = load<Ints>(sums + c);
    for (int64_t i = 0; i < pixels; ++i) sum += integers(codes + i * stride + c, kind);
    store(sum, sums + c);
  }
  if (whole == channels) return;
  Ints sum = load_first<Ints>(sums + whole, channels - whole);
  for (int64_t i = 0; i < pixels; ++i) {
    sum += integers(load_first<Codes>(codes + i * stride + whole, channels - whole), kind);
  }
  store_first(sum, sums + whole, channels - whole);
}

void average(const int32_t *sums, float inverse, float scale, uint8_t *dst, int64_t channels,
             const ClipqCodes &given) {
  const ClipqCodes kind = given;
  for_lanes(sums, sums, dst, channels, [&](const int32_t *sum, const int32_t *, uint8_t *to) {
    const Floats v = __builtin_convertvector(load<Ints>(sum), Floats) * inverse;
    store(codes_of(v * scale, kind), to);
  });
}
