#include "units.h"

#include "results.h"

namespace saccade {
namespace SACCADE_ISA {

UnitPlan::UnitPlan(const AttendParams& p, const ThreadPool& pool) : p_(p), first_(p.seqs + 1) {
  const bool listed = p.blocks != nullptr, given = p.unit_rows > 0 && !listed;
  const int64_t most_listed =
      listed && p.list_width > few_blocks(p) ? kMaxLongRows : kMaxListedRows;
  int64_t most = listed ? most_listed : given ? p.unit_rows : kMaxRows;
  const int64_t least = listed ? kLeastListedRows : given ? most : kLeastRows;
  for (cut(most); most > least && count() < kUnitsOfThread * pool.size(); cut(most))
    most = most / 2 > least ? most / 2 : least;
}

// Units of up to `most` rows.
void UnitPlan::cut(int64_t most) {
  const int64_t group = p_.heads / p_.kv_heads;
  heads_ = group < most ? group : most;
  splits_ = (group + heads_ - 1) / heads_;
  tokens_ = most / heads_;
  first_[0] = 0;
  for (int64_t s = 0; s < p_.seqs; ++s) {
    const int64_t rows = p_.end_of_rows(s) - p_.cu_rows[s];
    first_[s + 1] = first_[s] + (rows + tokens_ - 1) / tokens_ * p_.kv_heads * splits_;
  }
}

Unit UnitPlan::unit(int64_t index) const {
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

void UnitPlan::set_keys(Unit& u) const {
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
  u.first_segment = lo < hi ? lo / segment_of(p_) : 0;
  u.last_segment = lo < hi ? (hi + segment_of(p_) - 1) / segment_of(p_) : 0;
}

namespace {

// The lists of a unit's rows: whether there are short ones, and how many parts the longest has.
struct Lists {
  bool shorts;
  int64_t parts;

  Lists(const AttendParams& p, const Unit& u) : shorts(false), parts(0) {
    const int64_t step = p.owners == p.heads ? 1 : u.heads;  // heads that share a list
    for (int64_t row = u.row; p.blocks != nullptr && row < u.row + u.tokens; ++row)
      for (int64_t head = u.head; head < u.head + u.heads; head += step) {
        const int32_t* list = list_of(p, row, head, u.kv_head);
        const bool is = is_short(p, list);
        const int64_t own = is ? 0 : parts_of(p, list);
        shorts |= is;
        if (own > parts) parts = own;
      }
  }
};

struct UnitCall {
  const AttendParams& p;
  const UnitPlan& plan;
  UnitOps ops;
  char* scratch;
  int64_t slice;
  // Few units: items of one round are stretches of a unit's segments, with a slot for each segment,
  // or parts of its lists.
  struct Item {
    const Unit* unit;
    int64_t segment, count, slot;
  } items[256];
  float* slots;
  int64_t slot_floats;
};

// Many units: a thread takes a unit and walks its segments. Last units first: under a causal mask
// they are longest.
void run_whole_units(UnitCall& call, ThreadPool& pool) {
  pool.run(
      call.plan.count(),
      [](void* context, int64_t item, int thread) {
        UnitCall& c = *static_cast<UnitCall*>(context);
        const Unit u = c.plan.unit(c.plan.count() - 1 - item);
        c.ops.whole(c.p, u, c.scratch + thread * c.slice);
      },
      &call);
}

void run_round(UnitCall& call, int64_t items, ThreadPool& pool) {
  pool.run(
      items,
      [](void* context, int64_t index, int thread) {
        UnitCall& c = *static_cast<UnitCall*>(context);
        const UnitCall::Item& item = c.items[index];
        c.ops.segments(c.p, *item.unit, item.segment, item.count, c.scratch + thread * c.slice,
                       c.slots + item.slot * c.slot_floats, c.slot_floats);
      },
      &call);
}

// How many segments a thread takes at a time: what lies side by side in memory is read faster the
// longer it goes on, as long as all threads have as much to do.
int64_t stretch_of(const UnitCall& call, const Unit* units, const ThreadPool& pool) {
  int64_t segments = 0;
  for (int64_t i = 0; i < call.plan.count(); ++i)
    segments += units[i].last_segment - units[i].first_segment;
  const int64_t stretch = segments / (kUnitsOfThread * pool.size());
  if (call.p.blocks != nullptr || stretch < 1) return 1;
  return stretch < kMostStretch ? stretch : kMostStretch;
}

// Few units: threads share each unit's segments, or the parts of its lists. Rounds bound the
// memory; merging in order fixes the result.
void run_split_units(UnitCall& call, ThreadPool& pool, int64_t per_round) {
  const int64_t count = call.plan.count();
  const Room<Unit> room(count);
  const Room<float> sums((count + per_round) * call.slot_floats);
  Unit* units = room.get();
  float* totals = sums.get();
  call.slots = totals + count * call.slot_floats;
  for (int64_t i = 0; i < count; ++i) {
    units[i] = call.plan.unit(i);
    Results(call.p, units[i]).clear(totals + i * call.slot_floats);
  }
  const int64_t stretch = stretch_of(call, units, pool);
  int64_t queued = 0, taken = 0;  // items, slots
  const auto flush = [&] {
    run_round(call, queued, pool);
    for (int64_t i = 0; i < queued; ++i) {
      const UnitCall::Item& item = call.items[i];
      float* total = totals + (item.unit - units) * call.slot_floats;
      for (int64_t slot = item.slot; slot < item.slot + item.count; ++slot)
        Results(call.p, *item.unit).merge_into(total, call.slots + slot * call.slot_floats);
    }
    queued = taken = 0;
  };
  const auto queue = [&](const Unit& u, int64_t at) {
    if (taken == per_round) flush();
    UnitCall::Item* last = queued > 0 ? call.items + queued - 1 : nullptr;
    if (last != nullptr && last->unit == &u && last->segment + last->count == at &&
        last->count < stretch) {
      ++last->count;
    } else {
      call.items[queued++] = {&u, at, 1, taken};
    }
    ++taken;
  };
  for (int64_t i = 0; i < count; ++i) {
    const Lists lists(call.p, units[i]);
    if (lists.shorts) queue(units[i], kShorts);
    for (int64_t part = 0; part < lists.parts; ++part) queue(units[i], part);
    if (call.p.blocks != nullptr) continue;
    for (int64_t at = units[i].first_segment; at < units[i].last_segment; ++at)
      if (may_see(call.p, units[i], at)) queue(units[i], at);
  }
  flush();
  for (int64_t i = 0; i < count; ++i) {
    const float* total = totals + i * call.slot_floats;
    Results(call.p, units[i]).finish(total);
    if (call.ops.conclude != nullptr) call.ops.conclude(call.p, units[i], total);
  }
}

}  // namespace

bool splits_units(const UnitPlan& plan, const ThreadPool& pool) {
  bool several = false;
  const bool few = plan.count() < 2 * pool.size();
  for (int64_t i = 0; few && i < plan.count(); ++i) {
    const Unit u = plan.unit(i);
    several |= plan.params().blocks == nullptr ? u.last_segment - u.first_segment > 1
                                               : Lists(plan.params(), u).parts > 1;
  }
  return several;
}

void run_units(const AttendParams& p, const UnitPlan& plan, const UnitOps& ops, ThreadPool& pool) {
  UnitCall call{p, plan, ops, nullptr, 0, {}, nullptr, 0};
  Unit largest = plan.unit(0);
  largest.tokens = plan.largest() / largest.heads;
  call.slice = (ops.scratch_bytes(p, largest) + 4095) / 4096 * 4096;
  call.scratch = pool.scratch(call.slice);
  if (!splits_units(plan, pool)) {
    run_whole_units(call, pool);
    return;
  }
  call.slot_floats = Results(p, largest).floats();
  const int64_t per_round = 16 * pool.size() < 256 ? 16 * pool.size() : 256;
  run_split_units(call, pool, per_round);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
