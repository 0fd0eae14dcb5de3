// Runs the CUDA sources on the CPU, for tests on machines without a GPU: the threads of one block
// at a time, the blocks one after another. Shared memory holds NaN before each block.
//
// By default every CUDA thread is a fiber: quick, in a chosen order, and a barrier that not every
// thread reaches is an error. With SACCADE_SHIM_THREADS every CUDA thread is a thread of the
// system, so that ThreadSanitizer sees what a barrier orders and what it does not.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#ifdef SACCADE_SHIM_THREADS
#include <barrier>
#include <thread>
#else
#include <setjmp.h>
#include <stdio.h>
#include <ucontext.h>
#endif

namespace saccade_shim {

constexpr unsigned kWarp = 32;

struct Dim {
  unsigned x, y, z;
};

struct Warp;

// What a thread knows of itself.
struct Lane {
  Dim thread, block;
  unsigned lane, exchanges;
  Warp* warp;
};

struct Sizes {
  Dim grid, block;
};

inline Sizes sizes;
inline unsigned char* shared_memory;

#ifdef SACCADE_SHIM_THREADS

inline thread_local Lane* lane;

class Barrier {
 public:
  explicit Barrier(unsigned count) : barrier_(count) {}
  void wait() { barrier_.arrive_and_wait(); }

 private:
  std::barrier<> barrier_;
};

#else

inline Lane* lane;
inline int order = 0;  // of threads: 0 ascending, 1 descending, others a shuffle of that seed

// Fibers of one block, resumed in turn until all have returned. A context only begins a fiber; from
// then on long jumps switch, which unlike contexts cost no system call.
class Fibers {
 public:
  static Fibers& instance() {
    static Fibers fibers;
    return fibers;
  }

  template <class Body>
  void run(std::vector<Lane>& lanes, const Body& body) {
    body_ = [](const void* b) { (*static_cast<const Body*>(b))(); };
    argument_ = &body;
    const size_t count = lanes.size();
    while (stacks_.size() < count) stacks_.emplace_back(kStack);
    contexts_.resize(count);
    begun_.assign(count, false);
    finished_.assign(count, false);
    marks_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      getcontext(&contexts_[i]);
      contexts_[i].uc_stack.ss_sp = stacks_[i].data();
      contexts_[i].uc_stack.ss_size = kStack;
      contexts_[i].uc_link = nullptr;
      makecontext(&contexts_[i], &Fibers::begin, 0);
    }
    const std::vector<size_t> turns = turns_of(count);
    size_t left = count;
    while (left) {
      progress_ = false;
      for (size_t i : turns) {
        if (finished_[i]) continue;
        lane = &lanes[i];
        resume(i);
        if (finished_[i]) --left;
      }
      if (!progress_) {
        fprintf(stderr, "shim: some threads of a block wait at a barrier, others do not\n");
        abort();
      }
    }
  }

  void pause() {
    if (!_setjmp(marks_[current_].at)) _longjmp(scheduler_, 1);
  }
  void made_progress() { progress_ = true; }

 private:
  static constexpr size_t kStack = 1 << 16;

  static void begin() {
    Fibers& fibers = instance();
    fibers.body_(fibers.argument_);
    fibers.finished_[fibers.current_] = true;
    fibers.progress_ = true;
    _longjmp(fibers.scheduler_, 1);
  }

  [[gnu::noinline]] void resume(size_t i) {
    current_ = i;
    if (_setjmp(scheduler_)) return;
    if (begun_[i]) _longjmp(marks_[i].at, 1);
    begun_[i] = true;
    setcontext(&contexts_[i]);
  }

  struct Mark {
    jmp_buf at;
  };

  static std::vector<size_t> turns_of(size_t count) {
    std::vector<size_t> turns(count);
    for (size_t i = 0; i < count; ++i) turns[i] = order == 1 ? count - 1 - i : i;
    uint32_t state = static_cast<uint32_t>(order);
    for (size_t i = count; order > 1 && i > 1; --i) {
      state = state * 1664525u + 1013904223u;
      const size_t j = (state >> 8) % i, kept = turns[i - 1];
      turns[i - 1] = turns[j];
      turns[j] = kept;
    }
    return turns;
  }

  void (*body_)(const void*) = nullptr;
  const void* argument_ = nullptr;
  jmp_buf scheduler_;
  std::vector<Mark> marks_;
  std::vector<ucontext_t> contexts_;
  std::vector<std::vector<char> > stacks_;
  std::vector<bool> begun_, finished_;
  size_t current_ = 0;
  bool progress_ = false;
};

class Barrier {
 public:
  explicit Barrier(unsigned count) : count_(count) {}
  void wait() {
    const unsigned generation = generation_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++generation_;
      Fibers::instance().made_progress();
      return;
    }
    while (generation == generation_) Fibers::instance().pause();
  }

 private:
  unsigned count_, arrived_ = 0, generation_ = 0;
};

#endif

// Two sets of slots, used in turn: a lane that is ahead does not overwrite what another still
// reads.
struct Warp {
  uint64_t slots[2][kWarp];
  uint32_t wide[2][kWarp][8];
  Barrier barrier{kWarp};
};

inline Barrier* block_barrier;

template <class T>
T exchange(T value, unsigned from) {
  static_assert(sizeof(T) <= 8);
  auto& slots = lane->warp->slots[lane->exchanges++ & 1];
  memcpy(&slots[lane->lane], &value, sizeof(T));
  lane->warp->barrier.wait();
  memcpy(&value, &slots[from], sizeof(T));
  return value;
}

inline unsigned ballot(bool set) {
  auto& slots = lane->warp->slots[lane->exchanges++ & 1];
  slots[lane->lane] = set;
  lane->warp->barrier.wait();
  unsigned mask = 0;
  for (unsigned i = 0; i < kWarp; ++i) mask |= static_cast<unsigned>(slots[i]) << i;
  return mask;
}

// Runs `body` for every thread of every block. Blocks hold whole warps.
template <class Body>
void launch(Dim grid, Dim block, size_t shared, const Body& body) {
  const unsigned count = block.x * block.y * block.z;
  if (count == 0 || count % kWarp) abort();
  sizes = {grid, block};
  std::vector<uint64_t> memory(shared / 8 + 2);
  shared_memory = reinterpret_cast<unsigned char*>(memory.data());
  shared_memory += -reinterpret_cast<uintptr_t>(shared_memory) & 15;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        memset(shared_memory, 0xff, shared);
        Barrier barrier(count);
        block_barrier = &barrier;
        std::vector<Warp> warps(count / kWarp);
        std::vector<Lane> lanes(count);
        for (unsigned i = 0; i < count; ++i) {
          const Dim at{i % block.x, i / block.x % block.y, i / block.x / block.y};
          lanes[i] = {at, {x, y, z}, i % kWarp, 0, &warps[i / kWarp]};
        }
#ifdef SACCADE_SHIM_THREADS
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < count; ++i)
          threads.emplace_back([&lanes, &body, i] {
            lane = &lanes[i];
            body();
          });
        for (auto& each : threads) each.join();
#else
        Fibers::instance().run(lanes, body);
#endif
      }
}

}  // namespace saccade_shim

#ifndef SACCADE_SHIM_THREADS
// Chooses the order of threads of the launches that follow.
extern "C" void saccade_shim_order(int order) {
  saccade_shim::order = order;
}
#endif

#define threadIdx (saccade_shim::lane->thread)
#define blockIdx (saccade_shim::lane->block)
#define blockDim (saccade_shim::sizes.block)
#define gridDim (saccade_shim::sizes.grid)
