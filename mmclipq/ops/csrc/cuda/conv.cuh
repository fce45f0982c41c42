// Convolution of int8 or uint8 codes on tensor cores: an implicit matrix product with a row for each
// pixel of the result, a column for each output and the depth (kernel row, kernel column, channel).
//
// A block computes kPixels x kOutputs results in steps of 64 bytes of depth. Copies fill kStages
// buffers of shared memory in turn, so that kStages - 1 are under way while one is multiplied. Lines
// of 64 bytes are four chunks of 16; chunk c of line l lies at c ^ (l / 2 % 4), so that the eight
// lines that one load of a matrix reads meet eight different groups of banks.
//
// Of split products each block adds its sums to those in global memory, and the last one to come
// finishes. Integer sums do not depend on their order: every tile and split gives the same results.
#pragma once

#include "product.cuh"

template <int kPixels_, int kOutputs_, int kWarpsM, int kWarpsN, int kStages, bool kNarrow,
          bool kSigned>
struct ConvKernel {
  using Args = ProductArgs;
  static constexpr int kPixels = kPixels_, kOutputs = kOutputs_;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32, kDepth = 64;
  static constexpr bool kFewChannels = kNarrow;
  // Blocks that a multiprocessor must have registers for, 0 for as the compiler likes: on sm_90 it
  // would rather spill a register of the narrow one than have fewer than four.
  static constexpr int kBlocks = kNarrow ? 3 : 0;
  static constexpr int kWarpPixels = kPixels / kWarpsM, kWarpOutputs = kOutputs / kWarpsN;
  static constexpr int kTilesM = kWarpPixels / 16, kTilesN = kWarpOutputs / 8;
  static constexpr int kStage = (kPixels + kOutputs) * kDepth;
  static constexpr int kLine = kOutputs + 16;  // of results, apart from the banks of the next line
  static constexpr int kShared =
      kStage * kStages > kPixels * kLine ? kStage * kStages : kPixels * kLine;
  // Each thread copies the same chunk of every kLines-th line.
  static constexpr int kLines = kThreads / 4;
  static constexpr int kPassesM = (kPixels + kLines - 1) / kLines;
  static constexpr int kPassesN = (kOutputs + kLines - 1) / kLines;
  static_assert(kTilesN % 2 == 0, "matrices of weights are loaded in pairs");

  using Sums = int[kTilesM][kTilesN][4];

  // Calls body(i, j, e) for each sum of a thread, unrolled so that sums stay in registers.
  template <typename Body>
  static CLIPQ_DEVICE void each(Body body) {
    CLIPQ_UNROLL
    for (int i = 0; i < kTilesM; ++i) {
      CLIPQ_UNROLL
      for (int j = 0; j < kTilesN; ++j) {
        CLIPQ_UNROLL
        for (int e = 0; e < 4; ++e) body(i, j, e);
      }
    }
  }

  static CLIPQ_DEVICE int place(int line, int chunk) {
    return line * kDepth + ((chunk ^ ((line >> 1) & 3)) << 4);
  }

  // What a thread copies: its lines' windows, and its chunk's tap and channel.
  struct Source {
    int line, chunk, first_output;
    int top[kPassesM], left[kPassesM];
    int64_t first[kPassesM];  // pixel at the window's corner
    int row, column, channel;

    CLIPQ_DEVICE void start(const Args &p, int first_pixel, int output, int step) {
      line = device::thread() >> 2;
      chunk = device::thread() & 3;
      first_output = output;
      CLIPQ_UNROLL
      for (int i = 0; i < kPassesM; ++i) {
        const int l = line + i * kLines, m = first_pixel + l;
        const int image = m / (p.rows * p.columns), rest = m - image * p.rows * p.columns;
        const int y = rest / p.columns, x = rest - y * p.columns;
        // Far outside, where no tap of the kernel reaches the image.
        top[i] = m < p.pixels && l < kPixels ? y * p.step_y - p.padding_y : -(1 << 28);
        left[i] = x * p.step_x - p.padding_x;
        first[i] = (static_cast<int64_t>(image) * p.height + top[i]) * p.width + left[i];
      }
      const int depth = step * kDepth + chunk * 16, tap = depth / p.channels;
      channel = depth - tap * p.channels;
      row = tap / p.kernel_x;
      column = tap - row * p.kernel_x;
    }

