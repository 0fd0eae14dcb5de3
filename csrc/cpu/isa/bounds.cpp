// Bounds on the keys of complete blocks, channel by channel, and the blocks whose bounds allow the
// highest scores. A selection item is one query row, or a stretch of its blocks where rows are few;
// it goes over the bounds in the order of memory, KV head by KV head in each block, and loads them
// once for four query heads. A bound is computed from its block alone, and of equal ones the last
// is the best, so a row's list depends on that row alone.
#include <math.h>

#include "best.h"
#include "summaries.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kPanel = 256;  // blocks scored before any is offered
using Chosen = BestOf<256>;      // of as many blocks as a list has at most

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
  if (!is_there(p, index, spread)) return;
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

// Bounds are asked for so many blocks ahead, one by one while others are multiplied; the first so
// many of a panel at once.
constexpr int64_t kAhead = 16, kAsked = 8;
constexpr int64_t kPieces = 2;  // of a row's blocks, for each thread, where rows are few

struct SelectJob {
  const SelectBoundedParams* p;
  char* scratch;
  int64_t slice, pieces;
  char* rows;      // what a row needs, of each; null: rows are whole
  int64_t stride;  // scores of a KV head
  float* scores;   // [rows][Hkv][stride], of all blocks
};

template <class M>
struct BoundedRow {
  using T = typename M::T;
  using Q = typename M::Q;
  const SelectBoundedParams& p;
  int64_t row, seq, group;
  Q* rises;       // [H][dim]: max(q, 0), which meets the greatest key
  Q* falls;       // [H][dim]: min(q, 0), which meets the least
  float* scores;  // [Hkv][kPanel]
  Chosen* own;    // [Hkv]

  int64_t carve_q(char* from) {
    const int64_t bytes = (p.heads * p.dim * static_cast<int64_t>(sizeof(Q)) + 63) / 64 * 64;
    rises = reinterpret_cast<Q*>(from);
    falls = reinterpret_cast<Q*>(from + bytes);
    return 2 * bytes;
  }
  int64_t carve(char* from) {
    scores = reinterpret_cast<float*>(from);
    own = reinterpret_cast<Chosen*>(scores + p.kv_heads * kPanel);
    return p.kv_heads * int64_t{kPanel * sizeof(float) + sizeof(Chosen)};
  }

  void load_q() {
    for (int64_t h = 0; h < p.heads; ++h) {
      const T* from = static_cast<const T*>(p.q) + row * p.q_row + h * p.q_head;
      for (int64_t i = 0; i < p.dim; ++i) {
        const float x = M::query(from + i);
        rises[h * p.dim + i] = M::keep(x < 0.0f ? 0.0f : x);
        falls[h * p.dim + i] = M::keep(x < 0.0f ? x : 0.0f);
      }
    }
  }

  // Where the bounds of all KV heads lie, or null.
  const T* entry(int64_t block) const {
    const int64_t last = (block + 1) * p.block - 1, index = last / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    if (id < 0 || id >= p.pages) return nullptr;
    const int64_t slot = p.block < p.page ? last % p.page / p.block : 0;
    return static_cast<const T*>(p.bounds) + (id * p.slots + slot) * p.kv_heads * 2 * p.dim;
  }

  // Bounds of so many KV heads of a block.
  SACCADE_INLINE void ask_for(const T* from, int64_t kv_heads) const {
    if (from == nullptr) return;
    const int64_t bytes = kv_heads * 2 * p.dim * static_cast<int64_t>(sizeof(T));
    for (int64_t at = 0; at < bytes; at += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(from) + at, 0, 3);
  }

  SACCADE_INLINE F<W> joined(F<W> all, F<W> one) const {
    if (p.sums) return all + one;
    return (one > all) | (one != one) ? one : all;
  }

