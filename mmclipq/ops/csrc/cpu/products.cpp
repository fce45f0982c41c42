// Int8 convolutions and linear layers with their float32 epilogue, through oneDNN, behind a plain C
// interface that Python calls without holding its lock.
//
// The caller folds the step of the result into multipliers and biases, which powers of two leave
// exact, so that the epilogue is: v = acc * multiplier[c]; v += bias[c]; sum and activation in the
// order given; round half to even and saturate. oneDNN rounds each of these steps on its own.

#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <dnnl.hpp>

#include "api.h"

namespace {

dnnl::engine &engine() {
  static dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

dnnl::memory::data_type data_type(int32_t type) {
  switch (type) {
    case kInt8: return dnnl::memory::data_type::s8;
    case kUint8: return dnnl::memory::data_type::u8;
    default: return dnnl::memory::data_type::f32;
  }
}

}  // namespace

// Geometry and epilogue of one layer; a linear layer has one row and column everywhere.
struct ClipqProduct : ClipqWindow {
  int64_t channels, outputs, groups;
  int32_t linear;
  int32_t src_type, dst_type;
  int32_t activation;
  float alpha;            // slope of ReLU's negative side, or upper bound of the clip
  int32_t has_sum;        // whether the result's buffer holds codes to add
  int32_t sum_type;
  float sum_scale;
  int32_t sum_last;       // after the activation instead of before it
};

// One layer at one shape.
struct ClipqProductStep {
  const void *compiled;
  ClipqPlace src, dst, scratchpad;
};

namespace {

using dnnl::memory;
using Shape = std::vector<int64_t>;

// A layer at one shape, which runs on several threads at once and outlives the layer.
struct Compiled {
  dnnl::primitive primitive;
  memory::desc src, dst, scratchpad;
  std::shared_ptr<memory> weights;
  memory multiplier, bias;

  void run(void *from, void *to, void *scratch) const {
    thread_local dnnl::stream stream(engine());
    primitive.execute(stream, {{DNNL_ARG_SRC, memory(src, engine(), from)},
                               {DNNL_ARG_WEIGHTS, *weights},
                               {DNNL_ARG_BIAS, bias},
                               {DNNL_ARG_DST, memory(dst, engine(), to)},
                               {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, multiplier},
                               {DNNL_ARG_SCRATCHPAD, memory(scratchpad, engine(), scratch)}});
    stream.wait();
  }
};

// oneDNN 3.2 keeps the code that it generates for its brgemm implementations, and for AMX on 1x1
// kernels, for ever; jit_1x1 on AMX also writes beyond the result's end at some shapes. Of the
// others that can do the same, takes the first; they are slower.
template <typename Description>
void take_freed(Description &description, bool is_1x1) {
  Description other(description);
  do {
    const std::string name = other.impl_info_str();
    const bool is_kept = name.rfind("brg", 0) == 0;
    const bool is_amx = name.find("amx") != std::string::npos;
    if (!is_kept && !(is_amx && is_1x1)) {
      description = other;
      return;
    }
  } while (other.next_impl());
}

class Product {
 public:
  Product(const ClipqProduct &spec, const int8_t *weights, const float *multiplier,
          const float *bias)
      : spec_(spec) {
    const int64_t per_group = spec.outputs / spec.groups;
    if (spec.linear) {
      weight_dims_ = {spec.outputs, spec.channels};
    } else if (spec.groups > 1) {
      weight_dims_ = {spec.groups, per_group, spec.channels / spec.groups, spec.kernel[0],
                      spec.kernel[1]};
    } else {
      weight_dims_ = {spec.outputs, spec.channels, spec.kernel[0], spec.kernel[1]};
    }
    const auto tag = spec.linear ? memory::format_tag::nc
                     : spec.groups > 1 ? memory::format_tag::goihw
                                       : memory::format_tag::oihw;
    plain_ = memory({weight_dims_, memory::data_type::s8, tag}, engine(),
                    const_cast<int8_t *>(weights));
    const memory::desc row({spec.outputs}, memory::data_type::f32, memory::format_tag::x);
    multiplier_ = memory(row, engine());
    bias_ = memory(row, engine());
    std::copy(multiplier, multiplier + spec.outputs,
              static_cast<float *>(multiplier_.get_data_handle()));
    std::copy(bias, bias + spec.outputs, static_cast<float *>(bias_.get_data_handle()));
  }

