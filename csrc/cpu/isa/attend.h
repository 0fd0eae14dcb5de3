// The parts that an attention call is cut into, and the pages under them.
//
// A unit is up to kMaxRows query rows of one sequence and one KV head: consecutive tokens x the
// heads of the group. A segment is kSegment keys at an absolute position. Each row's result is the
// merge, in order, of its segments' partial results, whoever computed them: one thread after the
// other (many units) or several at once (few units). Most segments would hold a block or two of a
// row's list, if it has one: its partial results are those of parts of the list instead, and where
// it holds few keys there are none.
#pragma once

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
// products full; with tiles, memory takes as long as they do, and yet more rows read it less often.
constexpr int64_t kMaxRows = SACCADE_AMX ? 512 : (kNarrow ? 120 : 128);
constexpr int64_t kMaxListedRows = SACCADE_AMX ? 3072 : 512;
constexpr int64_t kMaxLongRows = SACCADE_AMX ? 1536 : 512;  // with lists of several parts
// Keys of a list that are summed without partial results, and of a part of a longer one, but no
// fewer blocks than so many. (Threads share the parts of a decode step.)
constexpr int64_t kFewKeys = 1024, kFewBlocks = 4;
// As few as this where otherwise a thread would have fewer units than these.
constexpr int64_t kLeastRows = SACCADE_AMX ? 256 : kMaxRows, kLeastListedRows = 512;
constexpr int64_t kUnitsOfThread = 4;
// Segments that a thread takes at a time where threads share those of a unit.
constexpr int64_t kMostStretch = 8;
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
      const int64_t id = p.table[u.seq * p.table_row + u.kv_head * p.table_head + index];
      if (id < 0 || id >= p.pages) continue;
      const int64_t base = p.steps.panel(id, u.kv_head) * p.page;
      k[c] = static_cast<const B*>(p.k_pages) + base * p.dim + offset * unit;
      if (p.v_pages == nullptr) continue;
      v[c] = static_cast<const B*>(p.v_pages) + base * p.v_dim + offset * value_tile(p.v_dim);
    }
  }
};

// The list of a row for a head; there are lists.
SACCADE_INLINE const int32_t* list_of(const AttendParams& p, int64_t row, int64_t head,
                                      int64_t kv_head) {
  const int64_t list = p.list_of_row != nullptr ? p.list_of_row[row] : row;
  return p.blocks + (list * p.owners + (p.owners == p.heads ? head : kv_head)) * p.list_width;
}

// Blocks that hold few keys.
SACCADE_INLINE int64_t few_blocks(const AttendParams& p) {
  const int64_t blocks = kFewKeys / p.block;
  return blocks > kFewBlocks ? blocks : kFewBlocks;
}

// Whether an ascending list, -1 padded, holds few keys.
SACCADE_INLINE bool is_short(const AttendParams& p, const int32_t* list) {
  const int64_t most = few_blocks(p);
  return p.list_width <= most || list[most] < 0;
}

// Where the part of an ascending list, -1 padded, that begins with the key `begin` ends: at a pass,
// so that it has about few_blocks(p). `at`: where the parts before ended in the list.
SACCADE_INLINE int64_t end_of_part(const AttendParams& p, const int32_t* list, int64_t begin,
                                   int64_t& at) {
  const auto is_block = [&](int64_t i) { return i < p.list_width && list[i] >= 0; };
  while (is_block(at) && (list[at] + int64_t{1}) * p.block <= begin) ++at;
  for (int64_t i = at + few_blocks(p); is_block(i); ++i) {
    const int64_t end = list[i] * p.block / kPass * kPass;
    if (end > begin) return end < INT32_MAX ? end : INT32_MAX;
  }
  return INT32_MAX;
}

// The keys [begin, end) of a part of a list; beyond the last part there are none.
struct Part {
  int64_t begin, end;
};

SACCADE_INLINE Part part_of(const AttendParams& p, const int32_t* list, int64_t number) {
  Part part{0, 0};
  int64_t at = 0;
  for (int64_t i = 0; i <= number; ++i) {
    part.begin = part.end;
    if (part.begin < INT32_MAX) part.end = end_of_part(p, list, part.begin, at);
  }
  return part;
}

SACCADE_INLINE int64_t parts_of(const AttendParams& p, const int32_t* list) {
  int64_t parts = 1, at = 0;
  for (int64_t end = 0; (end = end_of_part(p, list, end, at)) < INT32_MAX;) ++parts;
  return parts;
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

SACCADE_INLINE int64_t segment_of(const AttendParams& p) {
  return p.segment > 0 ? p.segment : kSegment;
}

// Whether the keys [first, last) lie between the sinks and the window of all of a unit's rows.
SACCADE_INLINE bool in_gap(const AttendParams& p, const Unit& u, int64_t first, int64_t last) {
  return p.window > 0 && first >= p.sinks && last <= u.window_begin;
}

// Whether a segment can hold keys that a unit sees: the gap between sinks and window holds none,
// nor do most segments where few rows have short lists.
SACCADE_INLINE bool may_see(const AttendParams& p, const Unit& u, int64_t segment) {
  const int64_t first = segment * segment_of(p), last = first + segment_of(p);
  if (in_gap(p, u, first, last)) return false;
  if (p.blocks == nullptr || u.tokens * u.heads > kStreamRows) return true;
  const int64_t step = p.owners == p.heads ? 1 : u.heads;  // heads that share a list
  for (int64_t row = u.row; row < u.row + u.tokens; ++row)
    for (int64_t head = u.head; head < u.head + u.heads; head += step)
      if (holds(p, list_of(p, row, head, u.kv_head), first, last)) return true;
  return false;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
