// New tokens into pages of K and V.
#include "params.cuh"

namespace saccade {

// One block a row. The page of V whose first token is written is cleared of what a former owner
// left, but for what other blocks write in the same call: those tokens are marked first, so that no
// order between blocks matters.
template <class Unit>
SACCADE_DEVICE void write_pages(const WriteParams& p) {
  const i64 slot = p.slots[blockIdx.x];
  if (slot < 0 || slot >= p.pages * p.page) return;
  const i64 page = slot / p.page, offset = slot % p.page;
  const i64 k_units = p.k_bytes / sizeof(Unit), v_units = p.v_bytes / sizeof(Unit);
  const u8* k = p.k + blockIdx.x * p.k_row;
  const u8* v = p.v + blockIdx.x * p.v_row;
  for (i64 i = threadIdx.x; i < p.kv_heads * (k_units + v_units); i += blockDim.x) {
    const bool value = i >= p.kv_heads * k_units;
    const i64 units = value ? v_units : k_units, at = value ? i - p.kv_heads * k_units : i;
    const i64 head = at / units, unit = at % units;
    const u8* from = value ? v + head * p.v_head : k + head * p.k_head;
    u8* to = value ? p.v_pages + page * p.v_page : p.k_pages + page * p.k_page;
    reinterpret_cast<Unit*>(to)[(head * p.page + offset) * units + unit] =
        reinterpret_cast<const Unit*>(from)[unit];
  }
  if (!p.clear || offset != 0) return;

  u32* written = reinterpret_cast<u32*>(dynamic_shared());  // 256 bits
  if (threadIdx.x < 8) written[threadIdx.x] = 0;
  sync_block();
  for (i64 row = threadIdx.x; row < p.rows; row += blockDim.x) {
    const i64 token = p.slots[row] - slot;
    if (token >= 0 && token < p.page) atomic_or(written + token / 32, 1u << token % 32);
  }
  sync_block();
  u8* to = p.v_pages + page * p.v_page;
  for (i64 i = threadIdx.x; i < p.kv_heads * p.page * v_units; i += blockDim.x) {
    const i64 token = i / v_units % p.page;
    if (!(written[token / 32] >> token % 32 & 1)) reinterpret_cast<Unit*>(to)[i] = Unit{};
  }
}

SACCADE_KERNEL(saccade_write_16, WriteParams, 128, write_pages<Bytes16>)
SACCADE_KERNEL(saccade_write_2, WriteParams, 128, write_pages<u16>)

}  // namespace saccade
