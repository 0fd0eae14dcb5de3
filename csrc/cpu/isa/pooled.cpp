// Blocks chosen by what the summaries that overlap them weigh with a row. Rows of a tile (tokens x
// the query heads of an owner) go through panels of kPanel entries side by side: once for the
// log-sum-exp of every row, once for the weights, which are summed over the heads and pooled into
// blocks at once, so that nothing is kept that grows with the context. Panels lie at absolute
// positions, so a row's list depends on that row alone.
#include <math.h>

#include "best.h"
#include "panels.h"
#include "product.h"
#include "room.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kTile = 64;    // rows that share a panel of entries
constexpr int64_t kPanel = 256;  // entries scored at a time
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMostPower = 120.0f;  // of two; a coarse lse may lie below a score

struct PooledJob {
  const SelectPooledParams* p;
  int64_t tokens, group;  // of a tile
  int64_t* first_item;    // [seqs + 1]
  char* scratch;
  int64_t slice;
  // Where threads share the entries of a row: what these weigh with each row and owner, and how
  // many panels a thread takes at a time.
  float* weights = nullptr;  // [items][entries]
  int64_t entries = 0, panels = 0, pieces = 0;
};
constexpr int64_t kPieces = 4;  // of a row's entries, for each thread, where threads share them

template <int V>
SACCADE_INLINE F<V> without_nan(F<V> x) {
  return x == x ? x : splat<V>(-INFINITY);
}

template <class S>
struct PooledTile {
  using A = typename S::A;
  using B = typename S::B;
  static constexpr int kU = S::kUnit;
  const SelectPooledParams& p;
  int64_t seq, owner, row, group, tokens;
  B* panel = nullptr;       // [dim / unit][kPanel][unit], entries as lanes
  B* missing = nullptr;     // [dim]: an entry without a page
  A* q = nullptr;           // [rows][dim]
  float* scores = nullptr;  // [rows][kPanel]
  float* top = nullptr;     // [rows]: greatest score so far
  float* total = nullptr;   // [rows]: sum of 2^(score - top) so far, then the lse, in powers of two
  Best* best = nullptr;     // [tokens]
  float* carry =
      nullptr;  // [tokens]: what entries of earlier panels weigh in the first block of the next
  float* pooled = nullptr;  // [kPanel + 1]

  int64_t carve(int64_t most, char* at) {
    const auto take = [&at](int64_t bytes) {
      char* piece = at;
      at += (bytes + 63) / 64 * 64;
      return piece;
    };
    const char* begin = at;
    const int64_t rows = most * group;
    panel = reinterpret_cast<B*>(take(p.dim * kPanel * static_cast<int64_t>(sizeof(B))));
    missing = reinterpret_cast<B*>(take(p.dim * static_cast<int64_t>(sizeof(B))));
    q = reinterpret_cast<A*>(take(rows * p.dim * static_cast<int64_t>(sizeof(A))));
    scores = reinterpret_cast<float*>(take(rows * kPanel * 4));
    top = reinterpret_cast<float*>(take(rows * 4));
    total = reinterpret_cast<float*>(take(rows * 4));
    best = reinterpret_cast<Best*>(take(most * static_cast<int64_t>(sizeof(Best))));
    carry = reinterpret_cast<float*>(take(most * 4));
    pooled = reinterpret_cast<float*>(take((kPanel + 1) * 4));
    return at - begin;
  }

