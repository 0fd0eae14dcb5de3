// The best blocks so far, by a rank that no two blocks share: score, then block index.
#pragma once
#include "device.cuh"

namespace saccade {

// 0 for NaN and -infinity, which never choose; else larger for a higher score, and among equal
// scores for a later block.
SACCADE_DEVICE u64 rank_of(float score, u32 block) {
  if (!(score > -infinity())) return 0;
  const u32 bits = bits_of(score + 0.0f);  // -0 becomes 0
  const u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<u64>(ordered) << 32 | block;
}

SACCADE_DEVICE u32 block_of(u64 rank) {
  return static_cast<u32>(rank);
}

// Puts `rank` into a list in shared memory (descending; `listed`, a multiple of 32); the last one
// falls out. All lanes of a warp bring the same rank.
SACCADE_DEVICE void insert(u64* list, i64 listed, u64 rank) {
  const u32 lane = threadIdx.x % 32;
  for (i64 base = 0; base < listed && rank; base += 32) {
    const u64 mine = list[base + lane];
    const u32 above = bits_set(ballot(mine > rank));
    if (above == 32) continue;
    const u64 before = from_lane(mine, (lane + 31) % 32), last = from_lane(mine, 31);
    list[base + lane] = lane < above ? mine : lane == above ? rank : before;
    rank = last;
  }
  sync_warp();
}

// Each lane of a warp offers a rank (0: none) to the list, of which the first `topk` matter.
SACCADE_DEVICE void offer(u64* list, i64 listed, i64 topk, u64 rank) {
  for (u32 better = ballot(rank > list[topk - 1]); better;) {
    const u32 lane = 31 - count_leading_zeros(better);
    const u64 chosen = from_lane(rank, lane);
    insert(list, listed, chosen);
    if (threadIdx.x % 32 == lane) rank = 0;
    better = ballot(rank > list[topk - 1]);
  }
}

}  // namespace saccade
