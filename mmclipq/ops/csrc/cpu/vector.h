// Vectors of kLanes numbers and what is done with them. Included once for each kind of processor,
// inside of a namespace that has kLanes and under its `#pragma GCC target`, so that all of it becomes
// that processor's instructions; see targets.h. Hence no include guard.

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint8_t Codes __attribute__((vector_size(kLanes)));

CLIPQ_INLINE Floats all(float v) { return Floats{} + v; }

template <typename V, typename T>
CLIPQ_INLINE V load(const T *from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename T>
CLIPQ_INLINE void store(V v, T *to) {
  __builtin_memcpy(to, &v, sizeof(V));
}

struct Ops {
  using Value = Floats;
  static CLIPQ_INLINE Floats all(float v) { return Floats{} + v; }
  static CLIPQ_INLINE Floats mul(Floats a, Floats b) { return a * b; }
  static CLIPQ_INLINE Floats add(Floats a, Floats b) { return a + b; }
  static CLIPQ_INLINE Floats sub(Floats a, Floats b) { return a - b; }
  static CLIPQ_INLINE Floats div(Floats a, Floats b) { return a / b; }
  static CLIPQ_INLINE Floats smaller(Floats a, Floats b) { return minimum(a, b); }
  static CLIPQ_INLINE Floats larger(Floats a, Floats b) { return maximum(a, b); }
  static CLIPQ_INLINE Floats below_zero(Floats v, Floats a, Floats b) {
    return v < Floats{} ? a : b;
  }
  static CLIPQ_INLINE Floats scaled_by_power(Floats p, Floats t) {
    return p * reinterpret_cast<Floats>((reinterpret_cast<Ints>(t) + 127) << 23);
  }
};

#include "../common/activations.h"

template <int kActivation>
CLIPQ_INLINE Floats activate(Floats v, float alpha) {
  return ClipqActivations<Ops>::activate<kActivation>(v, alpha);
}

// Codes of either sign less their offset.
CLIPQ_INLINE Ints integers(const uint8_t *codes, const ClipqCodes &kind) {
  const Ints v = __builtin_convertvector(load<Codes>(codes), Ints);
  return (v ^ kind.flip) - kind.subtrahend;
}

CLIPQ_INLINE Floats numbers(const uint8_t *codes, const ClipqCodes &kind) {
  return __builtin_convertvector(integers(codes, kind), Floats);
}

// Codes of `v` in steps: rounded half to even, the offset added, saturated.
CLIPQ_INLINE Codes codes_of(Floats v, const ClipqCodes &kind) {
  v = Ops::smaller(Ops::larger(v, all(kind.low)), all(kind.high));
  // The last bits of the sum are the rounded number.
  const Ints bits = reinterpret_cast<Ints>(v + 12582912.0f) + kind.offset;
  const __m128i bytes = last_bytes(reinterpret_cast<Words>(bits));
  return load<Codes>(&bytes);
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls body(Constant<activation>).
template <typename Body>
CLIPQ_INLINE void for_activation(int32_t activation, Body body) {
  switch (activation) {
    case kReLU: return body(Constant<kReLU>{});
    case kClip: return body(Constant<kClip>{});
    case kSilu: return body(Constant<kSilu>{});
    case kSigmoid: return body(Constant<kSigmoid>{});
    case kTanh: return body(Constant<kTanh>{});
    case kHardswish: return body(Constant<kHardswish>{});
    case kHardsigmoid: return body(Constant<kHardsigmoid>{});
    case kGelu: return body(Constant<kGelu>{});
    case kGeluTanh: return body(Constant<kGeluTanh>{});
    case kElu: return body(Constant<kElu>{});
    case kMish: return body(Constant<kMish>{});
    case kExp: return body(Constant<kExp>{});
    default: return body(Constant<kIdentity>{});
  }
}

// Calls body(pointer...) for kLanes items of the arrays at a time, the last ones in copies.
template <typename A, typename B, typename D, typename Body>
CLIPQ_INLINE void for_lanes(const A *a, const B *b, D *dst, int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(a + i, b + i, dst + i);
  if (i == count) return;
  A last_a[kLanes] = {};
  B last_b[kLanes] = {};
  D last[kLanes];
  for (int64_t k = i; k < count; ++k) {
    last_a[k - i] = a[k];
    last_b[k - i] = b[k];
  }
  body(last_a, last_b, last);
  for (int64_t k = i; k < count; ++k) dst[k] = last[k - i];
}