  // ScoreBlock protocol of for_tiles; scores in powers of two where they become probabilities.
  template <int M, int NV>
  SACCADE_INLINE void tile(int64_t r, int64_t at) {
    F<W> acc[M][NV] = {};
    product<S, W, NV, M>(acc, q + r * p.dim, p.dim, panel + at * kU, kPanel * kU, p.dim / kU);
    const F<W> scale = splat<W>(p.probabilities ? p.scale * kLog2E : p.scale);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) store(scores + (r + m) * kPanel + at + n * W, acc[m][n] * scale);
  }

  int64_t position(int64_t token) const { return p.positions[row + token]; }

  // Entries complete at this position.
  static int64_t complete(const EntryPages& e, int64_t position) {
    return position + 1 < e.size ? 0 : (position + 1 - e.size) / e.stride + 1;
  }

  void load_rows() {
    for (int64_t c = 0; c < p.dim; ++c) missing[c] = absent();
    for (int64_t r = 0; r < tokens * group; ++r) {
      const int64_t offset = (row + r / group) * p.q_row + (owner * group + r % group) * p.q_head;
      A* to = q + r * p.dim;
      if (sizeof(A) == static_cast<size_t>(size_of(p.dtype))) {
        std::memcpy(to, static_cast<const A*>(p.q) + offset,
                    static_cast<size_t>(p.dim) * sizeof(A));
        continue;
      }
      const uint16_t* from = static_cast<const uint16_t*>(p.q) + offset;
      const bool bf16 = p.dtype == DType::kBF16;
      for (int64_t c = 0; c < p.dim; ++c)
        to[c] = static_cast<A>(bf16 ? widen_bf16(from[c]) : get_one<ElementF16>(from + c));
    }
  }

  // Where an entry lies, null: nowhere.
  const B* entry(const EntryPages& e, int64_t i) const {
    const int64_t last = i * e.stride + e.size - 1, index = last / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    if (id < 0 || id >= p.pages) return nullptr;
    const int64_t slot = e.stride < p.page ? last % p.page / e.stride : 0;
    return static_cast<const B*>(e.data) + ((id * e.slots + slot) * p.owners + owner) * p.dim;
  }

  // Entries first .. first + n - 1 side by side; those without a page score NaN, which weighs
  // nothing and is never chosen.
  void load_panel(const EntryPages& e, int64_t first, int64_t n) {
    const B* from[kPanel];
    for (int64_t i = 0; i < (n + W - 1) / W * W; ++i) {
      const B* known = i < n ? entry(e, first + i) : nullptr;
      from[i] = known != nullptr ? known : missing;
    }
    for (int64_t i = 0; i < n; i += W) gather_columns<kU>(from + i, p.dim, panel + i * kU, kPanel);
  }
  static B absent() {
    if constexpr (sizeof(B) == 4) return static_cast<B>(NAN);
    return static_cast<B>(0x7fff);  // NaN in bf16 and in fp16
  }

  // Calls fn(first, n) for every panel of the entries from `begin` on, before `end`, that the
  // tile's last row sees, scored.
  template <class Fn>
  void for_panels(const EntryPages& e, Fn fn, int64_t begin = 0, int64_t end = INT64_MAX) {
    const int64_t all = complete(e, position(tokens - 1)), count = all < end ? all : end;
    for (int64_t first = begin; first < count; first += kPanel) {
      const int64_t n = count - first < kPanel ? count - first : kPanel;
      load_panel(e, first, n);
      for_tiles<W>(*this, tokens * group, 0, (n + W - 1) / W * W);
      fn(first, n);
    }
  }

  // Adds n scores to a row's running sum.
  void add_scores(int64_t r, float* s, int64_t n) {
    F<W> high = splat<W>(top[r]);
    for (int64_t i = n; i < (n + W - 1) / W * W; ++i) s[i] = -INFINITY;
    for (int64_t i = 0; i < n; i += W) high = max<W>(without_nan<W>(load<F<W>>(s + i)), high);
    const float now = max_lanes<W>(high);
    if (now == -INFINITY) return;
    F<W> sum{};
    for (int64_t i = 0; i < n; i += W)
      sum += exp2_nonpositive<W>(without_nan<W>(load<F<W>>(s + i)) - splat<W>(now));
    total[r] = total[r] * exp2_nonpositive<4>(splat<4>(top[r] - now))[0] + sum_lanes<W>(sum);
    top[r] = now;
  }

  // The log-sum-exp of the rows that have `some` of the coarse entries, or none, over e.
  void sum_entries(const EntryPages& e, bool some) {
    for_panels(e, [&](int64_t first, int64_t n) {
      for (int64_t r = 0; r < tokens * group; ++r) {
        const int64_t at = position(r / group);
        const bool has = p.coarse.data != nullptr && complete(p.coarse, at) > 0;
        const int64_t seen = complete(e, at) - first;
        if (has == some && seen > 0) add_scores(r, scores + r * kPanel, seen < n ? seen : n);
      }
    });
  }

  void normalise() {
    for (int64_t r = 0; r < tokens * group; ++r) {
      top[r] = -INFINITY;
      total[r] = 0.0f;
    }
    const bool any = p.coarse.data != nullptr && complete(p.coarse, position(tokens - 1)) > 0;
    if (any) sum_entries(p.coarse, true);
    if (!any || complete(p.coarse, position(0)) == 0) sum_entries(p.fine, false);
    for (int64_t r = 0; r < tokens * group; ++r) total[r] = top[r] + log2f(total[r]);
  }

  // What n entries weigh with a token: over the scores of its first head.
  void weigh(int64_t token, int64_t n) {
    float* sums = scores + token * group * kPanel;
    for (int64_t h = 0; h < group; ++h) {
      const float* s = sums + h * kPanel;
      const F<W> lse = splat<W>(total[token * group + h]), limit = splat<W>(kMostPower);
      for (int64_t i = 0; i < n; i += W) {
        F<W> x = load<F<W>>(s + i);
        if (p.probabilities) {
          x -= lse;
          x = exp2_nonpositive<W>(x > limit ? limit : x);
        } else {
          x = x < F<W>{} ? F<W>{} : x;
        }
        store(sums + i, h == 0 ? x : load<F<W>>(sums + i) + x);
      }
    }
  }

  static void raise(float& most, float x) {
    if (!(x <= most) && x == x) most = x;
  }

  bool entries_are_blocks() const {
    return p.fine.size == p.block && p.fine.stride == p.block && p.first == 0;
  }

  // Pools entries first .. first + n - 1, of these weights, into blocks and offers those that lie
  // in this panel.
  void pool(int64_t token, const float* weights, int64_t first, int64_t n, const ListEnds& ends) {
    if (entries_are_blocks()) {
      const int64_t left = ends.tail - first;
      offer_scores(best[token], weights, first, left < n ? left : n);
      return;
    }
    const int64_t begin = first * p.fine.stride / p.block;
    const int64_t blocks = kPanel * p.fine.stride / p.block;
    for (int64_t b = 0; b <= blocks; ++b) pooled[b] = NAN;
    pooled[0] = carry[token];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = (first + i) * p.fine.stride;
      const int64_t stop = (at + p.fine.size - 1) / p.block - begin;
      for (int64_t b = at / p.block - begin; b <= stop; ++b) raise(pooled[b], weights[i]);
    }
    carry[token] = pooled[blocks];
    int64_t b = ends.head > begin ? ends.head - begin : 0;
    for (; b < blocks && begin + b < ends.tail; ++b)
      best[token].offer(pooled[b], static_cast<int32_t>(begin + b));
  }

  // The block behind the last panel, if that was full: no entry begins in it.
  void offer_last(int64_t token, const ListEnds& ends) {
    const int64_t count = complete(p.fine, position(token)), b = count * p.fine.stride / p.block;
    if (count == 0 || count % kPanel != 0 || b < ends.head || b >= ends.tail) return;
    if (best[token].k > 0) best[token].offer(carry[token], static_cast<int32_t>(b));
  }

  // With recent = 0 the row's own block is taken while it is unfinished, beyond the others.
  ListEnds ends_of(int64_t token) const {
    const int64_t at = position(token), open = (at + 1) % p.block != 0;
    return list_ends(at / p.block, p.first, p.recent > 0 ? p.recent : open);
  }

  void begin(int64_t token) {
    const ListEnds ends = ends_of(token);
    best[token].count = 0;
    best[token].k = p.listed - (p.recent > 0 ? ends.forced() : ends.head + 1);
    carry[token] = NAN;
  }

  void end(int64_t token) {
    const ListEnds ends = ends_of(token);
    offer_last(token, ends);
    write_list(best[token], ends, p.ids + ((row + token) * p.owners + owner) * p.listed, p.listed);
  }

  void run() {
    load_rows();
    if (p.probabilities) normalise();
    for (int64_t t = 0; t < tokens; ++t) begin(t);
    for_panels(p.fine, [&](int64_t first, int64_t n) {
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t seen = complete(p.fine, position(t)) - first;
        if (seen <= 0 || best[t].k <= 0) continue;
        weigh(t, seen < n ? seen : n);
        pool(t, scores + t * group * kPanel, first, seen < n ? seen : n, ends_of(t));
      }
    });
    for (int64_t t = 0; t < tokens; ++t) end(t);
  }

  // The same for one token, of which threads take pieces: first the weights of some panels,
  void weigh_panels(int64_t first_panel, int64_t panels, float* to) {
    load_rows();
    for_panels(
        p.fine,
        [&](int64_t first, int64_t n) {
          weigh(0, n);
          std::memcpy(to + first, scores, static_cast<size_t>(n) * sizeof(float));
        },
        first_panel * kPanel, (first_panel + panels) * kPanel);
  }
  // and then the list, when all weights are known.
  void choose(const float* weights) {
    begin(0);
    const int64_t count = complete(p.fine, position(0));
    const int64_t step = entries_are_blocks() ? count : int64_t{kPanel};
    for (int64_t first = 0; best[0].k > 0 && first < count; first += step)
      pool(0, weights + first, first, count - first < step ? count - first : step, ends_of(0));
    end(0);
  }
};

