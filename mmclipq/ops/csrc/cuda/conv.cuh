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
//
// A thread finishes its sums eight outputs at a time. Smooth activations are a function that is called
// with values in shared memory: their code is long, and a loop cannot count registers.
#pragma once

#include "conv_source.cuh"
#include "product.cuh"

template <int kPixels_, int kOutputs_, int kWarpsM, int kWarpsN, int kStages, bool kNarrow,
          bool kSigned>
struct ConvKernel {
  using Args = ProductArgs;
  static constexpr int kPixels = kPixels_, kOutputs = kOutputs_;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32, kDepth = 64;
  static constexpr bool kFewChannels = kNarrow;
  // Blocks that a multiprocessor must have registers for, 0 for as the compiler likes: it would rather
  // spill a register of the tiles of 128x64 than have fewer than four, for which their shared memory
  // has no room.
  static constexpr int kBlocks = kPixels == 128 && kOutputs == 64 ? 3 : 0;
  static constexpr int kWarpPixels = kPixels / kWarpsM, kWarpOutputs = kOutputs / kWarpsN;
  static constexpr int kTilesM = kWarpPixels / 16, kTilesN = kWarpOutputs / 8;
  static constexpr int kStage = (kPixels + kOutputs) * kDepth;
  static constexpr int kLine = kOutputs + 16;  // of results, apart from the banks of the next line
  static constexpr int kValues = kTilesM * 4;      // of a thread that are finished at a time
  static constexpr int kFinish = kPixels * kLine + kValues * kThreads * 4;
  static constexpr int kShared = kStage * kStages > kFinish ? kStage * kStages : kFinish;
  // Each thread copies the same chunk of every kLines-th line.
  static constexpr int kLines = kThreads / 4;
  static constexpr int kPassesM = (kPixels + kLines - 1) / kLines;
  static constexpr int kPassesN = (kOutputs + kLines - 1) / kLines;
  static_assert(kTilesN % 2 == 0, "matrices of weights are loaded in pairs");

  using Sums = int[kTilesM][kTilesN][4];
  using Values = float[kTilesM][4];  // of one of the kTilesN; pixel half h, output e at [2 * h + e]

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

  // A thread's values pass through its slots of shared memory.
  static CLIPQ_DEVICE void activate_all(const Args &p, uint8_t *shared, Values &values) {
    float *slots = reinterpret_cast<float *>(shared + kPixels * kLine) + device::thread();
    CLIPQ_UNROLL
    for (int k = 0; k < kValues; ++k) slots[k * kThreads] = values[k >> 2][k & 3];
    activate_slots<kValues, kThreads>(p.activation, p.alpha, slots);
    CLIPQ_UNROLL
    for (int k = 0; k < kValues; ++k) values[k >> 2][k & 3] = slots[k * kThreads];
  }

  // What follows the sums of eight outputs: `residual(i, h, e)` is the value that is added.
  template <typename Residual>
  static CLIPQ_DEVICE void finish_all(const Args &p, uint8_t *shared, int output, int j,
                                      const Sums &sums, Residual residual, Values &values) {
    float m[2], b[2];
    int correction[2];
    CLIPQ_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int n = output + j * 8 + e;
      m[e] = n < p.outputs ? p.multiplier[n] : 0.0f;
      b[e] = n < p.outputs ? p.bias[n] : 0.0f;
      correction[e] = p.correction != nullptr && n < p.outputs ? p.correction[n] : 0;
    }
    CLIPQ_UNROLL
    for (int i = 0; i < kTilesM; ++i) {
      CLIPQ_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int acc = sums[i][j][e] + correction[e & 1];
        values[i][e] = begin(p, acc, m[e & 1], b[e & 1], residual(i, e >> 1, e & 1));
      }
    }
    if (is_smooth(p.activation)) activate_all(p, shared, values);
    CLIPQ_UNROLL
    for (int i = 0; i < kTilesM; ++i) {
      CLIPQ_UNROLL
      for (int e = 0; e < 4; ++e) {
        values[i][e] = finish(p, values[i][e], residual(i, e >> 1, e & 1));
      }
    }
  }

  static CLIPQ_DEVICE void store_floats(const Args &p, uint8_t *shared, int pixel, int output,
                                        const Sums &sums) {
    float *dst = static_cast<float *>(p.dst);
    CLIPQ_UNROLL
    for (int j = 0; j < kTilesN; ++j) {
      const auto residual = [&](int i, int h, int e) {
        const int m = pixel + i * 16 + h * 8, n = output + j * 8 + e;
        if (p.residual_order == kNone || m >= p.pixels || n >= p.outputs) return 0.0f;
        return residual_value(p, p.residual[residual_pixel(p, m) * p.residual_stride + n]);
      };
      Values values;
      finish_all(p, shared, output, j, sums, residual, values);
      CLIPQ_UNROLL
      for (int i = 0; i < kTilesM; ++i) {
        CLIPQ_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int m = pixel + i * 16 + (e >> 1) * 8, n = output + j * 8 + (e & 1);
          if (m < p.pixels && n < p.outputs) {
            dst[static_cast<int64_t>(m) * p.dst_stride + n] = values[i][e];
          }
        }
      }
    }
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

    ConvSource<ConvKernel> source;
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
      store_floats(p, shared, first_pixel + line, first_output + column, sums);
      return;
    }
    if (p.residual_order) load_residual(p, first_pixel, first_output, shared);
    CLIPQ_UNROLL
    for (int j = 0; j < kTilesN; ++j) {
      uint8_t *lines = shared + line * kLine + column + j * 8;
      const auto residual = [&](int i, int h, int e) {
        return p.residual_order ? residual_value(p, lines[(i * 16 + h * 8) * kLine + e]) : 0.0f;
      };
      Values values;
      finish_all(p, shared, first_output + column, j, sums, residual, values);
      CLIPQ_UNROLL
      for (int i = 0; i < kTilesM; ++i) {
        CLIPQ_UNROLL
        for (int h = 0; h < 2; ++h) {
          uint32_t codes = 0;
          CLIPQ_UNROLL
          for (int e = 0; e < 2; ++e) {
            const float v = values[i][2 * h + e];
            codes |= to_code(v, p.dst_kind == kInt8, p.dst_offset) << (8 * e);
          }
          *reinterpret_cast<uint16_t *>(lines + (i * 16 + h * 8) * kLine) =
              static_cast<uint16_t>(codes);
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
