#include "saccade/threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define SACCADE_PAUSE() _mm_pause()
#else
#define SACCADE_PAUSE() std::this_thread::yield()
#endif

namespace saccade {
namespace {

// Workers poll for about 50 us before they sleep: longer than the gap between two kernels of one
// layer, short enough to leave the processor to others between steps.
constexpr int kSpins = 2000;

}  // namespace

struct ThreadPool::State {
  int threads = 1;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::atomic<int> active{0};
  std::atomic<int64_t> next{0};
  int64_t items = 0;
  ItemFn fn = nullptr;
  void* context = nullptr;
  char* arena = nullptr;
  int64_t arena_bytes = 0;

  void drain(int thread) {
    for (int64_t i = next.fetch_add(1); i < items; i = next.fetch_add(1)) fn(context, i, thread);
  }

  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load() == seen && !stop.load(); ++spin)
        SACCADE_PAUSE();
      if (generation.load() == seen && !stop.load()) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return generation.load() != seen || stop.load(); });
      }
      if (stop.load()) return;
      seen = generation.load();
      drain(thread);
      active.fetch_sub(1);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(new State) {
  state_->threads = threads < 1 ? 1 : threads;
  for (int t = 1; t < state_->threads; ++t) {
    state_->workers.emplace_back([this, t] { state_->work(t); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->wake.notify_all();
  for (auto& worker : state_->workers) worker.join();
  std::free(state_->arena);
}

int ThreadPool::size() const {
  return state_->threads;
}

void ThreadPool::run(int64_t items, ItemFn fn, void* context) {
  State& s = *state_;
  if (items <= 0) return;
  if (items == 1 || s.threads == 1) {
    for (int64_t i = 0; i < items; ++i) fn(context, i, 0);
    return;
  }
  s.items = items;
  s.fn = fn;
  s.context = context;
  s.next.store(0);
  s.active.store(s.threads - 1);
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.generation.fetch_add(1);
  }
  s.wake.notify_all();
  s.drain(0);
  // Every worker must have left drain() before the next run may change `fn`.
  while (s.active.load() != 0) SACCADE_PAUSE();
}

char* ThreadPool::scratch(int64_t bytes_per_thread) {
  State& s = *state_;
  const int64_t slice = (bytes_per_thread + 4095) / 4096 * 4096;
  if (slice * s.threads > s.arena_bytes) {
    std::free(s.arena);
    s.arena = nullptr;
    s.arena_bytes = slice * s.threads;
    s.arena = static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>(s.arena_bytes)));
    if (s.arena == nullptr) {
      s.arena_bytes = 0;
      throw std::bad_alloc();
    }
  }
  return s.arena;
}

}  // namespace saccade
