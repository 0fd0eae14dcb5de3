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

SACCADE_INLINE Row make_row(const AttendParams& p, const Unit& u, int64_t at, int64_t head) {
  const int64_t position = p.positions[at], limit = p.table_width * p.page;
  const int64_t hi = p.end_of_row(at, u.kv_head);
  Row row;
  row.hi = static_cast<int32_t>(hi < limit ? hi : limit);  // no key lies beyond the page table
  row.lo = p.lo != nullptr && p.lo[at] > 0 ? p.lo[at] : 0;
  row.past = p.window > 0 ? static_cast<int32_t>(position - p.window) : -1;
  row.cursor = 0;
  row.list = p.blocks != nullptr ? list_of(p, at, head, u.kv_head) : nullptr;
  return row;
}

SACCADE_INLINE Span span_of(const AttendParams& p, const Row& row, int64_t first) {
  constexpr int W = kWidth;
  int64_t begin = row.lo, end = row.hi;
  if (p.window > 0 && first >= p.sinks && begin <= row.past) begin = row.past + 1;
  begin = begin > first ? (begin - first) / W * W : 0;
  end = end < first + kPass ? (end - first + W - 1) / W * W : kPass;
  return begin < end ? Span{begin, end} : Span{0, 0};
}

// Whether some key of the span is hidden from the row.
SACCADE_INLINE bool is_masked(const AttendParams& p, const Row& row, const Span& span,
                              int64_t first) {
  return row.lo > first + span.begin || row.hi < first + span.end ||
         (p.window > 0 && row.past >= first + span.begin) || row.list != nullptr;
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
// passes, and the products then run over the rows that do.
struct SegmentRows {
  int64_t counts[kPasses];
  Active* rows;  // [kPasses][capacity]
  int64_t capacity;

  Active* of(int64_t pass) const { return rows + pass * capacity; }
  void add(int64_t pass, int64_t row, uint32_t bits, uint64_t fine) {
    of(pass)[counts[pass]++] = {static_cast<int32_t>(row), bits, fine};
  }

  void collect(const AttendParams& p, Row* info, int64_t count, int64_t segment_first) {
    for (int64_t pass = 0; pass < kPasses; ++pass) counts[pass] = 0;
    for (int64_t r = 0; r < count; ++r) {
      if (info[r].list != nullptr) {
        collect_listed(p, info[r], r, segment_first);
        continue;
      }
      for (int64_t pass = 0; pass < kPasses; ++pass) {
        const Span span = span_of(p, info[r], segment_first + pass * kPass);
        if (span.begin < span.end) add(pass, r, 0, 0);
      }
    }
  }

 private:
  // Entries of one row for the blocks of its list that lie in the segment, at most one per pass.
  void collect_listed(const AttendParams& p, Row& row, int64_t r, int64_t first) {
    const int64_t last = first + kSegment;
    int64_t c = row.cursor;
    while (c < p.list_width && row.list[c] >= 0 && (row.list[c] + int64_t{1}) * p.block <= first) {
      ++c;
    }
    row.cursor = static_cast<int32_t>(c);  // segments ascend, so the next one looks from here on
    uint32_t bits[kPasses] = {};
    uint64_t fine[kPasses] = {};
    for (; c < p.list_width && row.list[c] >= 0 && row.list[c] * p.block < last; ++c) {
      const int64_t from = row.list[c] * p.block - first, to = from + p.block;
      if (p.block < 16) {
        if (from < 0) continue;  // a list that does not ascend
        for (int64_t at = from; at < to; at += kLeastBlock)
          fine[at / kPass] |= uint64_t{1} << at % kPass / kLeastBlock;
        bits[from / kPass] |= 1u << from % kPass / 16;
        continue;
      }
      const int64_t low = from > 0 ? from / 16 : 0, high = to < kSegment ? to / 16 : kSegment / 16;
      for (int64_t bit = low; bit < high; ++bit) bits[bit * 16 / kPass] |= 1u << bit % (kPass / 16);
    }
    for (int64_t pass = 0; pass < kPasses; ++pass) {
      const Span span = bits[pass] == 0 ? Span{0, 0} : span_of(p, row, first + pass * kPass);
      if (span.begin < span.end) add(pass, r, bits[pass], fine[pass]);
    }
  }
};

}  // namespace SACCADE_ISA
}  // namespace saccade
