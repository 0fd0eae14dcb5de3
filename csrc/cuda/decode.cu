// Attention of single rows over paged keys, split over the keys: over whole page tables, windows
// and sinks, and over lists of selected blocks.
//
// How many splits a row has depends on its own keys alone, and the splits are joined in their order
// whoever comes last: a row's result does not depend on the batch around it.
#include "params.cuh"

namespace saccade {

constexpr u32 kThreads = 128;
constexpr i64 kMostSplits = 64;
constexpr u32 kStages = 2;

// Which keys a row may see, as units of `tile` keys: of the listed blocks, or of two ranges (sinks
// and window; without a window the first is empty).
struct Reach {
  i64 row, position, lo, hi, begin, first_units, units;  // begin: of the second range
  const i32* list;                                       // or null
  const i32* table;
};

// Where the kernel's shared memory lies. Rows of K and V are padded by 16 bytes: threads that read
// the same channels of different keys meet no bank conflict.
template <class E>
struct Memory {
  typename E::Raw *k, *v;  // [kStages, tile, row]
  i64 k_row, v_row;
  i32* seen;          // [kStages, tile]
  float *q, *scores;  // [group, dim], [parts, group, tile]
  float *top, *sum,
      *fade;  // [group]: maximum, sum of weights, what the last tile leaves of earlier
};

SACCADE_DEVICE Reach reach_of(const DecodeParams& p, i64 row) {
  Reach r;
  r.row = row;
  const i64 sequence = sequence_of(p.cu_rows, p.seqs, row);
  r.table = p.table + sequence * p.table_row;
  r.position = p.positions[row];
  r.lo = p.lo ? most(p.lo[row], 0) : 0;
  r.hi = least(p.hi ? p.hi[row] : r.position + 1, p.table_width * p.page);
  r.list = nullptr;
  if (p.blocks) {
    const i64 list = p.list_of_row ? p.list_of_row[row] : row;
    const i64 owner = blockIdx.y * p.group / (p.heads / p.owners);
    r.units = list < 0 || list >= p.lists ? 0 : ceil_div(p.list_width * p.block, p.tile);
    if (r.units) r.list = p.blocks + (list * p.owners + owner) * p.list_width;
    r.begin = r.first_units = 0;
    return r;
  }
  const i64 sinks = p.window ? most(r.lo, least(p.sinks, r.hi)) : r.lo;
  r.begin = p.window ? most(sinks, r.position - p.window + 1) : r.lo;
  r.first_units = ceil_div(sinks - r.lo, p.tile);
  r.units = r.first_units + most<i64>(ceil_div(r.hi - r.begin, p.tile), 0);
  return r;
}

// The position of key i of a unit, or -1 where the row does not see it.
SACCADE_DEVICE i64 position_of(const DecodeParams& p, const Reach& r, i64 unit, i64 i) {
  i64 at;
  if (p.blocks) {
    const i64 flat = unit * p.tile + i, entry = flat / p.block;
    if (entry >= p.list_width || r.list[entry] < 0) return -1;
    at = static_cast<i64>(r.list[entry]) * p.block + flat % p.block;
    const bool near = !p.window || r.position - at < p.window || at < p.sinks;
    return at >= r.lo && at < r.hi && near ? at : -1;
  }
  const bool first = unit < r.first_units;
  at = (first ? r.lo + unit * p.tile : r.begin + (unit - r.first_units) * p.tile) + i;
  const i64 end = first ? least(p.sinks, r.hi) : r.hi;
  return at < end ? at : -1;
}

// Whether a unit of listed blocks is padding as a whole.
SACCADE_DEVICE bool is_padding(const DecodeParams& p, const Reach& r, i64 unit) {
  if (!p.blocks) return false;
  const i64 first = unit * p.tile / p.block, last = (unit * p.tile + p.tile - 1) / p.block;
  for (i64 entry = first; entry <= last && entry < p.list_width; ++entry)
    if (r.list[entry] >= 0) return false;
  return true;
}

// Starts the copies of a unit's keys and values. What the row does not see becomes zeros.
template <class E>
SACCADE_DEVICE void fetch(const DecodeParams& p, const Reach& r, const Memory<E>& m, i64 unit,
                          i64 stage) {
  using Raw = typename E::Raw;
  constexpr i64 kEach = 16 / sizeof(Raw);
  const i64 kv_head = blockIdx.y * p.group / (p.heads / p.kv_heads);
  const i64 lane = threadIdx.x % 8;
  for (i64 key = threadIdx.x / 8; key < p.tile; key += kThreads / 8) {
    const i64 position = position_of(p, r, unit, key);
    const i64 page =
        position < 0 ? -1 : page_at(r.table, p.table_width, p.pages, position / p.page);
    const bool seen = page >= 0;
    if (lane == 0) m.seen[stage * p.tile + key] = seen;
    const i64 token = kv_head * p.page + position % p.page;
    const Raw* k = static_cast<const Raw*>(p.k_pages);
    if (seen) k += page * p.k_page + token * p.dim;
    Raw* k_to = m.k + (stage * p.tile + key) * m.k_row;
    for (i64 c = lane * kEach; c < p.dim; c += 8 * kEach)
      copy_async(k_to + c, seen ? k + c : k, seen);
    if (!p.v_pages) continue;
    const Raw* v = static_cast<const Raw*>(p.v_pages);
    if (seen) v += page * p.v_page + token * p.v_dim;
    Raw* v_to = m.v + (stage * p.tile + key) * m.v_row;
    for (i64 c = lane * kEach; c < p.v_dim; c += 8 * kEach)
      copy_async(v_to + c, seen ? v + c : v, seen);
  }
}

// Partial products <q, k>: thread (part, key) sums the channel groups part, part + parts, ...
template <class E, int kGroup>
SACCADE_DEVICE void multiply_keys(const DecodeParams& p, const Memory<E>& m, i64 stage) {
  const i64 key = threadIdx.x % p.tile, part = threadIdx.x / p.tile, parts = kThreads / p.tile;
  const auto* k = m.k + (stage * p.tile + key) * m.k_row;
  float sums[kGroup] = {};
  for (i64 c = part * 8; c < p.dim; c += parts * 8) {
    float channels[8];
    load8<E>(k + c, channels);
    SACCADE_UNROLL
    for (int g = 0; g < kGroup; ++g) {
      if (g >= p.group) break;
      float q[8];
      load8<F32>(m.q + g * p.dim + c, q);
      SACCADE_UNROLL
      for (int e = 0; e < 8; ++e) sums[g] += channels[e] * q[e];
    }
  }
  SACCADE_UNROLL
  for (int g = 0; g < kGroup; ++g)
    if (g < p.group) m.scores[(part * p.group + g) * p.tile + key] = sums[g];
}

// Scores become weights 2^(score - maximum), one warp a head.
template <class E>
SACCADE_DEVICE void weigh(const DecodeParams& p, const Memory<E>& m, i64 stage) {
  const i64 lane = threadIdx.x % 32, parts = kThreads / p.tile;
  const float scale = static_cast<float>(p.scale), softcap = static_cast<float>(p.softcap);
  for (i64 g = threadIdx.x / 32; g < p.group; g += kThreads / 32) {
    float* scores = m.scores + g * p.tile;
    float top = -infinity(), score[2];
    SACCADE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const i64 key = lane + 32 * i;
      score[i] = -infinity();
      if (key >= p.tile || !m.seen[stage * p.tile + key]) continue;
      float sum = scores[key];
      for (i64 part = 1; part < parts; ++part) sum += scores[part * p.group * p.tile + key];
      sum *= scale;
      if (softcap > 0.0f) sum = softcap * tanhf(sum / softcap);
      score[i] = sum * kLog2e;
      top = fmaxf(top, score[i]);
    }
    const float before = m.top[g], now = fmaxf(before, warp_max(top));
    float sum = 0.0f;
    SACCADE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const i64 key = lane + 32 * i;
      const float weight = score[i] == -infinity() ? 0.0f : exp2f(score[i] - now);
      if (key < p.tile) scores[key] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    sync_warp();  // every lane has read m.top
    if (lane == 0) {
      const float fade = before == -infinity() ? 0.0f : exp2f(before - now);
      m.top[g] = now;
      m.sum[g] = m.sum[g] * fade + sum;
      m.fade[g] = fade;
    }
  }
}

