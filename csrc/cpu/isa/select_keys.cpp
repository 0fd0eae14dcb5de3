// Blocks chosen by the scores of the keys themselves. First every stretch of kKeys keys is scored
// for the rows of a tile (all their heads), which share the reading of K, and leaves the best of
// each block; then every head ranks its blocks; then the lists are written. A score is summed over
// channels in ascending order, so that a row's list depends on that row alone.
#include <math.h>

#include "amx.h"
#include "best.h"
#include "product.h"
#include "room.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kKeys = 512;  // scored at a time; no block is larger
constexpr int64_t kRows = 32;   // rows whose scores are kept at a time

enum Union { kPerHead = 0, kRankMajor = 1, kMeanProb = 2 };

// Consecutive rows of one sequence.
struct RowTile {
  int64_t seq, row, count;
};

struct KeysJob {
  const SelectKeysParams* p;
  int64_t first_row, rows;  // of this round
  RowTile tiles[kRows];     // these rows
  int64_t blocks;           // scores per row and owner
  int64_t owners;           // of scores: heads, or one where their probabilities are summed
  int64_t stretches;        // per row, at most
  float* scores;            // [kRows][owners][blocks], and a vector more
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

// ---- scores of the rows of a tile over one stretch of keys ----

template <class S>
struct Stretch {
  using A = typename S::A;
  using B = typename S::B;
  static constexpr int kU = S::kUnit;
  const KeysJob& job;
  const SelectKeysParams& p;
  RowTile rows;
  int64_t first, group;
  A* q;           // [rows][group][dim]
  float* scores;  // [rows][group][kKeys]
  float* mass;    // [rows][kKeys]
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
    const int64_t whole = (rows.count * group + 15) / 16 * 16;  // tiles
    q = reinterpret_cast<A*>(take(whole * p.dim * static_cast<int64_t>(sizeof(A))));
    scores = reinterpret_cast<float*>(take(whole * kKeys * 4));
    mass = reinterpret_cast<float*>(take(p.unite == kMeanProb ? rows.count * kKeys * 4 : 0));
    return from - begin;
  }

