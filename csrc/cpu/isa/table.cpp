// The kernels of one instruction set. One that adds products of bf16 alone takes all others from
// the set before it, SACCADE_OLDER, which computes them as well: they are compiled once.
#include "amx.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {

#if defined(SACCADE_OLDER)

namespace {

// Whether this instruction set computes the call better than the one before it.
bool gains(DType dtype, int64_t dim, int64_t v_dim, int64_t page) {
  if (dtype != DType::kBF16) return false;
  return !kTiles || (dim % 32 == 0 && v_dim % 16 == 0 && page % 32 == 0);
}

bool gains(const AttendParams& p) {
  return gains(p.dtype, p.dim, p.v_dim, p.page);
}

bool gains(const AttendTurnsParams& p) {
  return gains(p.attend);
}

bool gains(const CompressedParams& p) {
  return gains(p.dtype, p.dim, p.v_dim, 0);
}

bool gains(const LinearParams& p) {
  return gains(p.dtype, p.in, 0, 0);
}

bool gains(const SelectBlocksParams& p) {
  return gains(p.dtype, p.dim, 0, 0);
}

bool gains(const SelectKeysParams& p) {
  return gains(p.dtype, p.dim, 0, p.page);
}

template <class Params>
bool gains(const Params& p) {
  return p.dtype == DType::kBF16;
}

template <class Params>
using Kernel = void (*)(const Params&, ThreadPool&);

// The kernel of this instruction set for the calls that gain by it, else that of the older one.
template <class Params, Kernel<Params> kNew, Kernel<Params> KernelTable::* kEntry>
void better(const Params& p, ThreadPool& pool) {
  if (gains(p)) return kNew(p, pool);
  (SACCADE_OLDER::table().*kEntry)(p, pool);
}

KernelTable improved(KernelTable all) {
  all.attend = better<AttendParams, attend, &KernelTable::attend>;
  all.attend_turns = better<AttendTurnsParams, attend_turns, &KernelTable::attend_turns>;
  all.linear = better<LinearParams, linear, &KernelTable::linear>;
  all.compressed = better<CompressedParams, compressed, &KernelTable::compressed>;
  all.select_blocks = better<SelectBlocksParams, select_blocks, &KernelTable::select_blocks>;
  all.select_keys = better<SelectKeysParams, select_keys, &KernelTable::select_keys>;
#if !SACCADE_AMX
  all.select_bounded = better<SelectBoundedParams, select_bounded, &KernelTable::select_bounded>;
  all.select_pooled = better<SelectPooledParams, select_pooled, &KernelTable::select_pooled>;
#endif
  return all;
}

}  // namespace

const KernelTable& table() {
  static const KernelTable entries = improved(SACCADE_OLDER::table());
  return entries;
}

#else

const KernelTable& table() {
  static const KernelTable entries{
      &attend,      &attend_turns,  &linear,        &rms_norm,    &rope,       &silu_mul,
      &sigmoid_mul, &key_conv,      &gated_delta,   &merge,       &correct,    &write_pages,
      &block_means, &window_means,  &select_blocks, &compressed,  &key_bounds, &select_bounded,
      &select_keys, &select_pooled, &gated_sum,     &key_moments, &far_mass,   &keep_above,
      &keep_best,   &keep_top,      &scale_first,   &stream_read};
  return entries;
}

#endif

}  // namespace SACCADE_ISA
}  // namespace saccade
