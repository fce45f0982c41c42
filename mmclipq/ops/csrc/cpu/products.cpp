// Layers behind a plain C interface, which Python calls without holding its lock.

#include "product.h"

#include <cstdio>
#include <exception>
#include <mutex>

namespace {

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

using clipq::Compiled;
using clipq::Layer;
using clipq::Shape;

// oneDNN where it is exact; ours elsewhere, for depthwise convolutions, where they are faster, and for
// what oneDNN refuses.
class Product {
 public:
  Product(const ClipqProduct &spec, const int8_t *weights, const float *multiplier,
          const float *bias)
      : spec_(spec), weights_(weights), multiplier_(multiplier), bias_(bias),
        may_winograd_(clipq::has_direct_layers() && !clipq::is_onednn_forced() &&
                      clipq::winograd_fits(spec, weights)) {
    if (!clipq::has_onednn_layers()) return;
    if (clipq::is_depthwise(spec) && clipq::has_direct_layers()) return;
    if (clipq::is_faster_direct(spec) && !clipq::is_onednn_forced()) return;
    onednn_ = clipq::onednn_layer(spec, weights, multiplier, bias);
  }

  std::unique_ptr<Compiled> compile(const Shape &src, const Shape &dst, const Shape &before,
                                    bool freed) {
    if (may_winograd_ && clipq::is_faster_by_winograd(spec_, dst, onednn_ != nullptr)) {
      return made(winograd_, clipq::winograd_layer).compile(src, dst, before, freed);
    }
    if (onednn_ != nullptr) {
      try {
        return onednn_->compile(src, dst, before, freed);
      } catch (const std::exception &) {
        if (!clipq::has_direct_layers()) throw;
      }
    }
    return made(direct_, clipq::direct_layer).compile(src, dst, before, freed);
  }

  bool is_direct() const { return onednn_ == nullptr; }

 private:
  using Make = std::unique_ptr<Layer> (*)(const ClipqProduct &, const int8_t *, const float *,
                                          const float *);

  Layer &made(std::unique_ptr<Layer> &layer, Make make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (layer == nullptr) layer = make(spec_, weights_, multiplier_, bias_);
    return *layer;
  }

  const ClipqProduct spec_;
  const int8_t *weights_;
  const float *multiplier_, *bias_;
  const bool may_winograd_;
  std::unique_ptr<Layer> onednn_, direct_, winograd_;
  std::mutex mutex_;
};

}  // namespace

CLIPQ_API int32_t clipq_has_products() {
  return clipq::has_onednn_layers() || clipq::has_direct_layers();
}

// Weights, multipliers and biases must stay where they are as long as the product is.
CLIPQ_API void *clipq_product_create(const ClipqProduct *spec, const int8_t *weights,
                                     const float *multiplier, const float *bias, char *error,
                                     int64_t error_size) {
  return made(error, error_size, [&] { return new Product(*spec, weights, multiplier, bias); });
}

// Whether it never goes through oneDNN, so that results may have any stride.
CLIPQ_API int32_t clipq_product_is_direct(const void *product) {
  return static_cast<const Product *>(product)->is_direct();
}

CLIPQ_API void clipq_product_destroy(void *product) { delete static_cast<Product *>(product); }

// Shapes are (N, C, H, W), or (N, C) of a linear layer; the tensors lie with channels last. Writes
// how many bytes of memory a run needs for itself, and whether the residual must lie where the result
// will. `before`: rows and columns of padding. `freed`: with an implementation whose memory is freed with the result.
CLIPQ_API void *clipq_product_compile(void *product, const int64_t *src_dims,
                                      const int64_t *dst_dims, int64_t axes,
                                      const int64_t *before, int32_t freed, int64_t *scratchpad,
                                      int32_t *holds_residual, char *error, int64_t error_size) {
  return made(error, error_size, [&] {
    auto compiled = static_cast<Product *>(product)->compile(
        Shape(src_dims, src_dims + axes), Shape(dst_dims, dst_dims + axes),
        Shape(before, before + 2), freed != 0);
    *scratchpad = compiled->scratchpad;
    *holds_residual = compiled->holds_residual;
    return compiled.release();
  });
}

CLIPQ_API void clipq_compiled_destroy(void *compiled) { delete static_cast<Compiled *>(compiled); }

void clipq_step(const ClipqProductStep &step, const ClipqBuffers &buffers) {
  static_cast<const Compiled *>(step.compiled)
      ->run(buffers.at<void>(step.src), buffers.at<void>(step.dst), step.dst_stride,
            buffers.at<const uint8_t>(step.residual), buffers.at<void>(step.scratchpad));
}
