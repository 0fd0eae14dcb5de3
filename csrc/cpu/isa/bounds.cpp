// Bounds on the keys of complete blocks, channel by channel, and the blocks whose bounds allow the
// highest scores. A selection item is one query row and one KV head: a block's bounds are loaded
// once for four query heads. A bound is computed from its block alone, so a row's list depends on
// that row alone.
#include <math.h>

#include "best.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kHeads = 4;    // query heads that share the load of a block's bounds
constexpr int64_t kPanel = 256;  // blocks scored before any is offered
constexpr int64_t kAhead = 4;    // blocks that are asked for in advance

// ---- bounds ----

// Least and greatest so far; a NaN stays.
struct Extremes {
  F<W> least = splat<W>(INFINITY), most = splat<W>(-INFINITY);
  SACCADE_INLINE void add(F<W> x) {
    least = (x < least) | (x != x) ? x : least;
    most = (x > most) | (x != x) ? x : most;
  }
  SACCADE_INLINE float lowest() const {
    float found = least[0];
    for (int i = 1; i < W; ++i) found = least[i] < found || least[i] != least[i] ? least[i] : found;
    return found;
  }
  SACCADE_INLINE float highest() const {
    float found = most[0];
    for (int i = 1; i < W; ++i) found = most[i] > found || most[i] != most[i] ? most[i] : found;
    return found;
  }
};

// The one (bf16: two) channels of panel row `from` over `keys` keys.
template <class E, int kU>
SACCADE_INLINE void add_keys(const typename E::T* from, int64_t keys, Extremes& even,
                             Extremes& odd) {
  for (int64_t i = 0; i < keys; i += W) {
    if constexpr (kU == 2) {
      const U<W> pairs = load<U<W>>(from + 2 * i);
      even.add((F<W>)(pairs << 16));
      odd.add((F<W>)(pairs & 0xffff0000u));
    } else {
      even.add(E::template get<W>(from + i));
    }
  }
}

template <class E, int kU>
void bounds_of_block(const KeyBoundsParams& p, int64_t index, int64_t head) {
  using T = typename E::T;
  const int64_t spread = p.block > p.page ? p.block / p.page : 1;
  const int64_t keys = p.block < p.page ? p.block : p.page;
  const int64_t offset = p.block < p.page ? p.home[index] % p.slots * p.block : 0;
  T* to = static_cast<T*>(p.bounds) + (p.home[index] * p.kv_heads + head) * 2 * p.dim;
  for (int64_t c = 0; c < p.dim; c += kU) {
    Extremes even, odd;
    for (int64_t i = 0; i < spread; ++i) {
      const int64_t page = p.members[index * spread + i];
      const T* k = static_cast<const T*>(p.k_pages) + (page * p.kv_heads + head) * p.page * p.dim;
      add_keys<E, kU>(k + c * p.page + offset * kU, keys, even, odd);
    }
    put_one<E>(to + c, even.lowest());
    put_one<E>(to + p.dim + c, even.highest());
    if (kU == 1) continue;
    put_one<E>(to + c + 1, odd.lowest());
    put_one<E>(to + p.dim + c + 1, odd.highest());
  }
}

// ---- selection ----

struct SelectJob {
  const SelectBoundedParams* p;
  char* scratch;
  int64_t slice;
};

template <class E>
struct BoundedRow {
  using T = typename E::T;
  const SelectBoundedParams& p;
  int64_t row, kv_head, seq, group;
  float* rises;  // [group][dim]: max(q, 0), which meets the greatest key
  float* falls;  // [group][dim]: min(q, 0), which meets the least

  int64_t carve(char* from) {
    const int64_t bytes = (group * p.dim * 4 + 63) / 64 * 64;
    rises = reinterpret_cast<float*>(from);
    falls = reinterpret_cast<float*>(from + bytes);
    return 2 * bytes;
  }

  void load_q() {
    for (int64_t h = 0; h < group; ++h) {
      const T* from = static_cast<const T*>(p.q) + row * p.q_row + (kv_head * group + h) * p.q_head;
      for (int64_t i = 0; i < p.dim; ++i) {
        const float x = get_one<E>(from + i);
        rises[h * p.dim + i] = x < 0.0f ? 0.0f : x;
        falls[h * p.dim + i] = x < 0.0f ? x : 0.0f;
      }
    }
  }

  const T* entry(int64_t block) const {
    const int64_t last = (block + 1) * p.block - 1, index = last / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    if (id < 0 || id >= p.pages) return nullptr;
    const int64_t slot = p.block < p.page ? last % p.page / p.block : 0;
    return static_cast<const T*>(p.bounds) +
           ((id * p.slots + slot) * p.kv_heads + kv_head) * 2 * p.dim;
  }