// sums = sums * fade + weights V: thread (slice, column) takes 8 channels of the keys slice, slice
// + slices, ...
template <class E, int kGroup>
SACCADE_DEVICE void add_values(const DecodeParams& p, const Memory<E>& m, i64 stage,
                               float (&sums)[kGroup][8]) {
  const i64 columns = p.v_dim / 8, slices = kThreads / columns;
  const i64 slice = threadIdx.x / columns, column = threadIdx.x % columns;
  SACCADE_UNROLL
  for (int g = 0; g < kGroup; ++g) {
    const float fade = g < p.group ? m.fade[g] : 0.0f;
    SACCADE_UNROLL
    for (int e = 0; e < 8; ++e) sums[g][e] *= fade;
  }
  if (slice >= slices) return;
  const auto* v = p.v_pages ? m.v : m.k;
  const i64 row = p.v_pages ? m.v_row : m.k_row;
  for (i64 key = slice; key < p.tile; key += slices) {
    float channels[8];
    load8<E>(v + (stage * p.tile + key) * row + column * 8, channels);
    SACCADE_UNROLL
    for (int g = 0; g < kGroup; ++g) {
      if (g >= p.group) break;
      const float weight = m.scores[g * p.tile + key];
      SACCADE_UNROLL
      for (int e = 0; e < 8; ++e) sums[g][e] += weight * channels[e];
    }
  }
}

