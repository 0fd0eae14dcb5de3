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

}  // namespace SACCADE_ISA
}  // namespace saccade
