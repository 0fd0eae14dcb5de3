// A small thread pool: kernels split themselves into items, threads take the next item until none
// is left.
#pragma once
#include <cstdint>
#include <memory>

namespace saccade {

// A plain function pointer, so that no template of the standard library is instantiated inside code
// that is compiled for one instruction set (the linker could give that instance to everybody).
using ItemFn = void (*)(void* context, int64_t item, int thread);

// Work of one thread, in nanoseconds by rough estimate, from which on it is worth handing items to
// threads that are awake, and waking those that sleep.
constexpr int64_t kShareWorth = 4000;
constexpr int64_t kWakeWorth = 40000;
constexpr int64_t kMuchWork = INT64_MAX;

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;
  // Runs fn for items 0 .. items-1, which are `nanoseconds` of work together; which thread runs
  // which item is not fixed, and the caller runs those that nobody else has come for. Returns when
  // all are done.
  void run(int64_t items, ItemFn fn, void* context, int64_t nanoseconds = kMuchWork);
  // One 64-byte aligned slice of at least `bytes` per thread, kept between calls; contents
  // undefined.
  char* scratch(int64_t bytes_per_thread);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saccade