// out and lse of query head `head`: numerators of channel c from `at(c)`.
template <class E, class At>
SACCADE_DEVICE void finish(const DecodeParams& p, i64 row, i64 head, float top, float sum,
                           const At& at) {
  float whole = top;
  if (p.sink_logits) {
    const float sink = p.sink_logits[head] * kLog2e;
    whole = fmaxf(top, sink);
    const float fade = top == -infinity() ? 0.0f : exp2f(top - whole);
    sum = sum * fade + (sink == -infinity() ? 0.0f : exp2f(sink - whole));
  }
  const bool empty = top == -infinity() && sum == 0.0f;
  const float share = top == -infinity() && !(sum != sum) ? 0.0f : exp2f(top - whole) / sum;
  const i64 place = row * p.heads + head;
  for (i64 c = threadIdx.x; c < p.v_dim; c += kThreads) {
    const float value = share == 0.0f ? 0.0f : at(c) * share;
    if (p.out_f32)
      static_cast<float*>(p.out)[place * p.v_dim + c] = value;
    else
      static_cast<typename E::Raw*>(p.out)[place * p.v_dim + c] = E::put(value);
  }
  if (threadIdx.x == 0) p.lse[place] = empty ? -infinity() : (whole + log2f(sum)) * kLn2;
}

// The last block of a row joins the parts of all splits, in their order.
template <class E>
SACCADE_DEVICE void join_splits(const DecodeParams& p, i64 row, i64 splits, float* weights) {
  const i64 part = p.v_dim + 2, groups = p.heads / p.group;
  const float* partial = p.partial + (row * groups + blockIdx.y) * p.splits * p.group * part;
  for (i64 g = 0; g < p.group; ++g) {
    float top = -infinity(), sum = 0.0f;
    for (i64 s = 0; s < splits; ++s) top = fmaxf(top, partial[(s * p.group + g) * part + p.v_dim]);
    sync_block();
    for (i64 s = threadIdx.x; s < splits; s += kThreads) {
      const float own = partial[(s * p.group + g) * part + p.v_dim];
      weights[s] = own == -infinity() ? 0.0f : exp2f(own - top);
    }
    sync_block();
    for (i64 s = 0; s < splits; ++s)
      sum += partial[(s * p.group + g) * part + p.v_dim + 1] * weights[s];
    finish<E>(p, row, blockIdx.y * p.group + g, top, sum, [&](i64 c) {
      float total = 0.0f;
      for (i64 s = 0; s < splits; ++s) total += partial[(s * p.group + g) * part + c] * weights[s];
      return total;
    });
  }
}

template <class E>
SACCADE_DEVICE Memory<E> carve(const DecodeParams& p) {
  using Raw = typename E::Raw;
  Memory<E> m;
  constexpr i64 kPad = 16 / sizeof(Raw);
  m.k_row = p.dim + kPad;
  m.v_row = p.v_pages ? p.v_dim + kPad : 0;
  m.k = reinterpret_cast<Raw*>(dynamic_shared());
  m.v = m.k + kStages * p.tile * m.k_row;
  m.q = reinterpret_cast<float*>(m.v + kStages * p.tile * m.v_row);
  m.scores = m.q + p.group * p.dim;
  m.top = m.scores + kThreads * p.group;
  m.sum = m.top + p.group;
  m.fade = m.sum + p.group;
  m.seen = reinterpret_cast<i32*>(m.fade + p.group);
  return m;
}