  // Lanes whose sums are the bounds of N heads from h on for one block.
  template <int N>
  SACCADE_INLINE void multiply(const T* from, int64_t h, F<W> (&sums)[N]) const {
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
        sums[n][0] += M::one(from + i, falls + at) + M::one(most + i, rises + at);
      }
    }
  }

  // The bounds of N heads from h on for W blocks, joined to `all`. NaN where a block has none.
  template <int N>
  SACCADE_INLINE F<W> join_heads(const T* const* from, int64_t h, F<W> all) const {
    const int64_t kv_head = h / group;
    F<W> rows[N][W];
    for (int64_t block = 0; block < W; ++block) {
      const T* ahead = from[block + kAhead];
      if (h % group == 0 && ahead != nullptr) ask_for(ahead + kv_head * 2 * p.dim, 1);
      F<W> sums[N] = {};
      if (from[block] == nullptr) {
        for (int n = 0; n < N; ++n) sums[n] = splat<W>(NAN);
      } else {
        multiply<N>(from[block] + kv_head * 2 * p.dim, h, sums);
      }
      for (int n = 0; n < N; ++n) rows[n][block] = sums[n];
    }
    for (int n = 0; n < N; ++n) all = joined(all, sum_of_rows<W>(rows[n]));
    return all;
  }

  // Of W blocks, by the queries of one KV head.
  F<W> bounds(const T* const* from, int64_t kv_head) const {
    F<W> all = splat<W>(p.sums ? 0.0f : -INFINITY);
    int64_t h = kv_head * group;
    const int64_t end = h + group;
    for (; end - h >= 4; h += 4) all = join_heads<4>(from, h, all);
    if (end - h == 3) return join_heads<3>(from, h, all);
    if (end - h == 2) return join_heads<2>(from, h, all);
    return end - h == 1 ? join_heads<1>(from, h, all) : all;
  }

  // The scores of n blocks from `begin` on, at most a panel, for every KV head: `stride` apart,
  // whole vectors of each.
  void score(int64_t begin, int64_t n, float* to, int64_t stride) const {
    const T* from[kPanel + W + kAhead];
    for (int64_t i = 0; i < n + W + kAhead; ++i) from[i] = i < n ? entry(begin + i) : nullptr;
    for (int64_t i = 0; i < kAsked && i < n; ++i) ask_for(from[i], p.kv_heads);
    for (int64_t i = 0; i < n; i += W) {
      for (int64_t g = 0; g < p.kv_heads; ++g) store(to + g * stride + i, bounds(from + i, g));
    }
  }

  ListEnds ends() const { return list_ends(p.positions[row] / p.block, p.first, p.recent); }

  // Blocks to choose from and how many of them; those without a place in the table have no bounds.
  int64_t blocks() const {
    const int64_t all = ends().tail - ends().head, known = p.table_width * p.page / p.block;
    return all < known ? all : known;
  }
  int64_t count() const { return p.listed - ends().forced(); }

  // One of `pieces` stretches of the row's blocks: whole vectors of its scores.
  void score_piece(int64_t piece, int64_t pieces, float* to, int64_t stride) const {
    const int64_t most = ((blocks() + pieces - 1) / pieces + W - 1) / W * W, all = blocks();
    const int64_t end = (piece + 1) * most < all ? (piece + 1) * most : all;
    for (int64_t at = piece * most; count() > 0 && at < end; at += kPanel)
      score(ends().head + at, end - at < kPanel ? end - at : kPanel, to + at, stride);
  }

  // The list of a KV head whose scores are known.
  void choose(int64_t kv_head, const float* known) const {
    Chosen best;
    best.count = 0;
    best.k = count();
    if (best.k > 0 && blocks() > 0) offer_scores(best, known, ends().head, blocks());
    write(kv_head, best);
  }

  // All lists of the row, panel by panel.
  void choose_all() const {
    for (int64_t g = 0; g < p.kv_heads; ++g) own[g].count = 0, own[g].k = count();
    for (int64_t at = 0, all = blocks(); count() > 0 && at < all; at += kPanel) {
      const int64_t n = all - at < kPanel ? all - at : kPanel;
      score(ends().head + at, n, scores, kPanel);
      for (int64_t g = 0; g < p.kv_heads; ++g)
        offer_scores(own[g], scores + g * kPanel, ends().head + at, n);
    }
    for (int64_t g = 0; g < p.kv_heads; ++g) write(g, own[g]);
  }

  void write(int64_t kv_head, const Chosen& best) const {
    write_list(best, ends(), p.ids + (row * p.kv_heads + kv_head) * p.listed, p.listed);
  }
};

