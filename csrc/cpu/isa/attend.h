// How an attention call is cut into units and segments, and how threads share them.
//
// A unit is up to kMaxRows query rows of one sequence and one KV head: consecutive tokens x the
// heads of the group. A segment is kSegment keys at an absolute position. Each row's result is the
// merge, in order, of its segments' partial results, whoever computed them: one thread after the
// other (many units) or several at once (few units).
#pragma once
#include <stdlib.h>

#include "amx.h"
#include "product.h"
#include "saccade/params.h"
#include "saccade/threads.h"

namespace saccade {
namespace SACCADE_ISA {

// Keys per softmax step. Scores and probabilities of one step should stay in the first-level cache;
// with tiles the arithmetic is so fast that longer steps, which rescale the output less often, win.
constexpr int64_t kPass = SACCADE_AMX ? 256 : 128;
constexpr int64_t kSegment = 2048;
constexpr int64_t kPasses = kSegment / kPass;
// More rows in a unit read K and V less often; the unit's output must stay in the second-level
// cache. With block lists each pass concerns few of the rows, so that units of more rows keep the
// products full.
constexpr int64_t kMaxRows = SACCADE_AMX ? 256 : (kNarrow ? 120 : 128);
constexpr int64_t kMaxListedRows = 512;
// Units of at most this many rows wait for memory rather than for arithmetic, and fetch ahead.
constexpr int64_t kStreamRows = 16;

struct Unit {
  int64_t seq, kv_head, head, heads, row, tokens;
  int64_t hi;                           // one past the last key that any of its rows sees
  int64_t window_begin;                 // the first key in the window of any of its rows
  int64_t first_segment, last_segment;  // half open
};

// Hands out 64-byte aligned pieces of a scratch slice; from null it only measures.
struct Carver {
  char* at;
  template <class T>
  T* take(int64_t count) {
    char* piece = at;
    at += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
};

struct TileScope {
#if SACCADE_AMX
  TileScope() { amx::configure(); }
  ~TileScope() { amx::release(); }
#else
  TileScope() {}
#endif
};

// The pages under one pass of keys. Within a page, K is [dim / unit][page][unit] and V is [v_dim /
// tile][page / unit][tile][unit]: both are panels whose vector lanes (keys, channels) lie side by
// side, unit elements of the summed index together.
template <class B>
struct Pass {
  int64_t chunk, chunks;
  const B* k[kPass / 16];  // K panel from the first key of each chunk (null: no such page)
  const B* v[kPass / 16];  // V panel from the first key of each chunk

  void locate(const AttendParams& p, const Unit& u, int64_t first) {
    chunk = p.page < kPass ? p.page : kPass;
    chunks = kPass / chunk;
    const int64_t unit = p.dtype == DType::kBF16 ? 2 : 1;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t key = first + c * chunk, index = key / p.page, offset = key % p.page;
      k[c] = v[c] = nullptr;
      if (index >= p.table_width || key >= u.hi) continue;
      const int64_t id = p.table[u.seq * p.table_row + index];
      if (id < 0 || id >= p.pages) continue;
      const int64_t base = p.steps.panel(id, u.kv_head) * p.page;
      k[c] = static_cast<const B*>(p.k_pages) + base * p.dim + offset * unit;
      if (p.v_pages == nullptr) continue;
      v[c] = static_cast<const B*>(p.v_pages) + base * p.v_dim + offset * value_tile(p.v_dim);
    }
  }
};

// The units of a call, found by index without storing them.
class UnitPlan {
 public:
  explicit UnitPlan(const AttendParams& p) : p_(p) {
    const int64_t group = p.heads / p.kv_heads;
    const int64_t plain = p.unit_rows > 0 ? p.unit_rows : kMaxRows;
    const int64_t most = p.blocks != nullptr ? kMaxListedRows : plain;
    heads_ = group < most ? group : most;
    splits_ = (group + heads_ - 1) / heads_;
    tokens_ = most / heads_;
    first_ = static_cast<int64_t*>(malloc(static_cast<size_t>(p.seqs + 1) * sizeof(int64_t)));
    first_[0] = 0;
    for (int64_t s = 0; s < p.seqs; ++s) {
      const int64_t rows = p.end_of_rows(s) - p.cu_rows[s];
      first_[s + 1] = first_[s] + (rows + tokens_ - 1) / tokens_ * p.kv_heads * splits_;
    }
  }
  ~UnitPlan() { free(first_); }
  UnitPlan(const UnitPlan&) = delete;
  UnitPlan& operator=(const UnitPlan&) = delete;