  void ask_for(int64_t block) const {
    const T* from = entry(block);
    if (from == nullptr) return;
    const int64_t bytes = 2 * p.dim * static_cast<int64_t>(sizeof(T));
    for (int64_t at = 0; at < bytes; at += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(from) + at, 0, 3);
  }

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

  SACCADE_INLINE float joined(float all, float one) const {
    if (p.sums) return all + one;
    return one > all || one != one ? one : all;
  }

  // The bounds of N heads from h on for one block, joined to `all`.
  template <int N>
  SACCADE_INLINE float bound_heads(const T* from, int64_t h, float all) const {
    F<W> sums[N] = {};
    float rest[N] = {};
    const T* most = from + p.dim;
    for_vectors<W>(
        p.dim,
        [&](int64_t i) {
          const F<W> low = E::template get<W>(from + i), high = E::template get<W>(most + i);
          for (int n = 0; n < N; ++n) {
            const int64_t at = (h + n) * p.dim + i;
            sums[n] = fma<W>(low, load<F<W>>(falls + at), sums[n]);
            sums[n] = fma<W>(high, load<F<W>>(rises + at), sums[n]);
          }
        },
        [&](int64_t i) {
          for (int n = 0; n < N; ++n) {
            const int64_t at = (h + n) * p.dim + i;
            rest[n] += get_one<E>(from + i) * falls[at] + get_one<E>(most + i) * rises[at];
          }
        });
    for (int n = 0; n < N; ++n) all = joined(all, sum_of<W>(sums[n]) + rest[n]);
    return all;
  }

  float bound(int64_t block) const {
    const T* from = entry(block);
    if (from == nullptr) return NAN;
    float all = p.sums ? 0.0f : -INFINITY;
    int64_t h = 0;
    for (; h + kHeads <= group; h += kHeads) all = bound_heads<kHeads>(from, h, all);
    for (; h < group; ++h) all = bound_heads<1>(from, h, all);
    return all;
  }

  void choose() {
    load_q();
    const ListEnds ends = list_ends(p.positions[row] / p.block, p.first, p.recent);
    Best best;
    best.count = 0;
    best.k = p.listed - ends.forced();
    float scores[kPanel];
    for (int64_t at = ends.head; best.k > 0 && at < ends.tail; at += kPanel) {
      const int64_t n = ends.tail - at < kPanel ? ends.tail - at : kPanel;
      for (int64_t i = 0; i < n; ++i) {
        if (at + i + kAhead < ends.tail) ask_for(at + i + kAhead);
        scores[i] = bound(at + i);
      }
      for (int64_t i = 0; i < n; ++i) best.offer(scores[i], static_cast<int32_t>(at + i));
    }
    write_list(best, ends, p.ids + (row * p.kv_heads + kv_head) * p.listed, p.listed);
  }
};

template <class E>
void select_item(void* context, int64_t item, int thread) {
  const SelectJob& job = *static_cast<SelectJob*>(context);
  const SelectBoundedParams& p = *job.p;
  const int64_t row = item / p.kv_heads;
  int64_t low = 0, high = p.seqs;  // cu_rows[low] <= row < cu_rows[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.cu_rows[middle] <= row ? low : high) = middle;
  }
  BoundedRow<E> one{p, row, item % p.kv_heads, low, p.heads / p.kv_heads, nullptr, nullptr};
  one.carve(job.scratch + thread * job.slice);
  one.choose();
}

template <class E>
void select_all(const SelectBoundedParams& p, ThreadPool& pool) {
  SelectJob job{&p, nullptr, 0};
  BoundedRow<E> measure{p, 0, 0, 0, p.heads / p.kv_heads, nullptr, nullptr};
  job.slice = (measure.carve(nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  pool.run(p.rows * p.kv_heads, select_item<E>, &job);
}

}  // namespace

void key_bounds(const KeyBoundsParams& p, ThreadPool& pool) {
  pool.run(
      p.count * p.kv_heads,
      [](void* context, int64_t item, int) {
        const KeyBoundsParams& q = *static_cast<const KeyBoundsParams*>(context);
        const int64_t index = item / q.kv_heads, head = item % q.kv_heads;
        if (q.dtype == DType::kF32) bounds_of_block<ElementF32, 1>(q, index, head);
        if (q.dtype == DType::kBF16) bounds_of_block<ElementBF16, 2>(q, index, head);
        if (q.dtype == DType::kF16) bounds_of_block<ElementF16, 1>(q, index, head);
      },
      const_cast<KeyBoundsParams*>(&p));
}

void select_bounded(const SelectBoundedParams& p, ThreadPool& pool) {
  if (p.dtype == DType::kF32) select_all<ElementF32>(p, pool);
  if (p.dtype == DType::kBF16) select_all<ElementBF16>(p, pool);
  if (p.dtype == DType::kF16) select_all<ElementF16>(p, pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
