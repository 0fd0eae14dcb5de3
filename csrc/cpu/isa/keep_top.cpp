// Which tokens expert-choice heads keep of whole texts: the best ones, by a count of the scores'
// bits from the highest byte down, so that nothing is sorted.
#include "simd.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

// One head of one text.
struct Column {
  const KeepTopParams& p;
  int64_t begin, rows, head;

  // Ascending as the scores are; NaN below all of them, the protected first token above.
  uint32_t key(int64_t i) const {
    if (p.first && i == 0) return UINT32_MAX;
    const float given = p.scores[(begin + i) * p.heads + head];
    return ascending_bits(given != given ? -1.0f : given == 0.0f ? 0.0f : given);
  }

  // The `left`-th greatest key (left >= 1); afterwards `left` is how many that are equal to it
  // belong to as many of the greatest.
  uint32_t find(int64_t& left) const {
    uint32_t known = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      int64_t counts[256] = {};
      const uint64_t mask = ~0ull << (shift + 8);
      for (int64_t i = 0; i < rows; ++i) {
        const uint32_t own = key(i);
        if (((own ^ known) & mask) == 0) ++counts[own >> shift & 255];
      }
      uint32_t byte = 255;
      for (; byte > 0 && counts[byte] < left; --byte) left -= counts[byte];
      known |= byte << shift;
    }
    return known;
  }

  // Of equal scores the later tokens are better.
  void choose() const {
    const int64_t most = p.after[begin + rows - 1];
    int64_t equal = most < rows ? most : rows, later = 0;
    const uint32_t least = equal > 0 ? find(equal) : 0;
    for (int64_t i = 0; i < rows; ++i) later += key(i) == least;
    int32_t length = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const uint32_t own = key(i);
      const bool kept = own > least || (own == least && later <= equal);
      later -= own == least;
      p.slots[(begin + i) * p.heads + head] = kept && most > 0 ? length++ : -1;
    }
  }
};

void keep_column(void* context, int64_t item, int) {
  const KeepTopParams& p = *static_cast<const KeepTopParams*>(context);
  const int64_t seq = item / p.heads, begin = p.cu_rows[seq];
  const Column column{p, begin, p.cu_rows[seq + 1] - begin, item % p.heads};
  if (column.rows > 0) column.choose();
}

}  // namespace

void keep_top(const KeepTopParams& p, ThreadPool& pool) {
  KeepTopParams own = p;
  pool.run(p.seqs * p.heads, keep_column, &own);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