    CLIPQ_DEVICE const uint8_t *find(const Args &p, int i, int r, int s, int c, bool &inside) const {
      const int y = r * p.dilation_y, x = s * p.dilation_x;
      inside = r < p.kernel_y && static_cast<unsigned>(top[i] + y) < static_cast<unsigned>(p.height) &&
               static_cast<unsigned>(left[i] + x) < static_cast<unsigned>(p.width);
      if (!inside) return p.src;
      return p.src + (first[i] + static_cast<int64_t>(y) * p.width + x) * p.src_stride + c;
    }

    // Starts the copies of one step; wide steps must come in order.
    CLIPQ_DEVICE void copy(const Args &p, int step, uint8_t *stage) {
      bool inside;
      if (kNarrow) {  // a pixel has 4 channels, so a chunk holds four taps
        CLIPQ_UNROLL
        for (int v = 0; v < 4; ++v) {
          const int tap = step * 16 + chunk * 4 + v, r = tap / p.kernel_x, s = tap - r * p.kernel_x;
          CLIPQ_UNROLL
          for (int i = 0; i < kPassesM; ++i) {
            if (kPassesM * kLines != kPixels && line + i * kLines >= kPixels) continue;
            const uint8_t *from = find(p, i, r, s, 0, inside);
            device::copy4(stage + place(line + i * kLines, chunk) + v * 4, from, inside);
          }
        }
      } else {
        CLIPQ_UNROLL
        for (int i = 0; i < kPassesM; ++i) {
          if (kPassesM * kLines != kPixels && line + i * kLines >= kPixels) continue;
          const uint8_t *from = find(p, i, row, column, channel, inside);
          device::copy16(stage + place(line + i * kLines, chunk), from, inside);
        }
        channel += kDepth;
        while (channel >= p.channels) {
          channel -= p.channels;
          if (++column == p.kernel_x) {
            column = 0;
            ++row;
          }
        }
      }
      uint8_t *weights = stage + kPixels * kDepth;
      CLIPQ_UNROLL
      for (int i = 0; i < kPassesN; ++i) {
        if (kPassesN * kLines != kOutputs && line + i * kLines >= kOutputs) continue;
        const int64_t output = first_output + line + i * kLines;
        device::copy16(weights + place(line + i * kLines, chunk),
                       p.weight + output * p.depth + step * kDepth + chunk * 16, true);
      }
    }
  };

