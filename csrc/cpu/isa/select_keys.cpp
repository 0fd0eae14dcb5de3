// Blocks chosen by the scores of the keys themselves. First every stretch of kKeys keys is scored
// for one row (all its heads) and leaves the best of each block; then every head ranks its blocks;
// then the lists are written. A score is summed over channels in ascending order, so that a row's
// list depends on that row alone.
#include <math.h>
#include <stdlib.h>

#include "best.h"
#include "product.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kKeys = 512;  // scored at a time; no block is larger
constexpr int64_t kRows = 16;   // rows whose scores are kept at a time

enum Union { kPerHead = 0, kRankMajor = 1, kMeanProb = 2 };

struct KeysJob {
  const SelectKeysParams* p;
  int64_t first_row, rows;  // of this round
  int64_t blocks;           // scores per row and owner
  int64_t owners;           // of scores: heads, or one where their probabilities are summed
  int64_t stretches;        // per row, at most
  float* scores;            // [kRows][owners][blocks]
  Best* best;               // [kRows][owners]
  unsigned char* taken;     // [kRows][blocks]
  char* scratch;
  int64_t slice;
};

int64_t sequence_of(const SelectKeysParams& p, int64_t row) {
  int64_t low = 0, high = p.seqs;  // cu_rows[low] <= row < cu_rows[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.cu_rows[middle] <= row ? low : high) = middle;
  }
  return low;
}

// ---- scores of one row over one stretch of keys ----

template <class S>
struct Stretch {
  using A = typename S::A;
  using B = typename S::B;
  static constexpr int kU = S::kUnit;
  const KeysJob& job;
  const SelectKeysParams& p;
  int64_t row, first, group;
  A* q;           // [group][dim]
  float* scores;  // [group][kKeys]
  float* mass;    // [kKeys]
  const B* panel;
  const B* ahead;
  float* to;

  int64_t carve(char* from) {
    const char* begin = from;
    const auto take = [&from](int64_t bytes) {
      char* piece = from;
      from += (bytes + 63) / 64 * 64;
      return piece;
    };
    q = reinterpret_cast<A*>(take(group * p.dim * static_cast<int64_t>(sizeof(A))));
    scores = reinterpret_cast<float*>(take(group * kKeys * 4));
    mass = reinterpret_cast<float*>(take(kKeys * 4));
    return from - begin;
  }

  void load_q(int64_t kv_head) {
    for (int64_t h = 0; h < group; ++h) {
      const int64_t offset = row * p.q_row + (kv_head * group + h) * p.q_head;
      A* at = q + h * p.dim;
      if (sizeof(A) == static_cast<size_t>(size_of(p.dtype))) {
        std::memcpy(at, static_cast<const A*>(p.q) + offset,
                    static_cast<size_t>(p.dim) * sizeof(A));
        continue;
      }
      const uint16_t* from = static_cast<const uint16_t*>(p.q) + offset;
      const bool bf16 = p.dtype == DType::kBF16;
      for (int64_t c = 0; c < p.dim; ++c)
        at[c] = static_cast<A>(bf16 ? widen_bf16(from[c]) : get_one<ElementF16>(from + c));
    }
  }

  const B* page_at(int64_t key, int64_t kv_head) const {
    const int64_t index = key / p.page, seq = sequence_of(p, row);
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    if (key > p.positions[row] || id < 0 || id >= p.pages) return nullptr;
    return static_cast<const B*>(p.k_pages) + p.steps.panel(id, kv_head) * p.page * p.dim;
  }

  template <int M, int NV>
  SACCADE_INLINE void tile(int64_t r, int64_t at) {
    F<W> acc[M][NV] = {};
    const int64_t steps = p.dim / kU;
    Ahead wanted;
    if (ahead != nullptr && r == 0) {
      const int64_t bytes = NV * W * p.dim * static_cast<int64_t>(sizeof(B));
      wanted = Ahead::over(ahead + at * p.dim, bytes, steps);
    }
    product<S, W, NV, M>(acc, q + r * p.dim, p.dim, panel + at * kU, p.page * kU, steps, wanted);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n)
        store(to + (r + m) * kKeys + at + n * W, acc[m][n] * splat<W>(p.scale));
  }

  // Keys beyond the row, and those without a page, score NaN, which is never chosen.
  void score(int64_t kv_head) {
    load_q(kv_head);
    const int64_t last = p.positions[row], step = p.page < kKeys ? p.page : kKeys;
    const B* next = page_at(first, kv_head);
    for (int64_t at = 0; at < kKeys; at += step) {
      panel = next;
      next = at + step < kKeys ? page_at(first + at + step, kv_head) : nullptr;
      ahead = next;
      to = scores + at;
      if (panel != nullptr) for_tiles<W>(*this, group, 0, step);
      const int64_t known = panel == nullptr ? 0 : last + 1 - first - at;
      for (int64_t h = 0; h < group; ++h)
        for (int64_t i = known < step ? known : step; i < step; ++i) to[h * kKeys + i] = NAN;
    }
  }

  // Adds the probabilities of a head's scores.
  void add_mass(const float* s, float lse) {
    constexpr float kLog2E = 1.4426950408889634f;
    for (int64_t i = 0; i < kKeys; i += W) {
      const F<W> x = (load<F<W>>(s + i) - splat<W>(lse)) * splat<W>(kLog2E);
      store(mass + i, load<F<W>>(mass + i) + exp2_nonpositive<W>(x));
    }
  }

  // The best key of each block, NaN aside; NaN where there is none.
  void keep_best(const float* s, int64_t owner) const {
    float* blocks = job.scores + ((row - job.first_row) * job.owners + owner) * job.blocks;
    for (int64_t at = 0; at < kKeys; at += p.block) {
      const int64_t block = (first + at) / p.block;
      if (block >= job.blocks) return;
      F<W> best = splat<W>(-INFINITY);
      for (int64_t i = 0; i < p.block; i += W) best = max<W>(load<F<W>>(s + at + i), best);
      const float most = max_lanes<W>(best);
      blocks[block] = most == -INFINITY ? NAN : most;
    }
  }

  void run() {
    if (first > p.positions[row]) return;
    std::memset(mass, 0, kKeys * sizeof(float));
    for (int64_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
      score(kv_head);
      for (int64_t h = 0; h < group; ++h) {
        const int64_t head = kv_head * group + h;
        if (p.unite == kMeanProb) {
          add_mass(scores + h * kKeys, p.lse[row * p.heads + head]);
        } else {
          keep_best(scores + h * kKeys, head);
        }
      }
    }
    if (p.unite == kMeanProb) keep_best(mass, 0);
  }
};

