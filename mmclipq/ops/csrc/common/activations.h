// Activations of mmclipq/ops/activations.py, operation by operation, of a float or of a vector of
// them: whoever includes this says in `Ops` what an operation is. Each is rounded by itself. No include
// guard, because the CPU's operators include it once for each kind of processor.

#ifndef CLIPQ_EVERYWHERE
#define CLIPQ_EVERYWHERE inline __attribute__((always_inline))
#endif

// `Ops` gives: all(float), mul, add, sub, div, smaller, larger, below_zero(v, a, b), and
// scaled_by_power(p, t), p * 2^n of the n that lies in the last bits of t = n + 1.5 * 2^23, and
// less_exact(a, b, c), a - b * c where b * c needs no rounding.
template <typename Ops>
struct ClipqActivations {
  using V = typename Ops::Value;

  static CLIPQ_EVERYWHERE V all(float v) { return Ops::all(v); }
  static CLIPQ_EVERYWHERE V mul(V a, V b) { return Ops::mul(a, b); }
  static CLIPQ_EVERYWHERE V add(V a, V b) { return Ops::add(a, b); }
  static CLIPQ_EVERYWHERE V sub(V a, V b) { return Ops::sub(a, b); }
  static CLIPQ_EVERYWHERE V inverse(V a) { return Ops::div(all(1.0f), a); }
  static CLIPQ_EVERYWHERE V clamp(V a, float low, float high) {
    return Ops::smaller(Ops::larger(a, all(low)), all(high));
  }
  static CLIPQ_EVERYWHERE V negative(V a) { return mul(a, all(-1.0f)); }

  static CLIPQ_EVERYWHERE V exp(V x) {
    x = clamp(x, -87.0f, 88.0f);
    // Adding 1.5 * 2^23 leaves no room for a fraction, which rounds it half to even.
    const V t = add(mul(x, all(1.4426950216293335f)), all(12582912.0f));
    const V n = sub(t, all(12582912.0f));
    V r = Ops::less_exact(x, n, all(0.693359375f));
    r = sub(r, mul(n, all(-2.1219444170128554e-4f)));
    V p = add(mul(all(0.0013933652080595493f), r), all(0.008363181725144386f));
    p = add(mul(p, r), all(0.04166646674275398f));
    p = add(mul(p, r), all(0.16666576266288757f));
    p = add(mul(p, r), all(0.5f));
    p = mul(p, mul(r, r));
    p = add(add(p, r), all(1.0f));
    return Ops::scaled_by_power(p, t);
  }

  static CLIPQ_EVERYWHERE V hardsigmoid(V x) {
    return mul(clamp(add(x, all(3.0f)), 0.0f, 6.0f), all(0.1666666716337204f));
  }

  static CLIPQ_EVERYWHERE V gelu(V x) {
    const V z = mul(Ops::larger(x, negative(x)), all(0.7071067690849304f));
    const V t = inverse(add(mul(z, all(0.32759109139442444f)), all(1.0f)));
    V p = add(mul(all(1.0614054203033447f), t), all(-1.453152060508728f));
    p = add(mul(p, t), all(1.421413779258728f));
    p = add(mul(p, t), all(-0.2844967246055603f));
    p = add(mul(p, t), all(0.2548295855522156f));
    p = mul(p, t);
    p = mul(p, exp(negative(mul(z, z))));
    const V above = mul(p, all(0.5f));
    return mul(x, Ops::below_zero(x, above, sub(all(1.0f), above)));
  }

  static CLIPQ_EVERYWHERE V gelu_tanh(V x) {
    V u = mul(x, x);
    u = mul(u, all(0.044714998453855515f));
    u = add(u, all(1.0f));
    u = mul(u, x);
    return Ops::div(x, add(exp(mul(u, all(-1.5957691669464111f))), all(1.0f)));
  }

  static CLIPQ_EVERYWHERE V mish(V x) {
    const V e = exp(Ops::smaller(x, all(20.0f)));
    const V n = mul(e, add(e, all(2.0f)));
    return mul(x, Ops::div(n, add(n, all(2.0f))));
  }

  // `alpha`: slope of ReLU's negative side, upper bound of the clip, or alpha of ELU.
  template <int kActivation>
  static CLIPQ_EVERYWHERE V activate(V v, float alpha) {
    switch (kActivation) {
      case kReLU: return Ops::below_zero(v, mul(v, all(alpha)), v);
      case kClip: return clamp(v, 0.0f, alpha);
      case kSilu: return Ops::div(v, add(exp(negative(v)), all(1.0f)));
      case kSigmoid: return inverse(add(exp(negative(v)), all(1.0f)));
      case kTanh:
        return sub(mul(inverse(add(exp(mul(v, all(-2.0f))), all(1.0f))), all(2.0f)), all(1.0f));
      case kHardswish: return mul(v, hardsigmoid(v));
      case kHardsigmoid: return hardsigmoid(v);
      case kGelu: return gelu(v);
      case kGeluTanh: return gelu_tanh(v);
      case kElu: return Ops::below_zero(v, mul(sub(exp(v), all(1.0f)), all(alpha)), v);
      case kMish: return mish(v);
      case kExp: return exp(v);
      default: return v;
    }
  }
};
