// A small thread pool: kernels split themselves into items, threads take the next item until none
// is left.
#pragma once
#include <cstdint>
#include <memory>

namespace saccade {

// A plain function pointer, so that no template of the standard library is instantiated inside code
// that is compiled for one instruction set (the linker could give that instance to everybody).
using ItemFn = void (*)(void* context, int64_t item, int thread);

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;
  // Runs fn for items 0 .. items-1; which thread runs which item is not fixed. Returns when all are
  // done.
  void run(int64_t items, ItemFn fn, void* context);
  // One 64-byte aligned slice of at least `bytes` per thread, kept between calls; contents
  // undefined.
  char* scratch(int64_t bytes_per_thread);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saccade
