// Fibers and delayed copies of the emulation; x86-64 only.

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#include "device.cuh"

// Saves the registers that a callee must keep, and the stack pointer in *from; goes on at `to`.
extern "C" void clipq_switch(void **from, void *to);
asm(R"(
.text
.globl clipq_switch
.type clipq_switch, @function
clipq_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size clipq_switch, .-clipq_switch
)");

namespace device {

int current_thread, current_block[3];
uint32_t lanes[kMaxThreads][16];

namespace {

constexpr int kStack = 1 << 17;

struct Copy {
  void *shared;
  const void *global;
  int bytes;
  bool inside;
};

struct Barrier {
  int arrived = 0, round = 0;
};

struct Fiber {
  void *stack_pointer = nullptr;
  std::vector<uint8_t> stack = std::vector<uint8_t>(kStack);
  std::vector<Copy> open;                // copies since the last commit
  std::deque<std::vector<Copy>> groups;  // committed, the oldest first
  bool done = false;
};

Fiber fibers[kMaxThreads];
Barrier whole, warps[kMaxThreads / 32];
void *scheduler;
int running;
const std::function<void()> *entry;
bool late, backwards;

[[noreturn]] void fail(const char *what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

// Lets the next thread that is not done go on.
void yield() {
  const int self = current_thread;
  for (int i = 1; i <= running; ++i) {
    const int next = (self + (backwards ? running - i : i)) % running;
    if (fibers[next].done) continue;
    if (next == self) return;
    current_thread = next;
    clipq_switch(&fibers[self].stack_pointer, fibers[next].stack_pointer);
    return;
  }
  clipq_switch(&fibers[self].stack_pointer, scheduler);
}

void start() {
  (*entry)();
  fibers[current_thread].done = true;
  yield();
}

void arrive(Barrier &barrier, int count) {
  const int round = barrier.round;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  for (int turns = 0; barrier.round == round; ++turns) {
    if (turns > 1 << 20) fail("a thread waits at a barrier that others never reach");
    yield();
  }
}

void copy_now(const Copy &copy) {
  if (copy.inside) {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
}

}  // namespace

void synchronize() { arrive(whole, running); }
void synchronize_warp() { arrive(warps[current_thread >> 5], 32); }

void copy_later(void *shared, const void *global, int bytes, bool inside) {
  const auto from = reinterpret_cast<uintptr_t>(global), to = reinterpret_cast<uintptr_t>(shared);
  if (to % bytes != 0 || from % bytes != 0) fail("a copy to shared memory is not aligned");
  const Copy copy{shared, global, bytes, inside};
  if (late) {
    fibers[current_thread].open.push_back(copy);
  } else {
    copy_now(copy);
  }
}

void commit() {
  Fiber &self = fibers[current_thread];
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void wait_for_copies(int pending) {
  auto &groups = fibers[current_thread].groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy &copy : groups.front()) copy_now(copy);
    groups.pop_front();
  }
}

uint8_t *fresh_shared(int bytes) {
  static std::vector<uint8_t> memory;
  if (memory.size() < static_cast<size_t>(bytes) + 128) memory.resize(bytes + 128);
  std::fill(memory.begin(), memory.end(), 0x55);
  return memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128);
}

void run_block(int threads, const std::function<void()> &body) {
  if (threads > kMaxThreads) fail("a block has more threads than the emulation");
  running = threads;
  entry = &body;
  whole = {};
  for (Barrier &warp : warps) warp = {};
  for (int i = 0; i < threads; ++i) {
    Fiber &fiber = fibers[i];
    fiber.done = false;
    fiber.open.clear();
    fiber.groups.clear();
    // Six registers, then where the switch returns to; the stack is aligned as after a call.
    auto top = reinterpret_cast<uintptr_t>(fiber.stack.data() + kStack) & ~uintptr_t{15};
    auto *frame = reinterpret_cast<void **>(top - 8) - 7;
    std::fill(frame, frame + 7, nullptr);
    frame[6] = reinterpret_cast<void *>(&start);
    fiber.stack_pointer = frame;
  }
  current_thread = backwards ? threads - 1 : 0;
  clipq_switch(&scheduler, fibers[current_thread].stack_pointer);
}

}  // namespace device

// Whether copies arrive late, and whether threads take turns backwards.
extern "C" __attribute__((visibility("default"))) void clipq_emulation_order(int late,
                                                                            int backwards) {
  device::late = late != 0;
  device::backwards = backwards != 0;
}