  int64_t count() const { return first_[p_.seqs]; }
  int64_t largest() const { return tokens_ * heads_; }

  Unit unit(int64_t index) const {
    int64_t low = 0, high = p_.seqs;  // first_[low] <= index < first_[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_[middle] <= index ? low : high) = middle;
    }
    const int64_t per_tile = p_.kv_heads * splits_, group = p_.heads / p_.kv_heads;
    const int64_t tile = (index - first_[low]) / per_tile, owner = (index - first_[low]) % per_tile;
    Unit u;
    u.seq = low;
    u.kv_head = owner / splits_;
    u.head = u.kv_head * group + owner % splits_ * heads_;
    const int64_t group_end = (u.kv_head + 1) * group;
    u.heads = group_end - u.head < heads_ ? group_end - u.head : heads_;
    u.row = p_.cu_rows[low] + tile * tokens_;
    const int64_t rows_end = p_.end_of_rows(low);
    u.tokens = rows_end - u.row < tokens_ ? rows_end - u.row : tokens_;
    set_keys(u);
    return u;
  }

 private:
  void set_keys(Unit& u) const {
    const int64_t limit = p_.table_width * p_.page;  // no key lies beyond the page table
    int64_t lo = INT64_MAX, hi = 0, window_begin = INT64_MAX;
    for (int64_t row = u.row; row < u.row + u.tokens; ++row) {
      const int64_t position = p_.positions[row];
      int64_t from = p_.lo != nullptr && p_.lo[row] > 0 ? p_.lo[row] : 0;
      const int64_t in_window = position - p_.window + 1;
      if (p_.window > 0 && p_.sinks == 0 && in_window > from) from = in_window;
      const int64_t to = p_.end_of_row(row, u.kv_head);
      if (from < lo) lo = from;
      if (to > hi) hi = to;
      if (in_window < window_begin) window_begin = in_window;
    }
    if (hi > limit) hi = limit;
    u.window_begin = window_begin;
    u.hi = hi;
    u.first_segment = lo < hi ? lo / kSegment : 0;
    u.last_segment = lo < hi ? (hi + kSegment - 1) / kSegment : 0;
  }

