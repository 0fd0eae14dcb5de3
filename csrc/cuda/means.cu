// Means of complete blocks and windows of keys (or values).
#include "params.cuh"

namespace saccade {

constexpr u32 kStripes = 8, kVector = 4;

template <class Raw>
struct alignas(kVector * sizeof(Raw)) Group {
  Raw part[kVector];
};

SACCADE_DEVICE void keep(float* sums, u32 stripe, u32 lane, const float (&sum)[kVector]) {
  SACCADE_UNROLL
  for (u32 c = 0; c < kVector; ++c) sums[(stripe * 32 + lane) * kVector + c] = sum[c];
}

// Token t of a block is added to stripe t % 8, in order; the stripes are added in order, the mean
// is rounded once. So it depends on the block's keys alone.
template <class E>
SACCADE_DEVICE void means(const MeansParams& p) {
  using Raw = typename E::Raw;
  const u32 lane = threadIdx.x % 32, stripe = threadIdx.x / 32;
  const i64 index = blockIdx.x, head = blockIdx.y, home = p.home[index];
  if (home < 0 || home >= p.homes) return;
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // [kStripes, 32 * kVector]
  Raw* to = static_cast<Raw*>(p.means) + (home * p.kv_heads + head) * p.width + p.offset;
  for (i64 base = 0; base < p.dim; base += 32 * kVector) {
    const i64 channel = base + lane * kVector;
    float sum[kVector] = {};
    i64 done = 0, offset = p.begin[index];
    for (i64 i = 0; done < p.block && i < p.spread; ++i) {
      const i64 page = most<i64>(least(p.members[index * p.spread + i], p.pages - 1), 0);
      const i64 tokens = least(p.page - offset, p.block - done);
      const Raw* from = static_cast<const Raw*>(p.source) + page * p.source_page +
                        (head * p.page + offset) * p.dim + channel;
      const i64 first = (stripe - done) & (kStripes - 1);
      if (channel < p.dim) {
        SACCADE_UNROLL_4
        for (i64 token = first; token < tokens; token += kStripes) {
          const auto raw = *reinterpret_cast<const Group<Raw>*>(from + token * p.dim);
          SACCADE_UNROLL
          for (u32 c = 0; c < kVector; ++c) sum[c] += E::get(raw.part[c]);
        }
      }
      done += tokens;
      offset = 0;
    }
    keep(sums, stripe, lane, sum);
    sync_block();
    for (i64 c = threadIdx.x; c < least<i64>(32 * kVector, p.dim - base); c += blockDim.x) {
      float total = sums[c];
      for (u32 s = 1; s < kStripes; ++s) total += sums[s * 32 * kVector + c];
      to[base + c] = E::put(total / static_cast<float>(p.block));
    }
    sync_block();
  }
}

SACCADE_KERNEL(saccade_means_f32, MeansParams, 256, means<F32>)
SACCADE_KERNEL(saccade_means_bf16, MeansParams, 256, means<BF16>)
SACCADE_KERNEL(saccade_means_f16, MeansParams, 256, means<F16>)

}  // namespace saccade
