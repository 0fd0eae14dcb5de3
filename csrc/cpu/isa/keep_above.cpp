// Which tokens expert-choice heads keep by a threshold: lists that only grow. How long they are
// lies in the pages of the text's own tokens.
#include "simd.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int64_t kHeads = 16;           // of an item: their lengths stay in the cache
constexpr int64_t kFewScores = 1 << 12;  // waking threads costs more than going through so many

int64_t groups_of(const KeepAboveParams& p) {
  return (p.heads + kHeads - 1) / kHeads;
}

struct Lists {
  const KeepAboveParams& p;
  int64_t seq, head, count;
  int32_t length[kHeads];

  // The page of a position, or -1.
  int64_t page_of(int64_t position) const {
    const int64_t index = position / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    return id < p.pages ? id : -1;
  }

  // How long the lists are with the token at this position; 0 before the first.
  void load(int64_t position) {
    const int64_t id = position < 0 ? -1 : page_of(position);
    for (int64_t h = 0; h < count; ++h) length[h] = id < 0 ? 0 : p.lengths[id * p.heads + head + h];
    for (int64_t slot = 0; id >= 0 && slot <= position % p.page; ++slot) {
      const uint8_t* flags = p.flags + (id * p.page + slot) * p.heads + head;
      for (int64_t h = 0; h < count; ++h) length[h] += flags[h];
    }
  }

  void take(int64_t row) {
    const int64_t position = p.positions[row], id = page_of(position), slot = position % p.page;
    if (id >= 0 && slot == 0)
      for (int64_t h = 0; h < count; ++h) p.lengths[id * p.heads + head + h] = length[h];
    uint8_t* flags = id < 0 ? nullptr : p.flags + (id * p.page + slot) * p.heads + head;
    const float* scores = p.scores + row * p.heads + head;
    int32_t* slots = p.slots + row * p.heads + head;
    const bool always = p.first && position == 0;
    for (int64_t h = 0; h < count; ++h) {
      const bool above = always || scores[h] > p.thresholds[head + h];  // never for NaN
      const int32_t wanted = length[h] + above, most = p.after[row];
      const int32_t now = wanted < most ? wanted : most;
      slots[h] = now > length[h] ? length[h] : -1;
      if (flags != nullptr) flags[h] = now > length[h];
      length[h] = now;
    }
  }
};

void keep_item(void* context, int64_t item, int) {
  const KeepAboveParams& p = *static_cast<const KeepAboveParams*>(context);
  const int64_t seq = item / groups_of(p), head = item % groups_of(p) * kHeads;
  const int64_t begin = p.cu_rows[seq], end = p.cu_rows[seq + 1];
  if (begin == end) return;
  Lists lists{p, seq, head, p.heads - head < kHeads ? p.heads - head : kHeads, {}};
  lists.load(p.positions[begin] - 1);
  for (int64_t row = begin; row < end; ++row) lists.take(row);
}

}  // namespace

void keep_above(const KeepAboveParams& p, ThreadPool& pool) {
  const int64_t items = p.seqs * groups_of(p);
  KeepAboveParams own = p;
  if (p.rows * p.heads > kFewScores) return pool.run(items, keep_item, &own);
  for (int64_t item = 0; item < items; ++item) keep_item(&own, item, 0);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