  static CLIPQ_DEVICE void multiply(const uint8_t *stage, int warp_m, int warp_n, Sums &sums) {
    const int lane = device::thread() & 31;
    const uint8_t *weights = stage + kPixels * kDepth;
    CLIPQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t a[kTilesM][4], b[kTilesN / 2][4];
      CLIPQ_UNROLL
      for (int i = 0; i < kTilesM; ++i) {
        const int line = warp_m * kWarpPixels + i * 16 + (lane & 15);
        device::load_matrices(a[i], stage + place(line, half * 2 + (lane >> 4)));
      }
      CLIPQ_UNROLL
      for (int j = 0; j < kTilesN / 2; ++j) {
        const int line = warp_n * kWarpOutputs + j * 16 + (lane & 7) + ((lane >> 4) << 3);
        device::load_matrices(b[j], weights + place(line, half * 2 + ((lane >> 3) & 1)));
      }
      CLIPQ_UNROLL
      for (int i = 0; i < kTilesM; ++i) {
        CLIPQ_UNROLL
        for (int j = 0; j < kTilesN; ++j) {
          device::multiply_add<kSigned>(sums[i][j], a[i], b[j >> 1][(j & 1) * 2],
                                        b[j >> 1][(j & 1) * 2 + 1]);
        }
      }
    }
  }

  // Adds the sums to those of the other splits; returns whether this block came last, which then
  // holds the whole sums and has left zeros behind.
  static CLIPQ_DEVICE bool gather(const Args &p, uint8_t *shared, Sums &sums) {
    const int t = device::thread(), columns = (p.outputs + kOutputs - 1) / kOutputs;
    const int64_t tile = static_cast<int64_t>(device::block_x()) * columns + device::block_y();
    int *whole = p.sums + tile * kPixels * kOutputs + t;
    each([&](int i, int j, int e) {
      device::add_to(whole + ((i * kTilesN + j) * 4 + e) * kThreads, sums[i][j][e]);
    });
    device::fence();
    device::synchronize();
    int *last = reinterpret_cast<int *>(shared);
    if (t == 0) *last = device::take_ticket(p.counters + tile) == p.splits - 1;
    device::synchronize();
    const bool came_last = *last != 0;
    device::synchronize();
    if (!came_last) return false;
    device::fence();
    each([&](int i, int j, int e) {
      int *sum = whole + ((i * kTilesN + j) * 4 + e) * kThreads;
      sums[i][j][e] = device::read_shared(sum);
      *sum = 0;
    });
    if (t == 0) p.counters[tile] = 0;
    return true;
  }

  static CLIPQ_DEVICE void store_floats(const Args &p, int pixel, int output, const Sums &sums) {
    float *dst = static_cast<float *>(p.dst);
    each([&](int i, int j, int e) {
      const int m = pixel + i * 16 + (e >> 1) * 8, n = output + j * 8 + (e & 1);
      if (m >= p.pixels || n >= p.outputs) return;
      float r = 0.0f;
      if (p.residual_order) {
        r = residual_value(p, p.residual[residual_pixel(p, m) * p.residual_stride + n]);
      }
      dst[static_cast<int64_t>(m) * p.dst_stride + n] =
          finish(p, sums[i][j][e], p.multiplier[n], p.bias[n], r);
    });
  }

  // Residual codes to the lines where the results will lie.
  static CLIPQ_DEVICE void load_residual(const Args &p, int first_pixel, int first_output,
                                         uint8_t *lines) {
    constexpr int kChunks = kOutputs / 16;
    for (int i = device::thread(); i < kPixels * kChunks; i += kThreads) {
      const int line = i / kChunks, c = (i % kChunks) * 16;
      const int m = first_pixel + line, n = first_output + c;
      const bool inside = m < p.pixels && n < p.outputs;
      const uint8_t *from =
          inside ? p.residual + residual_pixel(p, m) * p.residual_stride + n : p.residual;
      if (p.wide_residual) {
        device::copy16(lines + line * kLine + c, from, inside);
      } else {
        for (int e = 0; e < 16; ++e) {
          lines[line * kLine + c + e] = inside && n + e < p.outputs ? from[e] : 0;
        }
      }
    }
    device::commit();
    device::wait<0>();
    device::synchronize();
  }

  static CLIPQ_DEVICE void store_codes(const Args &p, int first_pixel, int first_output,
                                       const uint8_t *lines) {
    constexpr int kChunks = kOutputs / 16;
    uint8_t *dst = static_cast<uint8_t *>(p.dst);
    for (int i = device::thread(); i < kPixels * kChunks; i += kThreads) {
      const int line = i / kChunks, c = (i % kChunks) * 16;
      const int m = first_pixel + line, n = first_output + c;
      if (m >= p.pixels || n >= p.outputs) continue;
      uint8_t *to = dst + static_cast<int64_t>(m) * p.dst_stride + n;
      const uint8_t *from = lines + line * kLine + c;
      if (p.wide_dst) {
        struct alignas(16) Chunk {
          uint32_t words[4];
        };
        *reinterpret_cast<Chunk *>(to) = *reinterpret_cast<const Chunk *>(from);
      } else {
        for (int e = 0; e < 16 && n + e < p.outputs; ++e) to[e] = from[e];
      }
    }
  }

  static CLIPQ_DEVICE void run(const Args &p, uint8_t *shared) {
    const int lane = device::thread() & 31, warp = device::thread() >> 5;
    const int warp_m = warp / kWarpsN, warp_n = warp % kWarpsN;
    const int first_pixel = device::block_x() * kPixels, first_output = device::block_y() * kOutputs;
    const int64_t steps = p.depth / kDepth;
    const int begin = static_cast<int>(steps * device::block_z() / p.splits);
    const int end = static_cast<int>(steps * (device::block_z() + 1) / p.splits);

    Source source;
    source.start(p, first_pixel, first_output, begin);
    Sums sums;
    each([&](int i, int j, int e) { sums[i][j][e] = 0; });
    CLIPQ_UNROLL
    for (int stage = 0; stage < kStages - 1; ++stage) {
      if (begin + stage < end) source.copy(p, begin + stage, shared + stage * kStage);
      device::commit();
    }
    int reads = 0, writes = kStages - 1;
    for (int step = begin; step < end; ++step) {
      device::wait<kStages - 2>();
      device::synchronize();  // this step has arrived, and all have read the buffer of the last one
      if (step + kStages - 1 < end) source.copy(p, step + kStages - 1, shared + writes * kStage);
      device::commit();
      multiply(shared + reads * kStage, warp_m, warp_n, sums);
      reads = reads + 1 == kStages ? 0 : reads + 1;
      writes = writes + 1 == kStages ? 0 : writes + 1;
    }
    device::wait<0>();
    device::synchronize();
    if (p.splits > 1 && !gather(p, shared, sums)) return;

    const int line = warp_m * kWarpPixels + (lane >> 2), column = warp_n * kWarpOutputs + (lane & 3) * 2;
    if (p.dst_kind == kFloat) {
      store_floats(p, first_pixel + line, first_output + column, sums);
      return;
    }
    if (p.residual_order) load_residual(p, first_pixel, first_output, shared);
    CLIPQ_UNROLL
    for (int j = 0; j < kTilesN; ++j) {
      float m[2], b[2];
      CLIPQ_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int n = first_output + column + j * 8 + e;
        m[e] = n < p.outputs ? p.multiplier[n] : 0.0f;
        b[e] = n < p.outputs ? p.bias[n] : 0.0f;
      }
      CLIPQ_UNROLL
      for (int i = 0; i < kTilesM; ++i) {
        CLIPQ_UNROLL
        for (int h = 0; h < 2; ++h) {
          uint16_t *pair = reinterpret_cast<uint16_t *>(shared + (line + i * 16 + h * 8) * kLine +
                                                        column + j * 8);
          const uint32_t added = p.residual_order ? *pair : 0;
          uint32_t codes = 0;
          CLIPQ_UNROLL
          for (int e = 0; e < 2; ++e) {
            const float r = residual_value(p, static_cast<uint8_t>(added >> (8 * e)));
            const float v = finish(p, sums[i][j][h * 2 + e], m[e], b[e], r);
            codes |= device::to_code(v, p.dst_kind == kInt8) << (8 * e);
          }
          *pair = static_cast<uint16_t>(codes);
        }
      }
    }
    device::synchronize();
    store_codes(p, first_pixel, first_output, shared);
  }
};

