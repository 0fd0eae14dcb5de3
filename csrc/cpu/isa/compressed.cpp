// Attention over block summaries, and the blocks that weigh most. An item is one query row and one
// KV head; its heads go through the summaries four at a time, so that a summary is loaded once for
// four dot products. Every sum runs in ascending order of blocks, so a row's bits depend on that
// row alone.
#include <stdlib.h>

#include "best.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kHeads = 4;  // heads that share the load of a summary

struct Job {
  const CompressedParams* p;
  int64_t most;  // summaries that a row may see, rounded up to whole vectors
  char* scratch;
  int64_t slice;
};

int64_t whole_vectors(int64_t n) {
  return (n + W - 1) / W * W;
}

template <class E>
struct CompressedRow {
  using T = typename E::T;
  const CompressedParams& p;
  int64_t row, kv_head, seq, group, most;
  float* q;        // [group][dim]
  float* weights;  // [group][most]: scores, then probabilities
  float* mass;     // [most]: probabilities summed over the group
  const T** at;    // [most]: where the summaries lie, null: nowhere

  int64_t carve(char* from) {
    const char* begin = from;
    const auto take = [&from](int64_t bytes) {
      char* piece = from;
      from += (bytes + 63) / 64 * 64;
      return piece;
    };
    q = reinterpret_cast<float*>(take(group * p.dim * 4));
    weights = reinterpret_cast<float*>(take(group * most * 4));
    mass = reinterpret_cast<float*>(take(most * 4));
    at = reinterpret_cast<const T**>(take(most * 8));
    return from - begin;
  }

  const T* entry(int64_t block) const {
    const int64_t last = (block + 1) * p.block - 1, index = last / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    if (id < 0 || id >= p.pages) return nullptr;
    const int64_t slot = p.block < p.page ? last % p.page / p.block : 0;
    return static_cast<const T*>(p.entries) +
           ((id * p.slots + slot) * p.kv_heads + kv_head) * p.dim;
  }

  void load_q() {
    for (int64_t h = 0; h < group; ++h) {
      const T* from = static_cast<const T*>(p.q) + row * p.q_row + (kv_head * group + h) * p.q_head;
      float* to = q + h * p.dim;
      for_vectors<W>(
          p.dim, [&](int64_t i) { store(to + i, E::template get<W>(from + i)); },
          [&](int64_t i) { to[i] = get_one<E>(from + i); });
    }
  }

  // Lanes summed as sum_lanes does, but in registers down to four.
  template <int V>
  static SACCADE_INLINE float sum_of(F<V> v) {
    if constexpr (V == 4) {
      return (v[0] + v[2]) + (v[1] + v[3]);
    } else {
      F<V / 2> halves[2];
      std::memcpy(halves, &v, sizeof(v));
      return sum_of<V / 2>(halves[0] + halves[1]);
    }
  }

  // Scores of N heads from h on for one summary.
  template <int N>
  SACCADE_INLINE void score_heads(const T* from, int64_t h, int64_t block) {
    F<W> sums[N] = {};
    float rest[N] = {};
    for_vectors<W>(
        p.dim,
        [&](int64_t i) {
          const F<W> x = E::template get<W>(from + i);
          for (int n = 0; n < N; ++n)
            sums[n] = fma<W>(x, load<F<W>>(q + (h + n) * p.dim + i), sums[n]);
        },
        [&](int64_t i) {
          for (int n = 0; n < N; ++n) rest[n] += get_one<E>(from + i) * q[(h + n) * p.dim + i];
        });
    for (int n = 0; n < N; ++n)
      weights[(h + n) * most + block] = (sum_of<W>(sums[n]) + rest[n]) * p.scale;
  }

