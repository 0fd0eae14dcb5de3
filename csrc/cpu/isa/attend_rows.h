// Which keys a query row sees: its own range, a window with sinks, and the blocks of an explicit
// list.
#pragma once
#include "attend.h"

namespace saccade {
namespace SACCADE_ISA {

// Keys [begin, end) of a pass as offsets from its first key, whole vectors.
struct Span {
  int64_t begin, end;
};

struct Row {
  int32_t lo, hi, past;  // sees key j: lo <= j < hi, and j > past or j < sinks
  int32_t cursor;        // where in `list` the current segment begins
  bool is_short;         // the list holds few keys
  int32_t part_at;       // of a long list: where its current part begins in it,
  int32_t part_end;      // and the key at which that part ends
  const int32_t* list;   // ascending block ids, -1 padded, or null: no list
};

constexpr int64_t kLeastBlock = 4;  // of a list
static_assert(kPass / kLeastBlock <= 64, "a bit of `fine` for every small block of a pass");

// A row that sees keys of a pass. Bit i: its list holds some of the keys 16 i .. 16 i + 15; bit i
// of `fine`, where blocks are shorter than that: it holds the keys 4 i .. 4 i + 3.
struct Active {
  int32_t row;
  uint32_t bits;
  uint64_t fine;
};

// Whether the rows of `count` entries are neighbours, in order.
SACCADE_INLINE bool are_neighbours(const Active* active, int64_t count) {
  if (active[count - 1].row != active[0].row + count - 1) return false;
  for (int64_t i = 1; i < count; ++i)
    if (active[i].row != active[0].row + i) return false;
  return true;
}

SACCADE_INLINE void next_part(const AttendParams& p, Row& row) {
  int64_t at = row.part_at;
  row.part_end = static_cast<int32_t>(end_of_part(p, row.list, row.part_end, at));
  row.part_at = static_cast<int32_t>(at);
}

SACCADE_INLINE Row make_row(const AttendParams& p, const Unit& u, int64_t at, int64_t head) {
  const int64_t position = p.positions[at], limit = p.table_width * p.page;
  const int64_t hi = p.end_of_row(at, u.kv_head);
  Row row;
  // No key lies beyond the page table, or before its beginning.
  row.hi = static_cast<int32_t>(hi < 0 ? 0 : hi < limit ? hi : limit);
  row.lo = p.lo != nullptr && p.lo[at] > 0 ? p.lo[at] : 0;
  const int64_t past = p.window > 0 ? position - p.window : -1;
  row.past = static_cast<int32_t>(past < -1 ? -1 : past < limit ? past : limit);
  row.cursor = 0;
  row.list = p.blocks != nullptr ? list_of(p, at, head, u.kv_head) : nullptr;
  row.is_short = row.list != nullptr && is_short(p, row.list);
  row.part_at = row.part_end = 0;
  if (row.list != nullptr && !row.is_short) next_part(p, row);
  return row;
}

SACCADE_INLINE Span span_of(const AttendParams& p, const Row& row, int64_t first) {
  constexpr int W = kWidth;
  int64_t begin = row.lo, end = row.hi;
  if (p.window > 0 && first >= p.sinks && begin <= row.past) begin = row.past + 1;
  // Between the sinks of a pass and the window: nothing.
  if (p.window > 0 && first < p.sinks && row.past + 1 >= first + kPass && p.sinks < end)
    end = p.sinks;
  begin = begin > first ? (begin - first) / W * W : 0;
  end = end < first + kPass ? (end - first + W - 1) / W * W : kPass;
  return begin < end ? Span{begin, end} : Span{0, 0};
}

// The same for a row at work: no more than its list holds.
SACCADE_INLINE Span span_of(const AttendParams& p, const Row& row, const Active& active,
                            int64_t first) {
  Span span = span_of(p, row, first);
  if (row.list == nullptr) return span;
  const int64_t begin = __builtin_ctz(active.bits) * 16;
  const int64_t end = (32 - __builtin_clz(active.bits)) * 16;
  if (span.begin < begin) span.begin = begin;
  if (span.end > end) span.end = end;
  return span.begin < span.end ? span : Span{0, 0};
}

// Which keys of a span are hidden from a row: none, some of its first or last vector alone, or any.
enum class Hidden { kNone, kEdges, kAny };

SACCADE_INLINE Hidden hidden_in(const AttendParams& p, const Row& row, const Active& active,
                                const Span& span, int64_t first) {
  if (row.list != nullptr) {
    const uint64_t all = (uint64_t{1} << (span.end + 15) / 16) - (uint64_t{1} << span.begin / 16);
    if (p.block < 16 || (active.bits & all) != all) return Hidden::kAny;
  }
  const bool in_sinks = first + span.end <= p.sinks;
  if (p.window > 0 && first < p.sinks && !in_sinks && row.past >= first + span.begin)
    return Hidden::kAny;
  const bool edges = row.lo > first + span.begin || row.hi < first + span.end ||
                     (p.window > 0 && !in_sinks && row.past >= first + span.begin);
  return edges ? Hidden::kEdges : Hidden::kNone;
}

// Bit q: the list holds some of the keys 64 q .. 64 q + 63 of the pass.
SACCADE_INLINE uint32_t quarters_of(uint32_t bits) {
  bits |= bits >> 1;
  bits = (bits | bits >> 2) & 0x1111u;
  return (bits | bits >> 3 | bits >> 6 | bits >> 9) & 15u;
}

SACCADE_INLINE I<kWidth> lane_numbers() {
  I<kWidth> v{};
  for (int i = 0; i < kWidth; ++i) v[i] = i;
  return v;
}

// Lanes (-1 or 0) of the keys first + offset + lane that the row sees.
SACCADE_INLINE I<kWidth> seen(const AttendParams& p, const Row& row, const Active& active,
                              int64_t first, int64_t offset) {
  const I<kWidth> j = lane_numbers() + static_cast<int32_t>(first + offset);
  I<kWidth> mask = (j < row.hi) & (j >= row.lo);
  if (p.window > 0) mask &= (j > row.past) | (j < static_cast<int32_t>(p.sinks));
  if (row.list == nullptr) return mask;
  if (((active.bits >> (offset / 16)) & 1u) == 0) return I<kWidth>{};
  if (p.block >= 16) return mask;
  const int32_t held = static_cast<int32_t>(active.fine >> offset / kLeastBlock);
  return mask & (((splat_int<kWidth>(held) >> (lane_numbers() >> 2)) & 1) != 0);
}

// The rows that see each pass of one segment, compacted: with block lists most rows see few of its
// passes, and the products then run over the rows that do. Neighbours that share a list are one
// entry, by the first of them.
struct SegmentRows {
  int64_t counts[kPasses];
  Active* rows;  // [kPasses][capacity]
  // [capacity], whole vectors: no block that begins before this key is left in a list.
  int32_t* next;
  int64_t capacity;
  int64_t together;  // rows of an entry

