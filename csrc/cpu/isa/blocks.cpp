// Blocks of keys for sparse attention: their means (and those of windows), and the best of them for
// each query row.
#include <math.h>

#include "amx.h"
#include "best.h"
#include "panels.h"
#include "product.h"
#include "room.h"
#include "summaries.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kTile = 64;    // query rows that share a panel of means
constexpr int64_t kPanel = 256;  // blocks scored at a time

// ---- means ----

// Sums of the two (bf16: one pair; else only `even`) channels of panel row `from` over `keys` keys.
template <class E, int kU>
SACCADE_INLINE void add_keys(const typename E::T* from, int64_t keys, F<W>& even, F<W>& odd) {
  for (int64_t i = 0; i < keys; i += W) {
    if constexpr (kU == 2) {
      const U<W> pairs = load<U<W>>(from + 2 * i);
      even += (F<W>)(pairs << 16);
      odd += (F<W>)(pairs & 0xffff0000u);
    } else {
      even += E::template get<W>(from + i);
    }
  }
}

template <class E, int kU>
void mean_of_block(const BlockMeansParams& p, int64_t index, int64_t head) {
  using T = typename E::T;
  if (!is_there(p, index)) return;
  const float share = 1.0f / static_cast<float>(p.block);
  T* to = static_cast<T*>(p.means) + (p.home[index] * p.kv_heads + head) * p.dim;
  for (int64_t c = 0; c < p.dim; c += kU) {
    F<W> even{}, odd{};
    int64_t left = p.block, offset = p.begin[index];
    for (int64_t i = 0; left > 0 && i < p.spread; ++i) {
      const int64_t page = p.members[index * p.spread + i];
      const int64_t keys = p.page - offset < left ? p.page - offset : left;
      const T* k = static_cast<const T*>(p.k_pages) + p.steps.panel(page, head) * p.page * p.dim;
      add_keys<E, kU>(k + c * p.page + offset * kU, keys, even, odd);
      left -= keys;
      offset = 0;
    }
    put_one<E>(to + c, sum_lanes<W>(even) * share);
    if (kU == 2) put_one<E>(to + c + 1, sum_lanes<W>(odd) * share);
  }
}

// ---- selection ----

struct Job {
  const SelectBlocksParams* p;
  int64_t tokens, heads_per_kv;  // of a tile
  int64_t* first_item;           // [seqs + 1]
  char* scratch;
  int64_t slice;
};

template <class S, int64_t kMost>
struct Tile {
  using Best = BestOf<kMost>;
  using A = typename S::A;
  using B = typename S::B;
  static constexpr int kU = S::kUnit;
  const SelectBlocksParams& p;
  int64_t seq, kv_head, row, group, count;
  B* panel = nullptr;       // [dim / unit][kPanel][unit], means as lanes
  B* nowhere = nullptr;     // [dim]: the mean of a block without a page
  A* q = nullptr;           // [rows of a tile, whole groups of 16][dim]
  float* scores = nullptr;  // as many rows of kPanel
  Best* best = nullptr;     // [rows of a tile]

  // ScoreBlock protocol of for_tiles.
  template <int M, int NV>
  SACCADE_INLINE void tile(int64_t r, int64_t at) {
    F<W> acc[M][NV] = {};
    product<S, W, NV, M>(acc, q + r * p.dim, p.dim, panel + at * kU, kPanel * kU, p.dim / kU);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) store(scores + (r + m) * kPanel + at + n * W, acc[m][n]);
  }

  // Scores of the panel's first n columns, whole vectors of them.
  void score_panel(int64_t n) {
#if SACCADE_AMX
    amx::rows_by_lanes(count, n, scores, kPanel, q, p.dim, panel, kPanel * kU, p.dim / 32);
#else
    for_tiles<W>(*this, count, 0, (n + W - 1) / W * W);
#endif
  }

  int64_t history(int64_t r) const { return p.positions[row + r / group] / p.block; }

  void load_rows() {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t offset = (row + r / group) * p.q_row + (kv_head * group + r % group) * p.q_head;
      A* to = q + r * p.dim;
      if (sizeof(A) == static_cast<size_t>(size_of(p.dtype))) {
        std::memcpy(to, static_cast<const A*>(p.q) + offset,
                    static_cast<size_t>(p.dim) * sizeof(A));
      } else {
        const uint16_t* from = static_cast<const uint16_t*>(p.q) + offset;
        const bool bf16 = p.dtype == DType::kBF16;
        for (int64_t c = 0; c < p.dim; ++c) {
          to[c] = static_cast<A>(bf16 ? widen_bf16(from[c]) : get_one<ElementF16>(from + c));
        }
      }
      best[r].count = 0;
      best[r].k = p.topk;
    }
  }

  // The mean of a block.
  const B* mean(int64_t block) const {
    const int64_t per_page = p.block < p.page ? p.page / p.block : 1;
    const int64_t index = ((block + 1) * p.block - 1) / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    if (id < 0 || id >= p.pages) return nowhere;
    const int64_t home = id * p.slots + block % per_page;
    return static_cast<const B*>(p.means) + (home * p.kv_heads + kv_head) * p.dim;
  }

  // Means of blocks first .. first + n - 1 side by side; a block without a page scores NaN, which
  // is never chosen. The means lie in pages far apart, so that those of the next vector are asked
  // for while one is turned.
  void load_panel(int64_t first, int64_t n) {
    const B* next[W];
    find_means(next, first, n);
    for (int64_t i = 0; i < n; i += W) {
      const B* from[W];
      std::memcpy(from, next, sizeof(from));
      if (i + W < n) find_means(next, first + i + W, n - i - W);
      gather_columns<kU>(from, p.dim, panel + i * kU, kPanel);
    }
  }

  void find_means(const B* (&found)[W], int64_t first, int64_t n) const {
    for (int lane = 0; lane < W; ++lane) {
      found[lane] = lane < n ? mean(first + lane) : nowhere;
      for (int64_t c = 0; c < p.dim; c += 64 / static_cast<int64_t>(sizeof(B)))
        __builtin_prefetch(found[lane] + c, 0, 2);
    }
  }

  static B absent() {
    if constexpr (sizeof(B) == 4) return static_cast<B>(NAN);
    return static_cast<B>(0x7fff);  // NaN in bf16 and in fp16
  }

  void write_ids(int64_t r) {
    const int64_t width = p.topk + 1;
    int32_t* to = p.ids + ((row + r / group) * p.heads + kv_head * group + r % group) * width;
    int64_t n = best[r].count;
    sort_ids(best[r].ids, n);
    std::memcpy(to, best[r].ids, static_cast<size_t>(n) * sizeof(*to));
    to[n++] = static_cast<int32_t>(history(r));
    while (n < width) to[n++] = -1;
  }

  void run() {
    const TileScope tiles;
    for (int64_t c = 0; c < p.dim; ++c) nowhere[c] = absent();
    load_rows();
    int64_t blocks = 0;  // of the row with the most history, if any may be chosen
    for (int64_t r = 0; p.topk > 0 && r < count; ++r)
      blocks = history(r) > blocks ? history(r) : blocks;
    for (int64_t first = 0; first < blocks; first += kPanel) {
      const int64_t n = blocks - first < kPanel ? blocks - first : kPanel;
      load_panel(first, n);
      score_panel(n);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t own = history(r) - first;
        if (own > 0) offer_scores(best[r], scores + r * kPanel, first, own < n ? own : n);
      }
    }
    for (int64_t r = 0; r < count; ++r) write_ids(r);
  }
};

