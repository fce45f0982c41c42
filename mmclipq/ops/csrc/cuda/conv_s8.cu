// The tiles of convolutions whose inputs are int8 codes.

#include "conv.cuh"

void launch_conv_s8(const ProductArgs &args, int tile, ClipqStream stream) {
  launch_tile<true>(args, tile, stream);
}

bool describe_tile(int tile, int32_t *properties) {
  return with_tile<true>(tile, [&](auto kernel) {
    using Kernel = decltype(kernel);
    const int32_t found[] = {Kernel::kPixels, Kernel::kOutputs, Kernel::kShared,
                             Kernel::kFewChannels};
    for (int i = 0; i < 4; ++i) properties[i] = found[i];
  });
}
