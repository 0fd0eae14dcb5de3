// The kernels that each instruction set provides; table.cpp gathers them.
#pragma once
#include "saccade/kernel_table.h"

namespace saccade {

#if defined(SACCADE_OLDER)
namespace SACCADE_OLDER {
const KernelTable& table();
}
#endif

namespace SACCADE_ISA {

void attend(const AttendParams&, ThreadPool&);
void attend_turns(const AttendTurnsParams&, ThreadPool&);
void linear(const LinearParams&, ThreadPool&);
void rms_norm(const RmsNormParams&, ThreadPool&);
void rope(const RopeParams&, ThreadPool&);
void silu_mul(const SiluMulParams&, ThreadPool&);
void sigmoid_mul(const SigmoidMulParams&, ThreadPool&);
void key_conv(const KeyConvParams&, ThreadPool&);
void gated_delta(const GatedDeltaParams&, ThreadPool&);
void merge(const MergeParams&, ThreadPool&);
void correct(const CorrectParams&, ThreadPool&);
void write_pages(const WritePagesParams&, ThreadPool&);
void block_means(const BlockMeansParams&, ThreadPool&);
void window_means(const WindowMeansParams&, ThreadPool&);
void select_blocks(const SelectBlocksParams&, ThreadPool&);
void compressed(const CompressedParams&, ThreadPool&);
void key_bounds(const KeyBoundsParams&, ThreadPool&);
void select_bounded(const SelectBoundedParams&, ThreadPool&);
void select_keys(const SelectKeysParams&, ThreadPool&);
void select_pooled(const SelectPooledParams&, ThreadPool&);
void gated_sum(const GatedSumParams&, ThreadPool&);
void key_moments(const KeyMomentsParams&, ThreadPool&);
void far_mass(const FarMassParams&, ThreadPool&);
void keep_above(const KeepAboveParams&, ThreadPool&);
void keep_best(const KeepBestParams&, ThreadPool&);
void keep_top(const KeepTopParams&, ThreadPool&);
void scale_first(const ScaleFirstParams&, ThreadPool&);
double stream_read(const void* data, int64_t bytes, ThreadPool&);
const KernelTable& table();

}  // namespace SACCADE_ISA
}  // namespace saccade