template <class S, int64_t kMost>
int64_t carve(Tile<S, kMost>& tile, int64_t rows, char* at) {
  const auto take = [&at](int64_t bytes) {
    char* piece = at;
    at += (bytes + 63) / 64 * 64;
    return piece;
  };
  const char* begin = at;
  const int64_t whole = (rows + 15) / 16 * 16;
  tile.panel = reinterpret_cast<typename S::B*>(take(tile.p.dim * kPanel * sizeof(*tile.panel)));
  tile.nowhere = reinterpret_cast<typename S::B*>(take(tile.p.dim * sizeof(*tile.nowhere)));
  tile.q = reinterpret_cast<typename S::A*>(take(whole * tile.p.dim * sizeof(*tile.q)));
  tile.scores = reinterpret_cast<float*>(take(whole * kPanel * 4));
  tile.best = reinterpret_cast<BestOf<kMost>*>(take(rows * sizeof(*tile.best)));
  return at - begin;
}

template <class S, int64_t kMost>
void select_item(void* context, int64_t item, int thread) {
  const Job& job = *static_cast<Job*>(context);
  const SelectBlocksParams& p = *job.p;
  int64_t seq = 0;
  while (job.first_item[seq + 1] <= item) ++seq;
  const int64_t owner = (item - job.first_item[seq]) % p.kv_heads;
  const int64_t row = p.cu_rows[seq] + (item - job.first_item[seq]) / p.kv_heads * job.tokens;
  const int64_t end = p.cu_rows[seq + 1], tokens = end - row < job.tokens ? end - row : job.tokens;
  const int64_t group = job.heads_per_kv;
  Tile<S, kMost> tile{p, seq, owner, row, group, tokens * group};
  carve(tile, job.tokens * group, job.scratch + thread * job.slice);
  tile.run();
}

template <class S, int64_t kMost>
void select_with(const SelectBlocksParams& p, ThreadPool& pool) {
  const int64_t group = p.heads / p.kv_heads;
  Job job{&p, kTile / group < 1 ? 1 : kTile / group, group, nullptr, nullptr, 0};
  const Room<int64_t> first(p.seqs + 1);
  job.first_item = first.get();
  job.first_item[0] = 0;
  for (int64_t s = 0; s < p.seqs; ++s) {
    const int64_t tokens = p.cu_rows[s + 1] - p.cu_rows[s];
    job.first_item[s + 1] = job.first_item[s] + (tokens + job.tokens - 1) / job.tokens * p.kv_heads;
  }
  Tile<S, kMost> measure{p, 0, 0, 0, 0, 0};
  job.slice = (carve(measure, job.tokens * group, nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  pool.run(job.first_item[p.seqs], select_item<S, kMost>, &job);
}

}  // namespace

void block_means(const BlockMeansParams& p, ThreadPool& pool) {
  pool.run(
      p.count * p.kv_heads,
      [](void* context, int64_t item, int) {
        const BlockMeansParams& q = *static_cast<const BlockMeansParams*>(context);
        const int64_t index = item / q.kv_heads, head = item % q.kv_heads;
        if (q.dtype == DType::kF32) mean_of_block<ElementF32, 1>(q, index, head);
        if (q.dtype == DType::kBF16) mean_of_block<ElementBF16, 2>(q, index, head);
        if (q.dtype == DType::kF16) mean_of_block<ElementF16, 1>(q, index, head);
      },
      const_cast<BlockMeansParams*>(&p));
}

void select_blocks(const SelectBlocksParams& p, ThreadPool& pool) {
  with_step(p.dtype, [&](auto step) {
    using S = decltype(step);
    p.topk <= kFewTopK ? select_with<S, kFewTopK>(p, pool) : select_with<S, kMaxTopK>(p, pool);
  });
}

}  // namespace SACCADE_ISA
}  // namespace saccade