template <class S>
PooledTile<S> tile_of(const PooledJob& job, int64_t item, int thread) {
  const SelectPooledParams& p = *job.p;
  int64_t low = 0, high = p.seqs;  // first_item[low] <= item < first_item[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (job.first_item[middle] <= item ? low : high) = middle;
  }
  const int64_t index = item - job.first_item[low];
  const int64_t row = p.cu_rows[low] + index / p.owners * job.tokens, end = p.cu_rows[low + 1];
  const int64_t tokens = end - row < job.tokens ? end - row : job.tokens;
  PooledTile<S> tile{p, low, index % p.owners, row, job.group, tokens};
  tile.carve(job.tokens, job.scratch + thread * job.slice);
  return tile;
}

template <class S>
void pooled_item(void* context, int64_t item, int thread) {
  tile_of<S>(*static_cast<PooledJob*>(context), item, thread).run();
}

template <class S>
void weigh_item(void* context, int64_t item, int thread) {
  const PooledJob& job = *static_cast<PooledJob*>(context);
  const int64_t of = item / job.pieces, piece = item % job.pieces;
  tile_of<S>(job, of, thread)
      .weigh_panels(piece * job.panels, job.panels, job.weights + of * job.entries);
}

template <class S>
void choose_item(void* context, int64_t item, int thread) {
  const PooledJob& job = *static_cast<PooledJob*>(context);
  tile_of<S>(job, item, thread).choose(job.weights + item * job.entries);
}

