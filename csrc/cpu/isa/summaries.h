// What the kernels that write summaries of blocks have in common.
#pragma once
#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

// Whether a complete block of keys, or a window, has a place and all its pages: what has not is
// left out.
template <class Params>
SACCADE_INLINE bool is_there(const Params& p, int64_t index, int64_t spread) {
  if (p.home[index] < 0 || p.home[index] >= p.pages * p.slots) return false;
  for (int64_t i = index * spread; i < (index + 1) * spread; ++i)
    if (p.members[i] < 0 || p.members[i] >= p.pages) return false;
  return true;
}

// The same where a block may begin anywhere in the first of its pages.
template <class Params>
SACCADE_INLINE bool is_there(const Params& p, int64_t index) {
  return is_there(p, index, p.spread) && p.begin[index] >= 0 && p.begin[index] < p.page;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