  const AttendParams& p_;
  int64_t heads_, splits_, tokens_;
  int64_t* first_;
};

// The list of a row for a head; there are lists.
SACCADE_INLINE const int32_t* list_of(const AttendParams& p, int64_t row, int64_t head,
                                      int64_t kv_head) {
  const int64_t list = p.list_of_row != nullptr ? p.list_of_row[row] : row;
  return p.blocks + (list * p.owners + (p.owners == p.heads ? head : kv_head)) * p.list_width;
}

// Whether an ascending list, -1 padded, holds a block with keys of [first, last).
SACCADE_INLINE bool holds(const AttendParams& p, const int32_t* list, int64_t first, int64_t last) {
  int64_t low = 0, high = p.list_width;  // blocks before low end at `first` or before it
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (list[middle] >= 0 && (list[middle] + int64_t{1}) * p.block <= first) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < p.list_width && list[low] >= 0 && list[low] * p.block < last;
}

// Whether a segment can hold keys that a unit sees: the gap between sinks and window holds none,
// nor do most segments where few rows have short lists.
SACCADE_INLINE bool may_see(const AttendParams& p, const Unit& u, int64_t segment) {
  const int64_t first = segment * kSegment, last = first + kSegment;
  if (p.window > 0 && first >= p.sinks && last <= u.window_begin) return false;
  if (p.blocks == nullptr || u.tokens * u.heads > kStreamRows) return true;
  const int64_t step = p.owners == p.heads ? 1 : u.heads;  // heads that share a list
  for (int64_t row = u.row; row < u.row + u.tokens; ++row)
    for (int64_t head = u.head; head < u.head + u.heads; head += step)
      if (holds(p, list_of(p, row, head, u.kv_head), first, last)) return true;
  return false;
}

struct UnitOps {
  int64_t (*scratch_bytes)(const AttendParams&, const Unit&);
  int64_t (*partial_floats)(const AttendParams&, const Unit&);
  void (*whole)(const AttendParams&, const Unit&, char* scratch);
  void (*segment)(const AttendParams&, const Unit&, int64_t at, char* scratch, float* partial);
  void (*clear)(const AttendParams&, const Unit&, float* total);
  void (*merge)(const AttendParams&, const Unit&, float* total, const float* partial);
  void (*finish)(const AttendParams&, const Unit&, const float* total);
};

struct UnitCall {
  const AttendParams& p;
  const UnitPlan& plan;
  UnitOps ops;
  char* scratch;
  int64_t slice;
  // Few units: items of one round are (unit, segment) pairs with a slot each.
  const Unit* unit_of_item[256];
  int64_t segment_of_item[256];
  float* slots;
  int64_t slot_floats;
};

// Many units: a thread takes a unit and walks its segments. Last units first: under a causal mask
// they are longest.
inline void run_whole_units(UnitCall& call, ThreadPool& pool) {
  pool.run(
      call.plan.count(),
      [](void* context, int64_t item, int thread) {
        UnitCall& c = *static_cast<UnitCall*>(context);
        const Unit u = c.plan.unit(c.plan.count() - 1 - item);
        c.ops.whole(c.p, u, c.scratch + thread * c.slice);
      },
      &call);
}

inline void run_round(UnitCall& call, int64_t items, ThreadPool& pool) {
  pool.run(
      items,
      [](void* context, int64_t item, int thread) {
        UnitCall& c = *static_cast<UnitCall*>(context);
        const Unit& u = *c.unit_of_item[item];
        c.ops.segment(c.p, u, c.segment_of_item[item], c.scratch + thread * c.slice,
                      c.slots + item * c.slot_floats);
      },
      &call);
}

// Few units: threads share each unit's segments. Rounds bound the memory; merging in order fixes
// the result.
inline void run_split_units(UnitCall& call, ThreadPool& pool, int64_t per_round) {
  const int64_t count = call.plan.count();
  Unit* units = static_cast<Unit*>(malloc(static_cast<size_t>(count) * sizeof(Unit)));
  float* totals = static_cast<float*>(
      malloc(static_cast<size_t>((count + per_round) * call.slot_floats) * sizeof(float)));
  call.slots = totals + count * call.slot_floats;
  for (int64_t i = 0; i < count; ++i) {
    units[i] = call.plan.unit(i);
    call.ops.clear(call.p, units[i], totals + i * call.slot_floats);
  }
  int64_t queued = 0;
  const auto flush = [&] {
    run_round(call, queued, pool);
    for (int64_t i = 0; i < queued; ++i) {
      const Unit& u = *call.unit_of_item[i];
      call.ops.merge(call.p, u, totals + (&u - units) * call.slot_floats,
                     call.slots + i * call.slot_floats);
    }
    queued = 0;
  };
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t at = units[i].first_segment; at < units[i].last_segment; ++at) {
      if (!may_see(call.p, units[i], at)) continue;
      call.unit_of_item[queued] = &units[i];
      call.segment_of_item[queued] = at;
      if (++queued == per_round) flush();
    }
  }
  flush();
  for (int64_t i = 0; i < count; ++i) {
    call.ops.finish(call.p, units[i], totals + i * call.slot_floats);
  }
  free(totals);
  free(units);
}

// Whether threads share the segments of each unit.
inline bool splits_units(const UnitPlan& plan, const ThreadPool& pool) {
  bool several = false;
  const bool few = plan.count() < 2 * pool.size();
  for (int64_t i = 0; few && i < plan.count(); ++i) {
    const Unit u = plan.unit(i);
    several |= u.last_segment - u.first_segment > 1;
  }
  return several;
}

inline void run_units(const AttendParams& p, const UnitPlan& plan, const UnitOps& ops,
                      ThreadPool& pool) {
  UnitCall call{p, plan, ops, nullptr, 0, {}, {}, nullptr, 0};
  Unit largest = plan.unit(0);
  largest.tokens = plan.largest() / largest.heads;
  call.slice = (ops.scratch_bytes(p, largest) + 4095) / 4096 * 4096;
  call.scratch = pool.scratch(call.slice);
  if (!splits_units(plan, pool)) {
    run_whole_units(call, pool);
    return;
  }
  call.slot_floats = ops.partial_floats(p, largest);
  const int64_t per_round = 16 * pool.size() < 256 ? 16 * pool.size() : 256;
  run_split_units(call, pool, per_round);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
