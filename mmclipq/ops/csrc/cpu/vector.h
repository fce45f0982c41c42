// Vectors of kLanes numbers and what is done with them. Included once for each kind of processor,
// inside of a namespace that has kLanes and under its `#pragma GCC target`, so that all of it becomes
// that processor's instructions; see targets.h. Hence no include guard.

#include "lanes.h"

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint8_t Codes __attribute__((vector_size(kLanes)));

CLIPQ_INLINE Floats all(float v) { return Floats{} + v; }

// The first `count` lanes, less than all; nothing is read or written beyond them.
#ifdef CLIPQ_AVX512
CLIPQ_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1 << count) - 1);
}

template <typename V, typename T>
CLIPQ_INLINE V load_first(const T *from, int64_t count) {
  if constexpr (sizeof(T) == 1) {
    const __m128i v = _mm_maskz_loadu_epi8(first_lanes(count), from);
    return load<V>(&v);
  } else {
    return reinterpret_cast<V>(_mm512_maskz_loadu_epi32(first_lanes(count), from));
  }
}

template <typename V, typename T>
CLIPQ_INLINE void store_first(V v, T *to, int64_t count) {
  if constexpr (sizeof(T) == 1) {
    _mm_mask_storeu_epi8(to, first_lanes(count), load<__m128i>(&v));
  } else {
    _mm512_mask_storeu_epi32(to, first_lanes(count), reinterpret_cast<__m512i>(v));
  }
}
#else
template <typename V, typename T>
CLIPQ_INLINE V load_first(const T *from, int64_t count) {
  T copy[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) copy[i] = from[i];
  return load<V>(copy);
}

template <typename V, typename T>
CLIPQ_INLINE void store_first(V v, T *to, int64_t count) {
  T copy[kLanes];
  store(v, copy);
  for (int64_t i = 0; i < count; ++i) to[i] = copy[i];
}
#endif

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
#ifdef CLIPQ_AVX512
  static CLIPQ_INLINE Floats less_exact(Floats a, Floats b, Floats c) {
    return _mm512_fnmadd_ps(b, c, a);
  }
  static CLIPQ_INLINE Floats scaled_by_power(Floats p, Floats t) {
    return _mm512_scalef_ps(p, t - 12582912.0f);
  }
#else
  static CLIPQ_INLINE Floats less_exact(Floats a, Floats b, Floats c) { return a - b * c; }
  static CLIPQ_INLINE Floats scaled_by_power(Floats p, Floats t) {
    return p * reinterpret_cast<Floats>((reinterpret_cast<Ints>(t) + 127) << 23);
  }
#endif
};

#include "../common/activations.h"

template <int kActivation>
CLIPQ_INLINE Floats activate(Floats v, float alpha) {
  return ClipqActivations<Ops>::activate<kActivation>(v, alpha);
}

// Codes of either sign less their offset.
CLIPQ_INLINE Ints integers(Codes codes, const ClipqCodes &kind) {
  // A conversion of vectors would go through pieces of them.
  Packed bytes{};
  __builtin_memcpy(&bytes, &codes, sizeof(codes));
  return (reinterpret_cast<Ints>(widened(bytes)) ^ kind.flip) - kind.subtrahend;
}

CLIPQ_INLINE Ints integers(const uint8_t *codes, const ClipqCodes &kind) {
  return integers(load<Codes>(codes), kind);
}

CLIPQ_INLINE Floats numbers(Codes codes, const ClipqCodes &kind) {
  return __builtin_convertvector(integers(codes, kind), Floats);
}

CLIPQ_INLINE Floats numbers(const uint8_t *codes, const ClipqCodes &kind) {
  return numbers(load<Codes>(codes), kind);
}

#ifdef CLIPQ_AVX512
// A curve in registers, each by its name: of an array the compiler would keep a copy in memory.
template <bool kClipped>
struct Curve {
  __m512 c00, c01, c10, c11, c20, c21, c30, c31, low, high, per_width;
  __m512i sure, least, most;

  explicit CLIPQ_INLINE Curve(const ClipqCurve &from, const ClipqCodes &kind)
      : c00(half(from, 0, 0)), c01(half(from, 0, 1)), c10(half(from, 1, 0)), c11(half(from, 1, 1)),
        c20(half(from, 2, 0)), c21(half(from, 2, 1)), c30(half(from, 3, 0)), c31(half(from, 3, 1)),
        low(_mm512_set1_ps(from.low)), high(_mm512_set1_ps(from.high)),
        per_width(_mm512_set1_ps(from.per_width)), sure(_mm512_set1_epi32(from.sure)),
        least(bits_of(kind.low, kind)), most(bits_of(kind.high, kind)) {}

  // Places of values.
  CLIPQ_INLINE __m512 operator()(__m512 v) const {
    const __m512 x = _mm512_min_ps(_mm512_max_ps(v, low), high);
    // The last bits of the sum are the piece's number.
    const __m512i n =
        _mm512_castps_si512(_mm512_fmadd_ps(x, per_width, _mm512_set1_ps(12582912.0f)));
    __m512 q = _mm512_fmadd_ps(_mm512_permutex2var_ps(c30, n, c31), x,
                               _mm512_permutex2var_ps(c20, n, c21));
    q = _mm512_fmadd_ps(q, x, _mm512_permutex2var_ps(c10, n, c11));
    return _mm512_fmadd_ps(q, x, _mm512_permutex2var_ps(c00, n, c01));
  }

  // Codes of places, and whether all are certain.
  CLIPQ_INLINE bool codes(__m512 place, Codes *codes) const {
    const __m512i bits = _mm512_castps_si512(place);
    __m512i n = _mm512_srli_epi32(bits, ClipqCurve::fraction(kClipped));
    if (!kClipped) n = _mm512_min_epi32(_mm512_max_epi32(n, least), most);
    const __m128i bytes = last_bytes(n);
    __builtin_memcpy(codes, &bytes, sizeof(bytes));
    return _mm512_testn_epi32_mask(bits, sure) == 0;
  }

 private:
  static CLIPQ_INLINE __m512 half(const ClipqCurve &from, int k, int i) {
    return _mm512_loadu_ps(from.coefficients[k] + 16 * i);
  }
  static CLIPQ_INLINE __m512i bits_of(float step, const ClipqCodes &kind) {
    return _mm512_set1_epi32(ClipqCurve::magic_code(kClipped) + static_cast<int32_t>(step) +
                             kind.offset);
  }
};
#endif

// Codes of `v` in steps: rounded half to even, the offset added, saturated.
CLIPQ_INLINE Codes codes_of(Floats v, const ClipqCodes &kind) {
  v = Ops::smaller(Ops::larger(v, all(kind.low)), all(kind.high));
  // The last bits of the sum are the rounded number.
  const Ints bits = reinterpret_cast<Ints>(v + 12582912.0f) + kind.offset;
  const auto bytes = last_bytes(reinterpret_cast<Words>(bits));
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
