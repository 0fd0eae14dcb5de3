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
constexpr int64_t kAhead = 6;    // blocks that are asked for in advance

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
      const T* k = static_cast<const T*>(p.k_pages) + p.steps.panel(page, head) * p.page * p.dim;
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

// How bounds meet a query: kStep channels at a time.
template <class E>
struct Widened {
  using T = typename E::T;
  using Q = float;
  static constexpr int kStep = W;
  static Q keep(float x) { return x; }
  static float one(const T* bound, const Q* q) { return get_one<E>(bound) * *q; }
  static float query(const T* q) { return get_one<E>(q); }
  using Vector = F<W>;
  static SACCADE_INLINE Vector bounds(const T* from) { return E::template get<W>(from); }
  static SACCADE_INLINE F<W> add(F<W> sum, Vector bound, const Q* q) {
    return fma<W>(bound, load<F<W>>(q), sum);
  }
};

#if defined(__AVX512BF16__)
struct DotPairs {  // by the machine's dot product of bf16 pairs
  using T = uint16_t;
  using Q = uint16_t;
  static constexpr int kStep = 2 * W;
  static Q keep(float x) {
    Q to;
    put_one<ElementBF16>(&to, x);
    return to;
  }
  static float one(const T* bound, const Q* q) { return widen_bf16(*bound) * widen_bf16(*q); }
  static float query(const T* q) { return widen_bf16(*q); }
  using Vector = I<W>;
  static SACCADE_INLINE Vector bounds(const T* from) { return load<Vector>(from); }
  static SACCADE_INLINE F<W> add(F<W> sum, Vector bound, const Q* q) {
    return (F<W>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)bound, (__m512bh)load<Vector>(q));
  }
};
#endif

struct SelectJob {
  const SelectBoundedParams* p;
  char* scratch;
  int64_t slice;
};

template <class M>
struct BoundedRow {
  using T = typename M::T;
  using Q = typename M::Q;
  const SelectBoundedParams& p;
  int64_t row, kv_head, seq, group;
  Q* rises;  // [group][dim]: max(q, 0), which meets the greatest key
  Q* falls;  // [group][dim]: min(q, 0), which meets the least

  int64_t carve(char* from) {
    const int64_t bytes = (group * p.dim * static_cast<int64_t>(sizeof(Q)) + 63) / 64 * 64;
    rises = reinterpret_cast<Q*>(from);
    falls = reinterpret_cast<Q*>(from + bytes);
    return 2 * bytes;
  }

  void load_q() {
    for (int64_t h = 0; h < group; ++h) {
      const T* from = static_cast<const T*>(p.q) + row * p.q_row + (kv_head * group + h) * p.q_head;
      for (int64_t i = 0; i < p.dim; ++i) {
        const float x = M::query(from + i);
        rises[h * p.dim + i] = M::keep(x < 0.0f ? 0.0f : x);
        falls[h * p.dim + i] = M::keep(x < 0.0f ? x : 0.0f);
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

  void ask_for(const T* from) const {
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
    int64_t i = 0;
    for (; i + M::kStep <= p.dim; i += M::kStep) {
      const typename M::Vector low = M::bounds(from + i), high = M::bounds(most + i);
      for (int n = 0; n < N; ++n) {
        const int64_t at = (h + n) * p.dim + i;
        sums[n] = M::add(M::add(sums[n], low, falls + at), high, rises + at);
      }
    }
    for (; i < p.dim; ++i) {
      for (int n = 0; n < N; ++n) {
        const int64_t at = (h + n) * p.dim + i;
        rest[n] += M::one(from + i, falls + at) + M::one(most + i, rises + at);
      }
    }
    for (int n = 0; n < N; ++n) all = joined(all, sum_of<W>(sums[n]) + rest[n]);
    return all;
  }

  float bound(const T* from) const {
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
    const T* from[kPanel];
    float scores[kPanel];
    for (int64_t at = ends.head; best.k > 0 && at < ends.tail; at += kPanel) {
      const int64_t n = ends.tail - at < kPanel ? ends.tail - at : kPanel;
      for (int64_t i = 0; i < n; ++i) from[i] = entry(at + i);
      for (int64_t i = 0; i < kAhead && i < n; ++i) ask_for(from[i]);
      for (int64_t i = 0; i < n; ++i) {
        if (i + kAhead < n) ask_for(from[i + kAhead]);
        scores[i] = bound(from[i]);
      }
      for (int64_t i = 0; i < n; ++i) best.offer(scores[i], static_cast<int32_t>(at + i));
    }
    write_list(best, ends, p.ids + (row * p.kv_heads + kv_head) * p.listed, p.listed);
  }
};

template <class M>
void select_item(void* context, int64_t item, int thread) {
  const SelectJob& job = *static_cast<SelectJob*>(context);
  const SelectBoundedParams& p = *job.p;
  const int64_t row = item / p.kv_heads;
  int64_t low = 0, high = p.seqs;  // cu_rows[low] <= row < cu_rows[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.cu_rows[middle] <= row ? low : high) = middle;
  }
  BoundedRow<M> one{p, row, item % p.kv_heads, low, p.heads / p.kv_heads, nullptr, nullptr};
  one.carve(job.scratch + thread * job.slice);
  one.choose();
}

template <class M>
void select_all(const SelectBoundedParams& p, ThreadPool& pool) {
  SelectJob job{&p, nullptr, 0};
  BoundedRow<M> measure{p, 0, 0, 0, p.heads / p.kv_heads, nullptr, nullptr};
  job.slice = (measure.carve(nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  pool.run(p.rows * p.kv_heads, select_item<M>, &job);
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
#if defined(__AVX512BF16__)
  select_all<DotPairs>(p, pool);
#else
  if (p.dtype == DType::kF32) select_all<Widened<ElementF32>>(p, pool);
  if (p.dtype == DType::kF16) select_all<Widened<ElementF16>>(p, pool);
  if (p.dtype == DType::kBF16) select_all<Widened<ElementBF16>>(p, pool);
#endif
}

}  // namespace SACCADE_ISA
}  // namespace saccade
