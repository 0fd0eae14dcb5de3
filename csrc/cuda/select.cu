// Scores of blocks and the best of them, chunk by chunk: scores live in shared memory only.
#include "params.cuh"
#include "ranking.cuh"

namespace saccade {

constexpr i64 kChunk = 64;  // candidates scored at a time
constexpr i64 kSlice = 32;  // channels of them staged at a time
constexpr i64 kRows = 32;   // the most rows (token, head of the group) of a tile
constexpr i64 kSliceRow = kSlice + 4, kScoreRow = kChunk + 1;  // padded: no bank conflicts

// One tile of rows: which they are, and where its shared memory lies.
struct SelectTile {
  i64 sequence, first, rows, group;  // rows: token * group + head of the group
  i64 candidates;                    // blocks before the last own one
  float *q, *means, *scores;         // [kRows, dim + 4], [kChunk, kSliceRow], [kRows, kScoreRow]
  u64* lists;                        // [kRows, listed]
};

SACCADE_DEVICE i64 own_block(const SelectParams& p, i64 row) {
  return p.positions[row] / p.block;
}

// Finds the tile's rows; false where the grid holds more tiles than there are.
SACCADE_DEVICE bool find_tile(const SelectParams& p, SelectTile& t) {
  i64 tile = blockIdx.x;
  for (t.sequence = 0; t.sequence < p.seqs; ++t.sequence) {
    const i64 begin = p.cu_rows[t.sequence], count = p.cu_rows[t.sequence + 1] - begin;
    const i64 tiles = ceil_div(count, p.tokens);
    if (tile < tiles) {
      t.first = begin + tile * p.tokens;
      t.group = p.heads / p.kv_heads;
      t.rows = least(p.tokens, count - tile * p.tokens) * t.group;
      t.candidates = 0;
      for (i64 i = 0; i < t.rows / t.group; ++i)
        t.candidates = most(t.candidates, own_block(p, t.first + i));
      t.candidates = least(t.candidates, p.table_width * p.page / p.block);
      return true;
    }
    tile -= tiles;
  }
  return false;
}

template <class E>
SACCADE_DEVICE void stage_rows(const SelectParams& p, const SelectTile& t) {
  using Raw = typename E::Raw;
  const i64 vectors = p.dim / 8;
  for (i64 i = threadIdx.x; i < kRows * vectors; i += blockDim.x) {
    const i64 r = i / vectors, channel = i % vectors * 8;
    float values[8] = {};
    if (r < t.rows) {
      const i64 head = blockIdx.y * t.group + r % t.group;
      const Raw* q = static_cast<const Raw*>(p.q) + (t.first + r / t.group) * p.q_row;
      load8<E>(q + head * p.q_head + channel, values);
    }
    SACCADE_UNROLL
    for (int c = 0; c < 8; ++c) t.q[r * (p.dim + 4) + channel + c] = values[c];
  }
}

// Means of kChunk candidates from `block` on, channels from `begin` on; NaN for those that are not
// there: NaN never chooses.
template <class E>
SACCADE_DEVICE void stage_means(const SelectParams& p, const SelectTile& t, i64 block, i64 begin) {
  using Raw = typename E::Raw;
  const i32* table = p.table + t.sequence * p.table_row;
  for (i64 i = threadIdx.x; i < kChunk * kSlice / 8; i += blockDim.x) {
    const i64 candidate = block + i / (kSlice / 8), channel = i % (kSlice / 8) * 8;
    const i64 last = (candidate + 1) * p.block - 1;
    const i64 page = page_at(table, p.table_width, p.pages, last / p.page);
    float values[8] = {};
    if (candidate >= t.candidates || page < 0) {
      values[0] = float_of(0x7fc00000u);
    } else if (begin + channel < p.dim) {
      const i64 slot = p.slots > 1 ? last % p.page / p.block : 0;
      const Raw* mean = static_cast<const Raw*>(p.means) +
                        ((page * p.slots + slot) * p.kv_heads + blockIdx.y) * p.dim;
      load8<E>(mean + begin + channel, values);
    }
    SACCADE_UNROLL
    for (int c = 0; c < 8; ++c) t.means[i / (kSlice / 8) * kSliceRow + channel + c] = values[c];
  }
}

// Scores of kChunk candidates from `block` on: each thread 4 rows x 4 candidates, channels in
// order.
template <class E>
SACCADE_DEVICE void score(const SelectParams& p, const SelectTile& t, i64 block) {
  const i64 row = threadIdx.x / 16 * 4, candidate = threadIdx.x % 16;
  float sums[4][4] = {};
  for (i64 begin = 0; begin < p.dim; begin += kSlice) {
    sync_block();
    stage_means<E>(p, t, block, begin);
    sync_block();
    const i64 channels = least(kSlice, p.dim - begin);
    for (i64 c = 0; c < channels; c += 4) {
      Bytes16 a[4], b[4];
      SACCADE_UNROLL
      for (int i = 0; i < 4; ++i) {
        a[i] = *reinterpret_cast<const Bytes16*>(t.q + (row + i) * (p.dim + 4) + begin + c);
        b[i] = *reinterpret_cast<const Bytes16*>(t.means + (candidate + 16 * i) * kSliceRow + c);
      }
      SACCADE_UNROLL
      for (int i = 0; i < 4; ++i) SACCADE_UNROLL
      for (int j = 0; j < 4; ++j) SACCADE_UNROLL
      for (int e = 0; e < 4; ++e) sums[i][j] += float_of(a[i].part[e]) * float_of(b[j].part[e]);
    }
  }
  SACCADE_UNROLL
  for (int i = 0; i < 4; ++i) SACCADE_UNROLL
  for (int j = 0; j < 4; ++j) t.scores[(row + i) * kScoreRow + candidate + 16 * j] = sums[i][j];
  sync_block();
}

// Offers the scored candidates to the lists; one warp a row.
SACCADE_DEVICE void keep_best(const SelectParams& p, const SelectTile& t, i64 block) {
  for (i64 r = threadIdx.x / 32; r < t.rows; r += blockDim.x / 32) {
    const i64 own = own_block(p, t.first + r / t.group);
    for (i64 i = 0; i < kChunk; i += 32) {
      const i64 at = i + threadIdx.x % 32;
      const float value = t.scores[r * kScoreRow + at];
      const u64 rank = block + at < own ? rank_of(value, static_cast<u32>(block + at)) : 0;
      offer(t.lists + r * p.listed, p.listed, p.topk, rank);
    }
  }
}

// Leaves this split's lists in memory and, in the block that comes last, takes those of the others
// in. Ranks are all different: what is kept does not depend on who comes last.
SACCADE_DEVICE bool join_splits(const SelectParams& p, const SelectTile& t) {
  const i64 place = blockIdx.x * p.kv_heads + blockIdx.y, each = p.tokens * t.group * p.listed;
  u64* partial = p.partial + place * p.splits * each;
  for (i64 i = threadIdx.x; i < t.rows * p.listed; i += blockDim.x)
    partial[blockIdx.z * each + i] = t.lists[i];
  i32* before = reinterpret_cast<i32*>(t.scores);
  sync_block();
  if (threadIdx.x == 0) before[0] = add_acquire_release(p.arrived + place, 1);
  sync_block();
  if (before[0] != p.splits - 1) return false;
  for (i64 r = threadIdx.x / 32; r < t.rows; r += blockDim.x / 32)
    for (i64 split = 0; split < p.splits; ++split)
      for (i64 i = threadIdx.x % 32; i < p.listed && split != blockIdx.z; i += 32)
        offer(t.lists + r * p.listed, p.listed, p.topk, partial[split * each + r * p.listed + i]);
  if (threadIdx.x == 0) p.arrived[place] = 0;
  return true;
}

// The kept blocks in ascending order, then the row's own one, which lies behind them all.
SACCADE_DEVICE void write_ids(const SelectParams& p, const SelectTile& t) {
  for (i64 r = threadIdx.x / 32; r < t.rows; r += blockDim.x / 32) {
    const u64* list = t.lists + r * p.listed;
    const i64 row = t.first + r / t.group, head = blockIdx.y * t.group + r % t.group;
    i32* ids = p.ids + (row * p.heads + head) * (p.topk + 1);
    i64 kept = 0;
    while (kept < p.topk && list[kept]) ++kept;
    for (i64 i = threadIdx.x % 32; i < p.topk + 1; i += 32) {
      if (i > kept) ids[i] = -1;
      if (i == kept) ids[i] = static_cast<i32>(own_block(p, row));
      if (i >= kept) continue;
      const u32 block = block_of(list[i]);
      i64 before = 0;
      for (i64 j = 0; j < kept; ++j) before += block_of(list[j]) < block;
      ids[before] = static_cast<i32>(block);
    }
  }
}

template <class E>
SACCADE_DEVICE void select(const SelectParams& p) {
  SelectTile t;
  if (!find_tile(p, t)) return;
  t.lists = reinterpret_cast<u64*>(dynamic_shared());
  t.q = reinterpret_cast<float*>(t.lists + kRows * p.listed);
  t.means = t.q + kRows * (p.dim + 4);
  t.scores = t.means + kChunk * kSliceRow;
  for (i64 i = threadIdx.x; i < kRows * p.listed; i += blockDim.x) t.lists[i] = 0;
  stage_rows<E>(p, t);
  sync_block();
  if (p.topk) {
    const i64 chunks = ceil_div(ceil_div(t.candidates, kChunk), p.splits);
    const i64 begin = blockIdx.z * chunks * kChunk;
    const i64 end = least(begin + chunks * kChunk, t.candidates);
    for (i64 block = begin; block < end; block += kChunk) {
      score<E>(p, t, block);
      keep_best(p, t, block);
    }
  }
  sync_block();
  if (p.splits > 1 && !join_splits(p, t)) return;
  sync_block();
  write_ids(p, t);
}

SACCADE_KERNEL(saccade_select_f32, SelectParams, 128, select<F32>)
SACCADE_KERNEL(saccade_select_bf16, SelectParams, 128, select<BF16>)
SACCADE_KERNEL(saccade_select_f16, SelectParams, 128, select<F16>)

}  // namespace saccade