// Sums of the slices of every head, in their order; then this split's result, or its part of it.
template <class E, int kGroup>
SACCADE_DEVICE void leave(const DecodeParams& p, const Memory<E>& m, i64 row, i64 splits,
                          const float (&sums)[kGroup][8]) {
  const i64 columns = p.v_dim / 8, slices = kThreads / columns, groups = p.heads / p.group;
  float* slice_sums = reinterpret_cast<float*>(m.k);  // [slices, v_dim]: the pages are used up
  for (i64 g = 0; g < p.group; ++g) {
    sync_block();
    if (static_cast<i64>(threadIdx.x) < columns * slices) SACCADE_UNROLL
    for (int each = 0; each < kGroup; ++each)
      if (each == g) SACCADE_UNROLL
    for (int e = 0; e < 8; ++e) slice_sums[threadIdx.x * 8 + e] = sums[each][e];
    sync_block();
    const auto total_of = [&](i64 c) {
      float total = slice_sums[c];
      for (i64 s = 1; s < slices; ++s) total += slice_sums[s * p.v_dim + c];
      return total;
    };
    if (splits == 1) {
      finish<E>(p, row, blockIdx.y * p.group + g, m.top[g], m.sum[g], total_of);
      continue;
    }
    float* part =
        p.partial +
        (((row * groups + blockIdx.y) * p.splits + blockIdx.x) * p.group + g) * (p.v_dim + 2);
    for (i64 c = threadIdx.x; c < p.v_dim; c += kThreads) part[c] = total_of(c);
    if (threadIdx.x == 0) part[p.v_dim] = m.top[g];
    if (threadIdx.x == 0) part[p.v_dim + 1] = m.sum[g];
  }
}

template <class E, int kGroup>
SACCADE_DEVICE void decode(const DecodeParams& p) {
  using Raw = typename E::Raw;
  const i64 row = blockIdx.z;
  const Reach r = reach_of(p, row);
  const i64 each = most(p.least, ceil_div(r.units, least(kMostSplits, p.splits)));
  const i64 splits = most<i64>(ceil_div(r.units, each), 1);
  if (blockIdx.x >= splits) return;
  const Memory<E> m = carve<E>(p);
  for (i64 i = threadIdx.x; i < p.group * p.dim; i += kThreads) {
    const i64 head = blockIdx.y * p.group + i / p.dim;
    m.q[i] = E::get(static_cast<const Raw*>(p.q)[row * p.q_row + head * p.q_head + i % p.dim]);
  }
  for (i64 g = threadIdx.x; g < p.group; g += kThreads) {
    m.top[g] = -infinity();
    m.sum[g] = m.fade[g] = 0.0f;
  }
  float sums[kGroup][8] = {};
  const i64 end = least(r.units, (blockIdx.x + 1) * each);
  const auto next_of = [&](i64 unit) {
    while (unit < end && is_padding(p, r, unit)) ++unit;
    return unit;
  };
  i64 unit = next_of(blockIdx.x * each), stage = 0;
  if (unit < end) fetch<E>(p, r, m, unit, stage);
  commit_copies();
  while (unit < end) {
    const i64 next = next_of(unit + 1);
    if (next < end) fetch<E>(p, r, m, next, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    sync_block();
    multiply_keys<E, kGroup>(p, m, stage);
    sync_block();
    weigh<E>(p, m, stage);
    sync_block();
    add_values<E, kGroup>(p, m, stage, sums);
    sync_block();
    unit = next;
    stage ^= 1;
  }
  sync_block();
  leave<E, kGroup>(p, m, row, splits, sums);
  if (splits == 1) return;
  i32* before = m.seen;
  const i64 place = row * (p.heads / p.group) + blockIdx.y;
  sync_block();
  if (threadIdx.x == 0) before[0] = add_acquire_release(p.arrived + place, 1);
  sync_block();
  if (before[0] != splits - 1) return;
  join_splits<E>(p, row, splits, m.scores);
  if (threadIdx.x == 0) p.arrived[place] = 0;
}

#ifdef SACCADE_ONE_NAME  // compiled at first use: the one that is used
SACCADE_KERNEL(SACCADE_ONE_NAME, DecodeParams, 128, (decode<SACCADE_ONE_TYPE, SACCADE_ONE_GROUP>))
#else
#define SACCADE_DECODE(name, E)                                                \
  SACCADE_KERNEL(saccade_decode_##name##_1, DecodeParams, 128, (decode<E, 1>)) \
  SACCADE_KERNEL(saccade_decode_##name##_2, DecodeParams, 128, (decode<E, 2>)) \
  SACCADE_KERNEL(saccade_decode_##name##_4, DecodeParams, 128, (decode<E, 4>)) \
  SACCADE_KERNEL(saccade_decode_##name##_8, DecodeParams, 128, (decode<E, 8>)) \
  SACCADE_KERNEL(saccade_decode_##name##_16, DecodeParams, 128, (decode<E, 16>))

SACCADE_DECODE(f32, F32)
SACCADE_DECODE(bf16, BF16)
SACCADE_DECODE(f16, F16)
#endif

}  // namespace saccade