// Fewer rows than threads: these share the entries of each. (Probabilities are relative to a sum
// over all entries, whose order would be another.)
template <class S>
void share_rows(PooledJob& job, int64_t items, ThreadPool& pool) {
  const SelectPooledParams& p = *job.p;
  int64_t most = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t seen = PooledTile<S>::complete(p.fine, p.positions[row]);
    most = seen > most ? seen : most;
  }
  const int64_t panels = (most + kPanel - 1) / kPanel, shares = kPieces * pool.size();
  job.entries = (panels + 1) * kPanel;  // whole vectors behind the last
  job.panels = (panels + shares - 1) / shares;
  job.pieces = job.panels > 0 ? (panels + job.panels - 1) / job.panels : 0;
  const Room<float> weights(items * job.entries);
  job.weights = weights.get();
  pool.run(items * job.pieces, weigh_item<S>, &job);
  pool.run(items, choose_item<S>, &job);
}

template <class S>
void select_with(const SelectPooledParams& p, ThreadPool& pool) {
  const int64_t group = p.heads / p.owners;
  const bool shares = !p.probabilities && p.rows * p.owners < pool.size();
  const int64_t tokens = shares || kTile / group < 1 ? 1 : kTile / group;
  PooledJob job{&p, tokens, group, nullptr, nullptr, 0};
  const Room<int64_t> first(p.seqs + 1);
  job.first_item = first.get();
  job.first_item[0] = 0;
  for (int64_t s = 0; s < p.seqs; ++s) {
    const int64_t rows = p.cu_rows[s + 1] - p.cu_rows[s];
    job.first_item[s + 1] = job.first_item[s] + (rows + tokens - 1) / tokens * p.owners;
  }
  PooledTile<S> measure{p, 0, 0, 0, group, 0};
  job.slice = (measure.carve(tokens, nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  const int64_t items = job.first_item[p.seqs];
  shares ? share_rows<S>(job, items, pool) : pool.run(items, pooled_item<S>, &job);
}

}  // namespace

void select_pooled(const SelectPooledParams& p, ThreadPool& pool) {
  with_step(p.dtype, [&](auto step) { select_with<decltype(step)>(p, pool); });
}

}  // namespace SACCADE_ISA
}  // namespace saccade
