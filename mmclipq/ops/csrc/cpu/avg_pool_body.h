// Compiled by avg_pool.cpp through targets.h.

// Adds codes less their offset to the sums of their channels.
void add_pixel(const uint8_t *codes, int32_t *sums, int64_t channels, const ClipqCodes &given) {
  const ClipqCodes kind = given;
  for_lanes(codes, sums, sums, channels, [&](const uint8_t *x, const int32_t *sum, int32_t *to) {
    store(load<Ints>(sum) + integers(x, kind), to);
  });
}

void average(const int32_t *sums, float inverse, float scale, uint8_t *dst, int64_t channels,
             const ClipqCodes &given) {
  const ClipqCodes kind = given;
  for_lanes(sums, sums, dst, channels, [&](const int32_t *sum, const int32_t *, uint8_t *to) {
    const Floats v = __builtin_convertvector(load<Ints>(sum), Floats) * inverse;
    store(codes_of(v * scale, kind), to);
  });
}