  Active* of(int64_t pass) const { return rows + pass * capacity; }
  void add(int64_t pass, const Active& active) { of(pass)[counts[pass]++] = active; }

  // `count` entries, which have lists. shorts: the rows with short ones, or else all others.
  void collect_lists(const AttendParams& p, Row* info, int64_t count, int64_t first, bool shorts) {
    constexpr int W = kWidth;
    const I<W> last = splat_int<W>(static_cast<int32_t>(first + kSegment));
    for (int64_t pass = 0; pass < kPasses; ++pass) counts[pass] = 0;
    for (int64_t r = 0; r < count; r += W) {
      uint32_t bits = lane_bits(load<I<W>>(next + r) < last);
      if (count - r < W) bits &= (1u << (count - r)) - 1;
      for (; bits != 0; bits &= bits - 1) {
        const int64_t at = r + __builtin_ctz(bits);
        Row& row = info[at * together];
        if (row.is_short == shorts) collect_listed(p, row, at, first);
      }
    }
  }

  // Rows without lists; `all`: the keys that none of them hides.
  void collect(const AttendParams& p, const Unit& u, const Row* info, int64_t segment_first,
               const Span& all) {
    for (int64_t pass = 0; pass < kPasses; ++pass) {
      const int64_t first = segment_first + pass * kPass, last = first + kPass;
      counts[pass] = 0;
      if (pass * kPass >= segment_of(p) || first >= u.hi || in_gap(p, u, first, last)) continue;
      const bool is_seen = first >= all.begin && last <= all.end;
      for (int64_t r = 0; r < capacity; ++r) {
        const Span span = is_seen ? Span{0, kPass} : span_of(p, info[r], first);
        if (span.begin < span.end) add(pass, {static_cast<int32_t>(r), 0, 0});
      }
    }
  }

  // Bits for the keys [begin, end) of a pass, `keys` of them a bit.
  static uint64_t bits_of(int64_t begin, int64_t end, int64_t keys) {
    return (~uint64_t{0} >> (63 - (end - 1) / keys)) & ~uint64_t{0} << begin / keys;
  }

 private:
  // Entries of one list for its blocks that lie in the segment, at most one per pass.
  void collect_listed(const AttendParams& p, Row& row, int64_t index, int64_t first) {
    const int64_t last = first + kSegment;
    int64_t c = row.cursor;
    const auto is_block = [&] { return c < p.list_width && row.list[c] >= 0; };
    while (is_block() && (row.list[c] + int64_t{1}) * p.block <= first) ++c;
    Active active{static_cast<int32_t>(index * together), 0, 0};
    int64_t pass = 0;
    const auto flush = [&] {
      if (active.bits == 0) return;
      const Span span = span_of(p, row, active, first + pass * kPass);
      if (span.begin < span.end) add(pass, active);
      active.bits = 0;
      active.fine = 0;
    };
    for (; is_block() && row.list[c] * p.block < last; ++c) {
      const int64_t from = row.list[c] * p.block - first, to = from + p.block;
      const int64_t begin = from > 0 ? from : 0, end = to < kSegment ? to : kSegment;
      for (int64_t at = begin; at < end; at = (at / kPass + 1) * kPass) {
        if (at / kPass < pass) continue;  // a list that does not ascend
        if (at / kPass > pass) flush(), pass = at / kPass;
        const int64_t base = pass * kPass, stop = end - base < kPass ? end - base : kPass;
        active.bits |= bits_of(at - base, stop, 16);
        if (p.block < 16) active.fine |= bits_of(at - base, stop, kLeastBlock);
      }
      if (to > kSegment) break;
    }
    flush();
    row.cursor = static_cast<int32_t>(c);  // segments ascend, so the next one looks from here on
    next[index] = is_block() ? static_cast<int32_t>(row.list[c] * p.block) : INT32_MAX;
  }
};

}  // namespace SACCADE_ISA
}  // namespace saccade
