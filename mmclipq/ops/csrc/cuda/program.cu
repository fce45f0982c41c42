// The interface that Python and the binding to torch call: plain C, without types of CUDA.

#include <cstdio>
#include <exception>

#include "product.cuh"
#include "steps.cuh"

namespace {

// Calls `body` and returns 1, or 0 with a text in `error`.
template <typename Body>
int32_t guarded(char *error, int64_t error_size, Body body) {
  try {
    body();
    return 1;
  } catch (const std::exception &exception) {
    std::snprintf(error, static_cast<size_t>(error_size), "%s", exception.what());
    return 0;
  }
}

}  // namespace

void clipq_launch(const ClipqProductStep &s, const ClipqBuffers &buffers, ClipqStream stream) {
  ProductArgs p{};
  p.src = buffers.at<const uint8_t>(s.src);
  p.residual = buffers.at<const uint8_t>(s.residual);
  p.dst = buffers.at<void>(s.dst);
  p.sums = buffers.at<int>(s.sums);
  p.counters = buffers.at<int>(s.counters);
  p.weight = s.weight;
  p.multiplier = s.multiplier;
  p.bias = s.bias;
  p.row_of = s.row_of;
  p.column_of = s.column_of;
  p.outside = s.outside;
  p.correction = s.correction;
  p.height = static_cast<int>(s.height);
  p.width = static_cast<int>(s.width);
  p.channels = static_cast<int>(s.channels);
  p.rows = static_cast<int>(s.rows);
  p.columns = static_cast<int>(s.columns);
  p.pixels = static_cast<int>(s.images * s.rows * s.columns);
  p.outputs = static_cast<int>(s.outputs);
  p.depth = static_cast<int>(s.depth);
  p.group_channels = static_cast<int>(s.channels / s.groups);
  p.group_outputs = static_cast<int>(s.outputs / s.groups);
  p.src_stride = static_cast<int>(s.src_stride);
  p.dst_stride = static_cast<int>(s.dst_stride);
  p.residual_stride = static_cast<int>(s.residual_stride);
  p.residual_height = static_cast<int>(s.residual_height);
  p.residual_width = static_cast<int>(s.residual_width);
  p.kernel_y = static_cast<int>(s.kernel[0]);
  p.kernel_x = static_cast<int>(s.kernel[1]);
  p.step_y = static_cast<int>(s.step[0]);
  p.step_x = static_cast<int>(s.step[1]);
  p.padding_y = static_cast<int>(s.padding[0]);
  p.padding_x = static_cast<int>(s.padding[1]);
  p.dilation_y = static_cast<int>(s.dilation[0]);
  p.dilation_x = static_cast<int>(s.dilation[1]);
  p.src_signed = s.src_signed;
  p.dst_kind = s.dst_kind;
  p.activation = s.activation;
  p.residual_signed = s.residual_signed;
  p.residual_order = s.residual_order;
  p.wide_dst = s.wide_dst;
  p.wide_residual = s.wide_residual;
  p.splits = s.splits;
  p.src_offset = s.src_offset;
  p.residual_offset = s.residual_offset;
  p.dst_offset = s.dst_offset;
  p.alpha = s.alpha;
  p.residual_scale = s.residual_scale;
  p.scale = s.scale;
  if (p.pixels == 0) return;
  if (s.groups != 1) return launch_grouped_conv(p, stream);
  if (s.src_signed) return launch_conv_s8(p, s.tile, stream);
  return launch_conv_u8(p, s.tile, stream);
}

// Launches the steps on a stream of the current device. Returns 1, or 0 with a text in `error`.
CLIPQ_API int32_t clipq_cuda_run(const ClipqStep *steps, int64_t count, void *const *buffers,
                                 void *stream, char *error, int64_t error_size) {
  return guarded(error, error_size, [&] {
    const ClipqBuffers places(buffers);
    for (int64_t i = 0; i < count; ++i) {
      clipq_dispatch(steps[i], [&](const auto &step) {
        clipq_launch(step, places, static_cast<ClipqStream>(stream));
      });
    }
  });
}

CLIPQ_API int32_t clipq_cuda_tile(int32_t tile, int32_t *properties) {
  return describe_tile(tile, properties);
}

// Multiprocessors of a device, its bytes of shared memory for a block, and 10 times its compute
// capability.
CLIPQ_API int32_t clipq_cuda_properties(int32_t number, int32_t *properties, char *error,
                                        int64_t error_size) {
  return guarded(error, error_size, [&] {
#ifdef CLIPQ_EMULATION
    properties[0] = 4 + number;
    properties[1] = 1 << 18;
    properties[2] = 0;
#else
    int major, minor;
    device::check(cudaDeviceGetAttribute(&properties[0], cudaDevAttrMultiProcessorCount, number));
    device::check(cudaDeviceGetAttribute(&properties[1],
                                         cudaDevAttrMaxSharedMemoryPerBlockOptin, number));
    device::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number));
    device::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number));
    properties[2] = 10 * major + minor;
#endif
  });
}
