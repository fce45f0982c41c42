// Sums, conversions and copies of codes, as the reference backend computes them: each float32
// operation rounded on its own, none contracted.

#include "activations.cuh"
#include "chunk.cuh"
#include "steps.cuh"

namespace {

struct Sum {
  ClipqSum spec;
  Chunks chunks;
  const uint8_t *a, *b;
  uint8_t *dst;
  bool aligned;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    int64_t from, to;
    const int count = chunks.find(i, from, to);
    const Chunk x = load_chunk(a + from, count, aligned);
    const Chunk y = b == nullptr ? Chunk{} : load_chunk(b + from, count, aligned);
    Chunk result{};
    CLIPQ_UNROLL
    for (int e = 0; e < kChunk; ++e) {
      float v = device::mul(code_value(x.get(e), spec.a_signed, spec.a_offset), spec.a_step);
      if (b != nullptr) {
        const float other = code_value(y.get(e), spec.b_signed, spec.b_offset);
        v = device::add(v, device::mul(other, spec.b_step));
      }
      v = device::mul(clip_value(spec.activation, v, spec.alpha), spec.scale);
      result.put(e, to_code(v, spec.dst_signed != 0, spec.dst_offset));
    }
    store_chunk(dst + to, result, count, aligned);
  }
};

struct Quantize {
  ClipqQuantize spec;
  Chunks chunks;
  const float *src;
  uint8_t *dst;
  bool aligned;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    int64_t from, to;
    const int count = chunks.find(i, from, to);
    Chunk result{};
    CLIPQ_UNROLL
    for (int e = 0; e < kChunk; ++e) {
      if (e >= count) break;
      const float v = device::mul(src[from + e], spec.scale);
      result.put(e, to_code(v, spec.dst_signed != 0, spec.dst_offset));
    }
    store_chunk(dst + to, result, count, aligned);
  }
};

// One pixel of planes per thread: neighbours read side by side.
struct QuantizePlanes {
  ClipqQuantize spec;
  const float *src;
  uint8_t *dst;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const int64_t image = i / spec.pixels, pixel = i - image * spec.pixels;
    const float *from = src + image * spec.rows.channels * spec.pixels + pixel;
    uint8_t *to = dst + i * spec.rows.stride;
    for (int64_t c = 0; c < spec.rows.channels; ++c) {
      const float v = device::mul(from[c * spec.pixels], spec.scale);
      to[c] = static_cast<uint8_t>(to_code(v, spec.dst_signed != 0, spec.dst_offset));
    }
  }
};

struct Dequantize {
  ClipqDequantize spec;
  const uint8_t *src;
  float *dst;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    dst[i] = device::mul(code_value(src[i], spec.src_signed, spec.src_offset), spec.step);
  }
};

// One item per thread, which reads 1 byte and writes 1 or 4: what a table says of its code.
template <typename Item>
struct Lookup {
  ClipqRows rows;
  const Item *table;
  const uint8_t *src;
  Item *dst;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const int64_t row = i / rows.channels;
    dst[row * rows.stride + (i - row * rows.channels)] = table[src[i]];
  }
};

struct Copy {
  Chunks chunks;
  const uint8_t *src;
  uint8_t *dst;
  bool aligned;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    int64_t from, to;
    const int count = chunks.find(i, from, to);
    store_chunk(dst + to, load_chunk(src + from, count, aligned), count, aligned);
  }
};

struct Upsample {
  ClipqUpsample spec;
  const uint8_t *src;
  uint8_t *dst;
  bool aligned;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const PixelChunk at(i, spec.rows, spec.columns, spec.channels);
    const int64_t from =
        (at.image * spec.height + spec.row_of[at.row]) * spec.width + spec.column_of[at.column];
    const Chunk chunk = load_chunk(src + from * spec.channels + at.first, at.count, aligned);
    store_chunk(dst + at.pixel * spec.stride + at.first, chunk, at.count, aligned);
  }
};

struct Flatten {
  ClipqFlatten spec;
  const uint8_t *src;
  uint8_t *dst;

  CLIPQ_DEVICE void operator()(int64_t i) const {
    const int64_t image = i / (spec.channels * spec.pixels), rest = i - image * spec.channels * spec.pixels;
    const int64_t c = rest / spec.pixels, pixel = rest - c * spec.pixels;
    dst[i] = src[(image * spec.pixels + pixel) * spec.channels + c];
  }
};

}  // namespace

void clipq_launch(const ClipqSum &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  Sum body{spec, Chunks(spec.rows), buffers.at<const uint8_t>(spec.a),
           buffers.at<const uint8_t>(spec.b), buffers.at<uint8_t>(spec.dst), false};
  const void *b = body.b == nullptr ? body.a : body.b;
  if (is_smooth(spec.activation)) return launch_smooth_sum(spec, body.a, body.b, body.dst, stream);
  body.aligned = whole_chunks(body.chunks.length, body.chunks.stride, body.a, b, body.dst);
  device::launch_items(body, body.chunks.count, stream);
}

void clipq_launch(const ClipqQuantize &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  const auto *src = buffers.at<const float>(spec.src);
  auto *dst = buffers.at<uint8_t>(spec.dst);
  if (spec.planes) {
    device::launch_items(QuantizePlanes{spec, src, dst}, spec.rows.rows, stream);
    return;
  }
  Quantize body{spec, Chunks(spec.rows), src, dst, false};
  body.aligned = whole_chunks(body.chunks.length, body.chunks.stride, dst);
  device::launch_items(body, body.chunks.count, stream);
}

void clipq_launch(const ClipqDequantize &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  const Dequantize body{spec, buffers.at<const uint8_t>(spec.src), buffers.at<float>(spec.dst)};
  device::launch_items(body, spec.count, stream);
}

void clipq_launch(const ClipqLookup &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  const auto *src = buffers.at<const uint8_t>(spec.src);
  const int64_t count = spec.rows.rows * spec.rows.channels;
  if (spec.size == 1) {
    const Lookup<uint8_t> body{spec.rows, static_cast<const uint8_t *>(spec.table), src,
                               buffers.at<uint8_t>(spec.dst)};
    device::launch_items(body, count, stream);
  } else {
    const Lookup<float> body{spec.rows, static_cast<const float *>(spec.table), src,
                             buffers.at<float>(spec.dst)};
    device::launch_items(body, count, stream);
  }
}

void clipq_launch(const ClipqCopy &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  Copy body{Chunks(spec.rows), buffers.at<const uint8_t>(spec.src), buffers.at<uint8_t>(spec.dst),
            false};
  body.aligned = whole_chunks(body.chunks.length, body.chunks.stride, body.src, body.dst);
  device::launch_items(body, body.chunks.count, stream);
}

void clipq_launch(const ClipqUpsample &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  Upsample body{spec, buffers.at<const uint8_t>(spec.src), buffers.at<uint8_t>(spec.dst),
                false};
  body.aligned = whole_chunks(spec.channels, spec.stride, body.src, body.dst);
  device::launch_items(body, pixel_chunks(spec.images * spec.rows * spec.columns, spec.channels),
                       stream);
}

void clipq_launch(const ClipqFlatten &spec, const ClipqBuffers &buffers, ClipqStream stream) {
  const Flatten body{spec, buffers.at<const uint8_t>(spec.src), buffers.at<uint8_t>(spec.dst)};
  device::launch_items(body, spec.images * spec.channels * spec.pixels, stream);
}
