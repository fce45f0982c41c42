// The tiles of convolutions whose inputs are uint8 codes.

#include "conv.cuh"

void launch_conv_u8(const ProductArgs &args, int tile, ClipqStream stream) {
  launch_tile<false>(args, tile, stream);
}