template <class S>
void stretch_item(void* context, int64_t item, int thread) {
  const KeysJob& job = *static_cast<KeysJob*>(context);
  const SelectKeysParams& p = *job.p;
  Stretch<S> one{job,
                 p,
                 job.first_row + item / job.stretches,
                 item % job.stretches * kKeys,
                 p.heads / p.kv_heads,
                 nullptr,
                 nullptr,
                 nullptr,
                 nullptr,
                 nullptr,
                 nullptr};
  one.carve(job.scratch + thread * job.slice);
  one.run();
}

// ---- ranks and lists ----

ListEnds ends_of(const SelectKeysParams& p, int64_t row) {
  return list_ends(p.positions[row] / p.block, p.first, p.recent);
}

void rank_item(void* context, int64_t item, int) {
  const KeysJob& job = *static_cast<KeysJob*>(context);
  const SelectKeysParams& p = *job.p;
  const int64_t row = job.first_row + item / job.owners;
  const ListEnds ends = ends_of(p, row);
  const float* scores = job.scores + item * job.blocks;
  Best& best = job.best[item];
  best.count = 0;
  best.k = p.listed - ends.forced();
  for (int64_t j = ends.head; best.k > 0 && j < ends.tail; ++j)
    best.offer(scores[j], static_cast<int32_t>(j));
  if (p.unite == kRankMajor) return;
  write_list(best, ends, p.ids + (row * job.owners + item % job.owners) * p.listed, p.listed);
}

// Every head's best block, then every head's second, and so on.
void unite_item(void* context, int64_t item, int) {
  const KeysJob& job = *static_cast<KeysJob*>(context);
  const SelectKeysParams& p = *job.p;
  const ListEnds ends = ends_of(p, job.first_row + item);
  const Best* heads = job.best + item * job.owners;
  unsigned char* taken = job.taken + item * job.blocks;
  std::memset(taken, 0, static_cast<size_t>(job.blocks));
  Best all;
  all.count = 0;
  all.k = p.listed - ends.forced();
  for (int64_t rank = 0; rank < all.k; ++rank)
    for (int64_t head = 0; head < job.owners && all.count < all.k; ++head) {
      if (rank >= heads[head].count || taken[heads[head].ids[rank]]) continue;
      taken[heads[head].ids[rank]] = 1;
      all.ids[all.count++] = heads[head].ids[rank];
    }
  write_list(all, ends, p.ids + (job.first_row + item) * p.listed, p.listed);
}

template <class S>
void select_with(const SelectKeysParams& p, ThreadPool& pool) {
  int64_t last = 0;
  for (int64_t row = 0; row < p.rows; ++row)
    last = p.positions[row] > last ? p.positions[row] : last;
  KeysJob job{&p,
              0,
              0,
              last / p.block + 1,
              p.unite == kMeanProb ? 1 : p.heads,
              last / kKeys + 1,
              nullptr,
              nullptr,
              nullptr,
              nullptr,
              0};
  Stretch<S> measure{job,     p,       0,       0,      p.heads / p.kv_heads, nullptr, nullptr,
                     nullptr, nullptr, nullptr, nullptr};
  job.slice = (measure.carve(nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  const int64_t most = p.rows < kRows ? p.rows : kRows;
  job.scores = static_cast<float*>(
      malloc(static_cast<size_t>(most * job.owners * job.blocks) * sizeof(float)));
  job.best = static_cast<Best*>(malloc(static_cast<size_t>(most * job.owners) * sizeof(Best)));
  job.taken = static_cast<unsigned char*>(malloc(static_cast<size_t>(most * job.blocks)));
  for (; job.first_row < p.rows; job.first_row += kRows) {
    job.rows = p.rows - job.first_row < kRows ? p.rows - job.first_row : kRows;
    pool.run(job.rows * job.stretches, stretch_item<S>, &job);
    pool.run(job.rows * job.owners, rank_item, &job);
    if (p.unite == kRankMajor) pool.run(job.rows, unite_item, &job);
  }
  free(job.taken);
  free(job.best);
  free(job.scores);
}

}  // namespace

void select_keys(const SelectKeysParams& p, ThreadPool& pool) {
  if (p.dtype == DType::kF32) return select_with<StepF32>(p, pool);
  if (p.dtype == DType::kF16) return select_with<StepF16>(p, pool);
#if defined(__AVX512BF16__)
  select_with<StepBF16>(p, pool);
#else
  select_with<StepPairs>(p, pool);
#endif
}

}  // namespace SACCADE_ISA
}  // namespace saccade