template <typename Kernel>
void launch_conv(const ProductArgs &args, ClipqStream stream) {
  device::launch_blocks<Kernel>(args, (args.pixels + Kernel::kPixels - 1) / Kernel::kPixels,
                                (args.outputs + Kernel::kOutputs - 1) / Kernel::kOutputs,
                                args.splits, stream);
}

// Calls `visit` with the kernel of a tile, small results last and the one of few channels at the end;
// returns whether there is such a tile.
template <bool kSigned, typename Visit>
bool with_tile(int tile, Visit visit) {
  switch (tile) {
    case 0: return visit(ConvKernel<256, 128, 4, 2, 3, false, kSigned>{}), true;
    case 1: return visit(ConvKernel<128, 128, 2, 2, 3, false, kSigned>{}), true;
    case 2: return visit(ConvKernel<128, 64, 2, 2, 4, false, kSigned>{}), true;
    case 3: return visit(ConvKernel<64, 64, 2, 2, 4, false, kSigned>{}), true;
    case 4: return visit(ConvKernel<64, 32, 2, 1, 4, false, kSigned>{}), true;
    case 5: return visit(ConvKernel<128, 64, 4, 1, 3, true, kSigned>{}), true;
  }
  return false;
}

template <bool kSigned>
void launch_tile(const ProductArgs &args, int tile, ClipqStream stream) {
  const bool found = with_tile<kSigned>(
      tile, [&](auto kernel) { launch_conv<decltype(kernel)>(args, stream); });
  if (!found) throw std::runtime_error("there is no tile of this number");
}
