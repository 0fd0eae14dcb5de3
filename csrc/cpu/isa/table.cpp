#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {

const KernelTable& table() {
  static const KernelTable entries{
      &attend,        &attend_turns,  &linear,      &rms_norm,   &rope,           &silu_mul,
      &sigmoid_mul,   &key_conv,      &gated_delta, &merge,      &write_pages,    &block_means,
      &window_means,  &select_blocks, &compressed,  &key_bounds, &select_bounded, &select_keys,
      &select_pooled, &gated_sum,     &key_moments, &far_mass,   &keep_above,     &keep_best,
      &keep_top,      &scale_first,   &stream_read};
  return entries;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
