// One table of kernels per instruction set; every entry is compiled from the same source.
#pragma once
#include "saccade/params.h"
#include "saccade/threads.h"

namespace saccade {

struct KernelTable {
  void (*attend)(const AttendParams&, ThreadPool&);
  void (*attend_turns)(const AttendTurnsParams&, ThreadPool&);
  void (*linear)(const LinearParams&, ThreadPool&);
  void (*rms_norm)(const RmsNormParams&, ThreadPool&);
  void (*rope)(const RopeParams&, ThreadPool&);
  void (*silu_mul)(const SiluMulParams&, ThreadPool&);
  void (*sigmoid_mul)(const SigmoidMulParams&, ThreadPool&);
  void (*key_conv)(const KeyConvParams&, ThreadPool&);
  void (*gated_delta)(const GatedDeltaParams&, ThreadPool&);
  void (*merge)(const MergeParams&, ThreadPool&);
  void (*correct)(const CorrectParams&, ThreadPool&);
  void (*write_pages)(const WritePagesParams&, ThreadPool&);
  void (*block_means)(const BlockMeansParams&, ThreadPool&);
  void (*window_means)(const WindowMeansParams&, ThreadPool&);
  void (*select_blocks)(const SelectBlocksParams&, ThreadPool&);
  void (*compressed)(const CompressedParams&, ThreadPool&);
  void (*key_bounds)(const KeyBoundsParams&, ThreadPool&);
  void (*select_bounded)(const SelectBoundedParams&, ThreadPool&);
  void (*select_keys)(const SelectKeysParams&, ThreadPool&);
  void (*select_pooled)(const SelectPooledParams&, ThreadPool&);
  void (*gated_sum)(const GatedSumParams&, ThreadPool&);
  void (*key_moments)(const KeyMomentsParams&, ThreadPool&);
  void (*far_mass)(const FarMassParams&, ThreadPool&);
  void (*keep_above)(const KeepAboveParams&, ThreadPool&);
  void (*keep_best)(const KeepBestParams&, ThreadPool&);
  void (*keep_top)(const KeepTopParams&, ThreadPool&);
  void (*scale_first)(const ScaleFirstParams&, ThreadPool&);
  double (*stream_read)(const void* data, int64_t bytes, ThreadPool&);
};

// The table of an instruction set, or null with the reason when it was not compiled or cannot run
// here.
const KernelTable* kernel_table(const char* isa, const char** reason);

}  // namespace saccade