  // Channels i .. i + NV * W - 1 of N heads from h on: their sums stay in registers.
  template <int N, int NV>
  SACCADE_INLINE void add_channels(int64_t h, int64_t i, int64_t blocks) {
    F<W> acc[N][NV] = {};
    for (int64_t j = 0; j < blocks; ++j) {
      if (at[j] == nullptr) continue;
      F<W> x[NV];
      for (int v = 0; v < NV; ++v) x[v] = E::template get<W>(at[j] + i + v * W);
      for (int n = 0; n < N; ++n) {
        const F<W> weight = splat<W>(weights[(h + n) * most + j]);
        for (int v = 0; v < NV; ++v) acc[n][v] = fma<W>(x[v], weight, acc[n][v]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < NV; ++v) E::template put<W>(result(h + n) + i + v * W, acc[n][v]);
  }

  template <int N>
  SACCADE_INLINE void add_heads(int64_t h, int64_t blocks) {
    int64_t i = 0;
    for (; i + 3 * W <= p.v_dim; i += 3 * W) add_channels<N, 3>(h, i, blocks);
    for (; i + W <= p.v_dim; i += W) add_channels<N, 1>(h, i, blocks);
    for (; i < p.v_dim; ++i) {
      for (int n = 0; n < N; ++n) {
        float sum = 0.0f;
        for (int64_t j = 0; j < blocks; ++j)
          if (at[j] != nullptr) sum += get_one<E>(at[j] + i) * weights[(h + n) * most + j];
        put_one<E>(result(h + n) + i, sum);
      }
    }
  }

  T* result(int64_t h) const {
    return static_cast<T*>(p.out) + (row * p.heads + kv_head * group + h) * p.v_dim;
  }

  // Scores of a head over n summaries -> probabilities; returns the log-sum-exp.
  float softmax(float* s, int64_t n) const {
    constexpr float kLog2E = 1.4426950408889634f;
    F<W> high = splat<W>(-INFINITY);
    for (int64_t i = n; i < whole_vectors(n); ++i) s[i] = -INFINITY;
    for (int64_t i = 0; i < n; i += W) high = max<W>(load<F<W>>(s + i), high);
    const float top = max_lanes<W>(high);
    const F<W> base = splat<W>(top == -INFINITY ? 0.0f : top);
    F<W> total{};
    for (int64_t i = 0; i < n; i += W) {
      const F<W> e = exp2_nonpositive<W>((load<F<W>>(s + i) - base) * splat<W>(kLog2E));
      store(s + i, e);
      total += e;
    }
    const float sum = sum_lanes<W>(total);
    if (sum == 0.0f) return -INFINITY;
    for (int64_t i = 0; i < n; i += W) store(s + i, load<F<W>>(s + i) / splat<W>(sum));
    return base[0] + logf(sum);
  }

  void attend(int64_t n) {
    load_q();
    for (int64_t j = 0; j < n; ++j) {
      at[j] = entry(j);
      for (int64_t h = 0; at[j] == nullptr && h < group; ++h) weights[h * most + j] = -INFINITY;
      if (at[j] == nullptr) continue;
      int64_t h = 0;
      for (; h + kHeads <= group; h += kHeads) score_heads<kHeads>(at[j], h, j);
      for (; h < group; ++h) score_heads<1>(at[j], h, j);
    }
    std::memset(mass, 0, static_cast<size_t>(whole_vectors(n)) * sizeof(float));
    for (int64_t h = 0; h < group; ++h) {
      float* s = weights + h * most;
      p.lse[row * p.heads + kv_head * group + h] = softmax(s, n);
      for (int64_t i = 0; i < n; i += W) store(mass + i, load<F<W>>(mass + i) + load<F<W>>(s + i));
    }
    int64_t h = 0;
    for (; h + kHeads <= group; h += kHeads) add_heads<kHeads>(h, n);
    for (; h < group; ++h) add_heads<1>(h, n);
  }

  // The blocks always taken, and of the others those with most mass; ascending.
  void choose(int64_t own) const {
    int32_t* to = p.ids + (row * p.kv_heads + kv_head) * p.listed;
    for (int64_t i = 0; i < p.listed; ++i) to[i] = -1;
    if (p.positions[row] % p.every != 0) return;
    const int64_t head = p.first < own + 1 ? p.first : own + 1;
    const int64_t tail = own + 1 - p.recent > head ? own + 1 - p.recent : head;
    Best best;
    best.count = 0;
    best.k = p.listed - head - (own + 1 - tail);
    for (int64_t j = head; best.k > 0 && j < tail; ++j)
      best.offer(mass[j], static_cast<int32_t>(j));
    int64_t n = 0;
    for (int64_t j = 0; j < head; ++j) to[n++] = static_cast<int32_t>(j);
    for (int64_t i = 0; i < best.count; ++i) {
      int64_t at = n++;
      for (; at > head && to[at - 1] > best.ids[i]; --at) to[at] = to[at - 1];
      to[at] = best.ids[i];
    }
    for (int64_t j = tail; j <= own; ++j) to[n++] = static_cast<int32_t>(j);
  }
};

template <class E>
void run_item(void* context, int64_t item, int thread) {
  const Job& job = *static_cast<Job*>(context);
  const CompressedParams& p = *job.p;
  const int64_t row = item / p.kv_heads, position = p.positions[row];
  int64_t low = 0, high = p.seqs;  // cu_rows[low] <= row < cu_rows[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.cu_rows[middle] <= row ? low : high) = middle;
  }
  CompressedRow<E> one{p,        row,     item % p.kv_heads, low,     p.heads / p.kv_heads,
                       job.most, nullptr, nullptr,           nullptr, nullptr};
  one.carve(job.scratch + thread * job.slice);
  one.attend((position + 1) / p.block);
  one.choose(position / p.block);
}

template <class E>
void run_all(const CompressedParams& p, ThreadPool& pool) {
  int64_t last = 0;
  for (int64_t row = 0; row < p.rows; ++row)
    last = p.positions[row] > last ? p.positions[row] : last;
  Job job{&p, whole_vectors((last + 1) / p.block + 1), nullptr, 0};
  CompressedRow<E> measure{p,        0,       0,       0,       p.heads / p.kv_heads,
                           job.most, nullptr, nullptr, nullptr, nullptr};
  job.slice = (measure.carve(nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  pool.run(p.rows * p.kv_heads, run_item<E>, &job);
}

}  // namespace

void compressed(const CompressedParams& p, ThreadPool& pool) {
  if (p.dtype == DType::kF32) run_all<ElementF32>(p, pool);
  if (p.dtype == DType::kBF16) run_all<ElementBF16>(p, pool);
  if (p.dtype == DType::kF16) run_all<ElementF16>(p, pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