  void load_q(int64_t kv_head) {
    for (int64_t r = 0; r < rows.count * group; ++r) {
      const int64_t row = rows.row + r / group, head = kv_head * group + r % group;
      const int64_t offset = row * p.q_row + head * p.q_head;
      A* at = q + r * p.dim;
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

  // The position of the tile's last row: rows ascend.
  int64_t last() const { return p.positions[rows.row + rows.count - 1]; }

  const B* page_at(int64_t key, int64_t kv_head) const {
    const int64_t index = key / p.page;
    const int64_t id = index < p.table_width ? p.table[rows.seq * p.table_row + index] : -1;
    if (key > last() || id < 0 || id >= p.pages) return nullptr;
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
      for (int n = 0; n < NV; ++n) store(to + (r + m) * kKeys + at + n * W, acc[m][n]);
  }

  // All rows by `keys` keys of a page.
  void multiply(int64_t keys) {
#if SACCADE_AMX
    amx::rows_by_lanes(rows.count * group, keys, to, kKeys, q, p.dim, panel, p.page * kU,
                       p.dim / 32);
#else
    for_tiles<W>(*this, rows.count * group, 0, keys);
#endif
  }

  // Keys beyond a row, and those without a page, score NaN, which is never chosen. (Scores are not
  // yet scaled.)
  void score(int64_t kv_head) {
    load_q(kv_head);
    const int64_t step = p.page < kKeys ? p.page : kKeys;
    const B* next = page_at(first, kv_head);
    for (int64_t at = 0; at < kKeys; at += step) {
      panel = next;
      next = at + step < kKeys ? page_at(first + at + step, kv_head) : nullptr;
      ahead = next;
      to = scores + at;
      if (panel != nullptr) multiply(step);
      for (int64_t r = 0; r < rows.count * group; ++r) {
        const int64_t seen = p.positions[rows.row + r / group] + 1 - first - at;
        const int64_t known = panel == nullptr || seen < 0 ? 0 : seen;
        for (int64_t i = known < step ? known : step; i < step; ++i) to[r * kKeys + i] = NAN;
      }
    }
  }

  // Adds the probabilities of a head's scores.
  void add_mass(float* mass, const float* s, float lse) const {
    constexpr float kLog2E = 1.4426950408889634f;
    for (int64_t i = 0; i < kKeys; i += W) {
      const F<W> score = load<F<W>>(s + i) * splat<W>(p.scale);
      const F<W> x = (score - splat<W>(lse)) * splat<W>(kLog2E);
      store(mass + i, load<F<W>>(mass + i) + exp2_nonpositive<W>(x));
    }
  }

  // The best key of each block, NaN aside, times `scale`; NaN where there is none.
  void keep_best(const float* s, float scale, int64_t row, int64_t owner) const {
    float* blocks = job.scores + ((row - job.first_row) * job.owners + owner) * job.blocks;
    for (int64_t at = 0; at < kKeys; at += p.block) {
      const int64_t block = (first + at) / p.block;
      if (block >= job.blocks) return;
      F<W> best = splat<W>(-INFINITY);
      for (int64_t i = 0; i < p.block; i += W)
        best = max<W>(load<F<W>>(s + at + i) * splat<W>(scale), best);
      const float most = max_lanes<W>(best);
      blocks[block] = most == -INFINITY ? NAN : most;
    }
  }

  void run() {
    if (first > last()) return;
    const TileScope tiles(rows.count * group);
    const bool sums = p.unite == kMeanProb;
    if (sums) std::memset(mass, 0, static_cast<size_t>(rows.count * kKeys) * sizeof(float));
    for (int64_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
      score(kv_head);
      for (int64_t r = 0; r < rows.count * group; ++r) {
        const int64_t row = rows.row + r / group, head = kv_head * group + r % group;
        if (first > p.positions[row]) continue;
        if (sums) {
          add_mass(mass + r / group * kKeys, scores + r * kKeys, p.lse[row * p.heads + head]);
        } else {
          keep_best(scores + r * kKeys, p.scale, row, head);
        }
      }
    }
    for (int64_t r = 0; sums && r < rows.count; ++r)
      if (first <= p.positions[rows.row + r]) keep_best(mass + r * kKeys, 1.0f, rows.row + r, 0);
  }
};

template <class S>
void stretch_item(void* context, int64_t item, int thread) {
  const KeysJob& job = *static_cast<KeysJob*>(context);
  const SelectKeysParams& p = *job.p;
  Stretch<S> one{job,
                 p,
                 job.tiles[item / job.stretches],
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
  if (best.k > 0 && ends.head < ends.tail)
    offer_scores(best, scores + ends.head, ends.head, ends.tail - ends.head);
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

// The round's rows by sequence, at most `most` in a tile; how many tiles.
int64_t make_tiles(KeysJob& job, int64_t most) {
  const SelectKeysParams& p = *job.p;
  int64_t tiles = 0;
  for (int64_t row = job.first_row; row < job.first_row + job.rows; ++tiles) {
    const int64_t seq = sequence_of(p, row), left = job.first_row + job.rows - row;
    int64_t count = p.cu_rows[seq + 1] - row;
    if (count > most) count = most;
    if (count > left) count = left;
    job.tiles[tiles] = {seq, row, count};
    row += count;
  }
  return tiles;
}

template <class S>
void select_with(const SelectKeysParams& p, ThreadPool& pool) {
  int64_t last = 0;
  for (int64_t row = 0; row < p.rows; ++row)
    last = p.positions[row] > last ? p.positions[row] : last;
  KeysJob job{&p,
              0,
              0,
              {},
              last / p.block + 1,
              p.unite == kMeanProb ? 1 : p.heads,
              last / kKeys + 1,
              nullptr,
              nullptr,
              nullptr,
              nullptr,
              0};
  const int64_t group = p.heads / p.kv_heads, most = p.rows < kRows ? p.rows : kRows;
  const int64_t of_tile = kRows / group < 1 ? 1 : kRows / group;
  Stretch<S> measure{job,     p,       {0, 0, of_tile}, 0,       group,  nullptr,
                     nullptr, nullptr, nullptr,         nullptr, nullptr};
  job.slice = (measure.carve(nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  const Room<float> scores(most * job.owners * job.blocks + W);
  const Room<Best> best(most * job.owners);
  const Room<unsigned char> taken(most * job.blocks);
  job.scores = scores.get();
  job.best = best.get();
  job.taken = taken.get();
  for (; job.first_row < p.rows; job.first_row += kRows) {
    job.rows = p.rows - job.first_row < kRows ? p.rows - job.first_row : kRows;
    pool.run(make_tiles(job, of_tile) * job.stretches, stretch_item<S>, &job);
    pool.run(job.rows * job.owners, rank_item, &job);
    if (p.unite == kRankMajor) pool.run(job.rows, unite_item, &job);
  }
}

}  // namespace

void select_keys(const SelectKeysParams& p, ThreadPool& pool) {
  with_step(p.dtype, [&](auto step) { select_with<decltype(step)>(p, pool); });
}

}  // namespace SACCADE_ISA
}  // namespace saccade
