#include "saccade/threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#define SACCADE_PAUSE() _mm_pause()
#else
#define SACCADE_PAUSE() std::this_thread::yield()
#endif

namespace saccade {
namespace {

using Clock = std::chrono::steady_clock;

// A sleeping worker costs the caller a system call and comes some 50 us late, on a virtual machine
// later still, so that workers stay awake from one kernel of a step to the next. Before they have
// waited for kEager they are alone with their processor; after it they offer it to others between
// looks; after kAwake they sleep.
constexpr auto kEager = std::chrono::microseconds(50);
constexpr auto kAwake = std::chrono::microseconds(1000);
constexpr int kLooks = 64;  // between two looks at the clock

// The run on offer in one word: workers inside it, whether it still takes workers, and its number.
constexpr uint64_t kInside = 0xffff;
constexpr uint64_t kOpen = 0x10000;
constexpr uint64_t kRun = 0x20000;

// Processors that this process may use, 0: unknown.
int processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// How often this process is the child of a fork. Workers stay behind in the parent, where what they
// wait for would be waited for in vain: a pool that is older than its process works alone.
std::atomic<int> forks{0};

int forks_so_far() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)registered;
  return forks.load(std::memory_order_relaxed);
}

}  // namespace

struct ThreadPool::State {
  int threads = 1;
  int born = forks_so_far();
  bool crowded = false;  // more threads than processors: looking out takes time from the others
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  int64_t items = 0;
  ItemFn fn = nullptr;
  void* context = nullptr;
  char* arena = nullptr;
  int64_t arena_bytes = 0;
  alignas(64) std::atomic<uint64_t> offer{0};
  std::atomic<int> asleep{0};
  std::atomic<bool> stop{false};
  alignas(64) std::atomic<int64_t> next{0};

  bool left_behind() const { return forks.load(std::memory_order_relaxed) != born; }

  void drain(int thread) {
    for (int64_t i = next.fetch_add(1); i < items; i = next.fetch_add(1)) fn(context, i, thread);
  }

  bool is_news(uint64_t seen) const { return offer.load() / kRun != seen || stop.load(); }

  void await(uint64_t seen) {
    const auto began = Clock::now();
    for (auto waited = Clock::duration::zero(); waited < kAwake; waited = Clock::now() - began) {
      if (crowded || waited > kEager) std::this_thread::yield();
      for (int look = 0; look < kLooks; ++look) {
        if (is_news(seen)) return;
        SACCADE_PAUSE();
      }
    }
    std::unique_lock<std::mutex> lock(mutex);
    asleep.fetch_add(1);  // before the last look: see `run`, which does it the other way round
    wake.wait(lock, [&] { return is_news(seen); });
    asleep.fetch_sub(1);
  }

  // Whether this worker is in the run now, and its number.
  bool enter(uint64_t& seen) {
    uint64_t now = offer.load();
    do {
      seen = now / kRun;
      if ((now & kOpen) == 0) return false;
    } while (!offer.compare_exchange_weak(now, now + 1));
    return true;
  }

  void work(int thread) {
    for (uint64_t seen = 0;;) {
      await(seen);
      if (stop.load()) return;
      if (!enter(seen)) continue;
      drain(thread);
      offer.fetch_sub(1);
    }
  }

  void wake_sleepers(int64_t most) {
    const int sleeping = asleep.load();
    if (sleeping == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex);
    }  // whoever counts as asleep waits by now
    if (most >= sleeping) {
      wake.notify_all();
    } else {
      for (int64_t i = 0; i < most; ++i) wake.notify_one();
    }
  }

  // Takes the offer back and waits for the workers inside; one that has not come by now is not
  // waited for. A worker may have lost its processor, perhaps to this very thread.
  void close() {
    uint64_t now = offer.fetch_and(~kOpen);
    for (int look = 0; (now & kInside) != 0; now = offer.load()) {
      SACCADE_PAUSE();
      if (crowded || ++look > kLooks * 16) std::this_thread::yield();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(new State) {
  state_->threads = threads < 1 ? 1 : threads;
  state_->crowded = state_->threads > processors() && processors() > 0;
  for (int t = 1; t < state_->threads; ++t) {
    state_->workers.emplace_back([this, t] { state_->work(t); });
  }
}

ThreadPool::~ThreadPool() {
  if (state_->left_behind()) {
    state_.release();  // neither its threads nor what they wait on can be taken down here
    return;
  }
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

void ThreadPool::run(int64_t items, ItemFn fn, void* context, int64_t nanoseconds) {
  State& s = *state_;
  if (items <= 0) return;
  if (items == 1 || s.threads == 1 || nanoseconds < kShareWorth || s.left_behind()) {
    for (int64_t i = 0; i < items; ++i) fn(context, i, 0);
    return;
  }
  s.items = items;
  s.fn = fn;
  s.context = context;
  s.next.store(0);
  s.offer.store((s.offer.load() / kRun + 1) * kRun + kOpen);
  if (nanoseconds >= kWakeWorth) s.wake_sleepers(items - 1);
  s.drain(0);
  s.close();
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