  std::unique_ptr<Compiled> compile(const Shape &src_dims, const Shape &dst_dims, bool freed) {
    const auto layout = spec_.linear ? memory::format_tag::nc : memory::format_tag::nhwc;
    auto compiled = std::make_unique<Compiled>();
    Compiled &result = *compiled;
    result.multiplier = multiplier_;
    result.bias = bias_;
    result.src = memory::desc(src_dims, data_type(spec_.src_type), layout);
    result.dst = memory::desc(dst_dims, data_type(spec_.dst_type), layout);
    const memory::desc any(weight_dims_, memory::data_type::s8, memory::format_tag::any);
    const memory::desc bias = bias_.get_desc();
    const auto kind = dnnl::prop_kind::forward_inference;
    memory::desc packed;
    if (spec_.linear) {
      dnnl::inner_product_forward::primitive_desc desc(engine(), kind, result.src, any, bias,
                                                       result.dst, attributes());
      if (freed) take_freed(desc, true);
      packed = desc.weights_desc();
      result.scratchpad = desc.scratchpad_desc();
      result.primitive = dnnl::inner_product_forward(desc);
    } else {
      const auto &s = spec_;
      const Shape step(s.step, s.step + 2), dilation{s.dilation[0] - 1, s.dilation[1] - 1};
      Shape before(s.padding, s.padding + 2), after(2);
      for (int axis = 0; axis < 2; ++axis) {
        const int64_t reach = (s.kernel[axis] - 1) * s.dilation[axis] + 1;
        after[axis] = (dst_dims[2 + axis] - 1) * step[axis] + reach - src_dims[2 + axis] -
                      before[axis];
      }
      dnnl::convolution_forward::primitive_desc desc(
          engine(), kind, dnnl::algorithm::convolution_direct, result.src, any, bias, result.dst,
          step, dilation, before, after, attributes());
      if (freed) take_freed(desc, s.kernel[0] == 1 && s.kernel[1] == 1);
      packed = desc.weights_desc();
      result.scratchpad = desc.scratchpad_desc();
      result.primitive = dnnl::convolution_forward(desc);
    }
    result.weights = pack(packed);
    return compiled;
  }

 private:
  dnnl::primitive_attr attributes() const {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    // One multiplier per output channel, whose axes are (group, channel) in a grouped layer.
    attr.set_scales_mask(DNNL_ARG_WEIGHTS, spec_.groups > 1 ? 3 : 1);
    dnnl::post_ops ops;
    const auto sum = [&] { ops.append_sum(spec_.sum_scale, 0, data_type(spec_.sum_type)); };
    if (spec_.has_sum && !spec_.sum_last) sum();
    if (spec_.activation == kReLU) {
      ops.append_eltwise(dnnl::algorithm::eltwise_relu, spec_.alpha, 0.f);
    } else if (spec_.activation == kClip) {
      ops.append_eltwise(dnnl::algorithm::eltwise_clip, 0.f, spec_.alpha);
    }
    if (spec_.has_sum && spec_.sum_last) sum();
    attr.set_post_ops(ops);
    return attr;
  }

  // Shapes usually agree on the layout of the weights, which are then packed once.
  std::shared_ptr<memory> pack(const memory::desc &layout) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto &weights : packed_) {
      if (weights->get_desc() == layout) return weights;
    }
    auto weights = std::make_shared<memory>(layout, engine());
    dnnl::stream stream(engine());
    dnnl::reorder(plain_, *weights).execute(stream, plain_, *weights);
    stream.wait();
    packed_.push_back(weights);
    return weights;
  }

  const ClipqProduct spec_;
  Shape weight_dims_;
  memory plain_, multiplier_, bias_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<memory>> packed_;
};

// What `make` gives, or null with the exception's text in `error`.
template <typename Make>
void *made(char *error, int64_t size, Make make) {
  try {
    return make();
  } catch (const std::exception &exception) {
    std::snprintf(error, static_cast<size_t>(size), "%s", exception.what());
    return nullptr;
  }
}

}  // namespace

// Whether products of u8 and s8 are added in 32 bits. Older processors add pairs in 16 bits, for
// which oneDNN halves the weights and so loses their last bit.
CLIPQ_API int32_t clipq_exact_products() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx2_vnni:
    case dnnl::cpu_isa::avx2_vnni_2:
    case dnnl::cpu_isa::avx512_core_vnni:
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_fp16:
    case dnnl::cpu_isa::avx512_core_amx:
    case dnnl::cpu_isa::avx512_core_amx_fp16: return 1;
    default: return 0;
  }
}

// The weights must stay where they are as long as the product is.
CLIPQ_API void *clipq_product_create(const ClipqProduct *spec, const int8_t *weights,
                                     const float *multiplier, const float *bias, char *error,
                                     int64_t error_size) {
  return made(error, error_size, [&] { return new Product(*spec, weights, multiplier, bias); });
}

CLIPQ_API void clipq_product_destroy(void *product) { delete static_cast<Product *>(product); }

// Shapes are (N, C, H, W), or (N, C) of a linear layer; the tensors lie with channels last. Writes
// how many bytes of memory a run needs for itself. `freed`: with an implementation whose memory is
// freed with the result.
CLIPQ_API void *clipq_product_compile(void *product, const int64_t *src_dims,
                                      const int64_t *dst_dims, int64_t axes, int32_t freed,
                                      int64_t *scratchpad, char *error, int64_t error_size) {
  return made(error, error_size, [&] {
    auto compiled = static_cast<Product *>(product)->compile(Shape(src_dims, src_dims + axes),
                                                             Shape(dst_dims, dst_dims + axes),
                                                             freed != 0);
    *scratchpad = static_cast<int64_t>(compiled->scratchpad.get_size());
    return compiled.release();
  });
}

CLIPQ_API void clipq_compiled_destroy(void *compiled) { delete static_cast<Compiled *>(compiled); }

void clipq_step(const ClipqProductStep &step, const ClipqBuffers &buffers) {
  static_cast<const Compiled *>(step.compiled)
      ->run(buffers.at<void>(step.src), buffers.at<void>(step.dst),
            buffers.at<void>(step.scratchpad));
}
