// Layers through oneDNN. Where its own epilogue has all that the layer wants, one primitive does it;
// elsewhere oneDNN writes the integer sums and clipq_finish does the rest.
//
// The caller folds the step of the result into multipliers and biases, which powers of two leave
// exact, unless the activation is smooth. oneDNN rounds each operation of its epilogue on its own.

#include "product.h"

#ifdef CLIPQ_ONEDNN

#include <omp.h>

#include <algorithm>
#include <mutex>
#include <string>

#include <dnnl.hpp>

namespace clipq {
namespace {

using dnnl::memory;

dnnl::engine &engine() {
  static dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

memory::data_type data_type(int32_t type) {
  switch (type) {
    case kInt8: return memory::data_type::s8;
    case kUint8: return memory::data_type::u8;
    default: return memory::data_type::f32;
  }
}

constexpr int64_t kAlignment = 64;

// oneDNN's primitive, and what makes results of its sums where it does not.
struct OneDnnCompiled : Compiled {
  dnnl::primitive primitive;
  memory::desc src, dst, scratch;
  std::shared_ptr<memory> weights;
  memory multiplier, bias, offset;
  std::shared_ptr<const Epilogue> epilogue;  // null where the primitive does all
  int64_t pixels = 0, outputs = 0, scratch_size = 0;
  bool in_place = false;

  void run(const void *from, void *to, int64_t to_stride, const uint8_t *residual,
           void *scratch_memory) const override {
    thread_local dnnl::stream stream(engine());
    auto *bytes = static_cast<char *>(scratch_memory);
    void *sums = epilogue == nullptr || in_place ? to : bytes + scratch_size;
    std::unordered_map<int, memory> args{
        {DNNL_ARG_SRC, memory(src, engine(), const_cast<void *>(from))},
        {DNNL_ARG_WEIGHTS, *weights},
        {DNNL_ARG_DST, memory(dst, engine(), sums)},
        {DNNL_ARG_SCRATCHPAD, memory(scratch, engine(), bytes)}};
    if (epilogue == nullptr) {
      args.insert({DNNL_ARG_BIAS, bias});
      args.insert({DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, multiplier});
    }
    if (offset) args.insert({DNNL_ARG_ATTR_ZERO_POINTS | DNNL_ARG_SRC, offset});
    primitive.execute(stream, args);
    stream.wait();
    if (epilogue != nullptr) finish(static_cast<const int32_t *>(sums), to, to_stride, residual);
  }

 private:
  void finish(const int32_t *sums, void *to, int64_t to_stride, const uint8_t *residual) const {
    const int64_t item = epilogue->spec.dst_float ? 4 : 1;
    const int64_t each = std::max<int64_t>(1, 8192 / outputs);  // pixels of a block
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < pixels; first += each) {
      clipq_finish(epilogue->spec, sums + first * outputs, outputs,
                   residual == nullptr ? nullptr : residual + first * outputs, outputs,
                   static_cast<char *>(to) + first * to_stride * item, to_stride,
                   std::min(each, pixels - first), 0, outputs);
    }
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

class OneDnn : public Layer {
 public:
  OneDnn(const ClipqProduct &spec, const int8_t *weights, const float *multiplier,
         const float *bias)
      : spec_(spec), epilogue_(std::make_shared<Epilogue>(spec, multiplier, bias)) {
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
    if (spec.src_offset) {
      offset_ = memory({{1}, memory::data_type::s32, memory::format_tag::x}, engine());
      *static_cast<int32_t *>(offset_.get_data_handle()) = spec.src_offset;
    }
  }

  std::unique_ptr<Compiled> compile(const Shape &src_dims, const Shape &dst_dims,
                                    const Shape &before, bool freed) override {
    if (has_all()) {
      try {
        return compile(src_dims, dst_dims, before, freed, true);
      } catch (const dnnl::error &) {  // oneDNN lacks something of the epilogue at this shape
      }
    }
    return compile(src_dims, dst_dims, before, freed, false);
  }

 private:
  // Whether oneDNN's epilogue has what the layer's has.
  bool has_all() const {
    const bool plain = spec_.activation == kIdentity || spec_.activation == kReLU ||
                       spec_.activation == kClip;
    return plain && (spec_.residual_order == 0 || spec_.residual_offset == 0) &&
           (spec_.residual_order == 0 || spec_.dst_type != kFloat);
  }

  std::unique_ptr<Compiled> compile(const Shape &src_dims, const Shape &dst_dims,
                                    const Shape &before, bool freed, bool all) {
    const auto layout = spec_.linear ? memory::format_tag::nc : memory::format_tag::nhwc;
    auto compiled = std::make_unique<OneDnnCompiled>();
    OneDnnCompiled &result = *compiled;
    result.multiplier = multiplier_;
    result.offset = offset_;
    result.src = memory::desc(src_dims, data_type(spec_.src_type), layout);
    result.dst = memory::desc(dst_dims, all ? data_type(spec_.dst_type) : memory::data_type::s32,
                              layout);
    const memory::desc any(weight_dims_, memory::data_type::s8, memory::format_tag::any);
    const memory::desc bias = all ? bias_.get_desc() : memory::desc();
    if (all) result.bias = bias_;
    const auto kind = dnnl::prop_kind::forward_inference;
    memory::desc packed;
    if (spec_.linear) {
      dnnl::inner_product_forward::primitive_desc desc(engine(), kind, result.src, any, bias,
                                                       result.dst, attributes(all));
      choose(desc, freed, true);
      packed = desc.weights_desc();
      result.scratch = desc.scratchpad_desc();
      result.primitive = dnnl::inner_product_forward(desc);
    } else {
      const auto &s = spec_;
      const Shape step(s.step, s.step + 2), dilation{s.dilation[0] - 1, s.dilation[1] - 1};
      Shape after(2);
      for (int axis = 0; axis < 2; ++axis) {
        const int64_t reach = (s.kernel[axis] - 1) * s.dilation[axis] + 1;
        after[axis] = (dst_dims[2 + axis] - 1) * step[axis] + reach - src_dims[2 + axis] -
                      before[axis];
      }
      dnnl::convolution_forward::primitive_desc desc(
          engine(), kind, dnnl::algorithm::convolution_direct, result.src, any, bias, result.dst,
          step, dilation, before, after, attributes(all));
      choose(desc, freed, s.kernel[0] == 1 && s.kernel[1] == 1);
      packed = desc.weights_desc();
      result.scratch = desc.scratchpad_desc();
      result.primitive = dnnl::convolution_forward(desc);
    }
    result.weights = pack(packed);
    result.scratchpad = static_cast<int64_t>(result.scratch.get_size());
    result.holds_residual = all && spec_.residual_order != 0;
    if (!all) {
      result.epilogue = epilogue_;
      result.outputs = spec_.outputs;
      result.pixels = 1;
      for (const int64_t size : dst_dims) result.pixels *= size;
      result.pixels /= spec_.outputs;
      result.in_place = spec_.dst_type == kFloat;
      result.scratch_size = (result.scratchpad + kAlignment - 1) / kAlignment * kAlignment;
      if (!result.in_place) {
        result.scratchpad = result.scratch_size + result.pixels * spec_.outputs * 4;
      }
    }
    return compiled;
  }

  // Refuses reference implementations, which are slower than the direct layers by far.
  template <typename Description>
  static void choose(Description &description, bool freed, bool is_1x1) {
    if (freed) take_freed(description, is_1x1);
    if (std::string(description.impl_info_str()).rfind("ref", 0) == 0) {
      throw dnnl::error(dnnl_unimplemented, "oneDNN has only its reference implementation");
    }
  }

  dnnl::primitive_attr attributes(bool all) const {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (spec_.src_offset) attr.set_zero_points_mask(DNNL_ARG_SRC, 0);
    if (!all) return attr;
    // One multiplier per output channel, whose axes are (group, channel) in a grouped layer.
    attr.set_scales_mask(DNNL_ARG_WEIGHTS, spec_.groups > 1 ? 3 : 1);
    dnnl::post_ops ops;
    const auto sum = [&] { ops.append_sum(spec_.residual_scale, 0, data_type(spec_.residual_type)); };
    if (spec_.residual_order == 1) sum();
    if (spec_.activation == kReLU) {
      ops.append_eltwise(dnnl::algorithm::eltwise_relu, spec_.alpha, 0.f);
    } else if (spec_.activation == kClip) {
      ops.append_eltwise(dnnl::algorithm::eltwise_clip, 0.f, spec_.alpha);
    }
    if (spec_.residual_order == 2) sum();
    if (spec_.dst_offset) {
      // After rounding, as an offset before it could make a tie of what is none.
      ops.append_eltwise(dnnl::algorithm::eltwise_round, 0.f, 0.f);
      ops.append_eltwise(dnnl::algorithm::eltwise_linear, 1.f, static_cast<float>(spec_.dst_offset));
    }
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
  const std::shared_ptr<const Epilogue> epilogue_;
  Shape weight_dims_;
  memory plain_, multiplier_, bias_, offset_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<memory>> packed_;
};

bool forced = false;

}  // namespace

std::unique_ptr<Layer> onednn_layer(const ClipqProduct &spec, const int8_t *weights,
                                    const float *multiplier, const float *bias) {
  return std::make_unique<OneDnn>(spec, weights, multiplier, bias);
}

bool is_onednn_forced() { return forced; }

// Whether products of u8 and s8 are added in 32 bits. Older processors add pairs in 16 bits, for
// which oneDNN halves the weights and so loses their last bit.
bool has_onednn_layers() {
  if (forced) return true;
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx2_vnni:
    case dnnl::cpu_isa::avx2_vnni_2:
    case dnnl::cpu_isa::avx512_core_vnni:
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_fp16:
    case dnnl::cpu_isa::avx512_core_amx:
    case dnnl::cpu_isa::avx512_core_amx_fp16: return true;
    default: return false;
  }
}

}  // namespace clipq

// Lets layers go through oneDNN on any processor, for tests: without VNNI it is exact where weights
// are even and at most 64.
CLIPQ_API int32_t clipq_force_onednn(int32_t force) {
  clipq::forced = force != 0;
  return clipq::has_onednn_layers();
}

#else  // built without oneDNN

namespace clipq {

std::unique_ptr<Layer> onednn_layer(const ClipqProduct &, const int8_t *, const float *,
                                    const float *) {
  return nullptr;
}

bool has_onednn_layers() { return false; }
bool is_onednn_forced() { return false; }

}  // namespace clipq

CLIPQ_API int32_t clipq_force_onednn(int32_t) { return 0; }

#endif
