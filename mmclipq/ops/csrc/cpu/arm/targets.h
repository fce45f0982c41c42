// Compiles the file named CLIPQ_BODY with NEON, which every 64-bit Arm processor has. CLIPQ_BEST(name) is
// its function.
#include <arm_neon.h>

#include "api.h"
#include "codes.h"

#define CLIPQ_BEST(name) v1::name

namespace {
namespace v1 {
constexpr int kLanes = 4;
typedef uint32x4_t Words;
typedef uint8x8_t Packed;
// As x86 has them: the second where either is no number.
CLIPQ_INLINE float32x4_t minimum(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
CLIPQ_INLINE float32x4_t maximum(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
CLIPQ_INLINE uint32x4_t widened(uint8x8_t bytes) {
  return vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
}
CLIPQ_INLINE uint8x8_t last_bytes(uint32x4_t v) {
  const uint16x4_t words = vmovn_u32(v);
  return vmovn_u16(vcombine_u16(words, words));
}
#include "vector.h"
#include CLIPQ_BODY
}  // namespace v1
}  // namespace
