// Attention over lists of which a pass over the pages would hold few keys. Far from the beginning
// of a text a token's listed keys are to the rest of attention a text of their own instead: key i
// is the i-th that the token's heads see. Blocks of whole pages are found by page tables that each
// row has to itself, shorter ones are gathered side by side. What a row sums, and in which order,
// depends on its position and list alone.
#pragma once
#include "attend_rows.h"
#include "room.h"

namespace saccade {
namespace SACCADE_ISA {

// Rows that are no farther than so many times the keys of a list read the pages as they are: most
// passes hold some of these keys, and rows that share what they read do so faster than each could
// gather it.
constexpr int64_t kNear = 8, kNearScattered = 2;

// As many keys of a block are gathered at a time.
inline int64_t piece_of(const AttendParams& p) {
  return p.block % 16 == 0 ? 16 : kLeastBlock;
}

// What becomes of lists that are all that hides keys from rows.
enum class Listed { kPasses, kGathered, kPages };

inline Listed way_of_lists(const AttendParams& p) {
  const bool listed = p.blocks != nullptr && p.lo == nullptr && p.hi == nullptr && p.window == 0;
  const bool short_ones = p.block < 16 && p.owners == p.kv_heads;
  if (!listed || p.v_pages == nullptr || p.page % piece_of(p) != 0 || !(p.scattered || short_ones))
    return Listed::kPasses;
  // The same keys at the same places of what is then the text, whatever a page holds.
  return p.scattered && p.block % p.page == 0 ? Listed::kPages : Listed::kGathered;
}

// [S]: the first row of every sequence that is far from its beginning.
inline Room<int32_t> split_rows(const AttendParams& p) {
  const int64_t near = (p.scattered ? kNearScattered : kNear) * p.list_width * p.block;
  Room<int32_t> splits(p.seqs);
  for (int64_t s = 0; s < p.seqs; ++s) {
    splits[s] = p.cu_rows[s];
    while (splits[s] < p.cu_rows[s + 1] && p.positions[splits[s]] < near) ++splits[s];
  }
  return splits;
}

// A call as one over listed keys, as many as `hi` says. Whoever owns a list has keys of its own.
struct ListedCall : AttendParams {
  const AttendParams* of;

  explicit ListedCall(const AttendParams& call) : AttendParams(call), of(&call) {
    blocks = nullptr;
    kv_heads = hi_owners = of->owners;
    unit_rows = heads / kv_heads;
    segment = kFewKeys;
  }

  const int32_t* list(int64_t row, int64_t owner) const {
    const int64_t index = of->list_of_row != nullptr ? of->list_of_row[row] : row;
    return of->blocks + (index * of->owners + owner) * of->list_width;
  }

  // The panel in which the key `key` of a list lies, and where; -1: it has no page.
  int64_t panel_of(int64_t seq, int64_t owner, const int32_t* list, int64_t key,
                   int64_t& offset) const {
    const int64_t position = list[key / block] * block + key % block, index = position / of->page;
    if (position < 0 || index >= of->table_width) return -1;
    const int64_t id = of->table[seq * of->table_row + index];
    if (id < 0 || id >= of->pages) return -1;
    offset = position % of->page;
    return of->steps.panel(id, owner * of->kv_heads / of->owners);
  }

  // Listed keys up to the row's position. Lists ascend and end in -1.
  int64_t visible(int64_t row, int64_t owner) const {
    const int32_t* ids = list(row, owner);
    const int64_t known = of->table_width * of->page;  // no key lies beyond the page table
    const int64_t position = of->positions[row] < known ? of->positions[row] : known - 1;
    int64_t low = 0, high = of->list_width;  // blocks before low do not begin beyond the position
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ids[middle] >= 0 && ids[middle] * of->block <= position) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == 0) return 0;
    const int64_t left = position + 1 - ids[low - 1] * of->block;
    const int64_t keys = (low - 1) * of->block + (left < of->block ? left : of->block);
    return keys < known ? keys : known;  // of a list that names a block twice, too
  }
};

// Listed keys up to each row's position, [rows, owners], of the rows from `begins` on of every
// sequence.
inline Room<int32_t> count_listed(const ListedCall& call, const int32_t* begins, int64_t& most) {
  const AttendParams& p = *call.of;
  Room<int32_t> counts(p.rows * p.owners);
  most = 0;
  for (int64_t s = 0; s < p.seqs; ++s)
    for (int64_t row = begins[s]; row < p.cu_rows[s + 1]; ++row)
      for (int64_t owner = 0; owner < p.owners; ++owner) {
        const int64_t keys = call.visible(row, owner);
        counts[row * p.owners + owner] = static_cast<int32_t>(keys);
        most = keys > most ? keys : most;
      }
  return counts;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