template <class M>
BoundedRow<M> row_of(const SelectBoundedParams& p, int64_t row) {
  int64_t low = 0, high = p.seqs;  // cu_rows[low] <= row < cu_rows[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.cu_rows[middle] <= row ? low : high) = middle;
  }
  return {p, row, low, p.heads / p.kv_heads, nullptr, nullptr, nullptr, nullptr};
}

template <class M>
void select_row(void* context, int64_t row, int thread) {
  const SelectJob& job = *static_cast<SelectJob*>(context);
  BoundedRow<M> one = row_of<M>(*job.p, row);
  char* mine = job.scratch + thread * job.slice;
  mine += one.carve(mine);
  one.carve_q(mine);
  one.load_q();
  one.choose_all();
}

template <class M>
void score_item(void* context, int64_t item, int) {
  const SelectJob& job = *static_cast<SelectJob*>(context);
  const int64_t row = item / job.pieces;
  BoundedRow<M> one = row_of<M>(*job.p, row);
  one.carve_q(job.rows + row * one.carve_q(nullptr));
  one.score_piece(item % job.pieces, job.pieces, job.scores + row * job.p->kv_heads * job.stride,
                  job.stride);
}

template <class M>
void choose_item(void* context, int64_t item, int) {
  const SelectJob& job = *static_cast<SelectJob*>(context);
  const int64_t row = item / job.p->kv_heads;
  row_of<M>(*job.p, row).choose(item % job.p->kv_heads, job.scores + item * job.stride);
}

// Few rows: threads share the blocks of each.
template <class M>
void share_rows(SelectJob& job, int64_t row_bytes, ThreadPool& pool) {
  const SelectBoundedParams& p = *job.p;
  for (int64_t row = 0; row < p.rows; ++row) {
    BoundedRow<M> one = row_of<M>(p, row);
    one.carve_q(job.rows + row * row_bytes);
    one.load_q();
  }
  pool.run(p.rows * job.pieces, score_item<M>, &job);
  pool.run(p.rows * p.kv_heads, choose_item<M>, &job);
}

template <class M>
void select_all(const SelectBoundedParams& p, ThreadPool& pool) {
  BoundedRow<M> measure{p, 0, 0, 0, nullptr, nullptr, nullptr, nullptr};
  const int64_t row_bytes = measure.carve_q(nullptr), own = measure.carve(nullptr) + row_bytes;
  SelectJob job{&p, nullptr, (own + 4095) / 4096 * 4096, 1, nullptr, 0, nullptr};
  if (pool.size() == 1 || p.rows >= 2 * pool.size()) {
    job.scratch = pool.scratch(job.slice);
    pool.run(p.rows, select_row<M>, &job);
    return;
  }
  job.pieces = kPieces * pool.size();
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t blocks = (row_of<M>(p, row).blocks() + W - 1) / W * W;
    if (blocks > job.stride) job.stride = blocks;
  }
  const int64_t scores = p.kv_heads * job.stride * static_cast<int64_t>(sizeof(float));
  job.rows = pool.scratch((p.rows * (row_bytes + scores) + pool.size() - 1) / pool.size());
  job.scores = reinterpret_cast<float*>(job.rows + p.rows * row_bytes);
  share_rows<M>(job, row_bytes, pool);
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
