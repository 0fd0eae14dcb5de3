// Which queries chose each block: histogram, exclusive scans, scatter in a fixed order, and tiles.
//
// Bins are (sequence, block, KV head), the last one fastest. A chunk of queries marks its choices
// of a block in a bitmap: the count and every query's rank follow from the bits, so that no order
// between threads matters. A bin's entries ascend by row and head.
#include "params.cuh"

namespace saccade {

constexpr i64 kQueries = 256;  // of a chunk
constexpr i64 kWindow = 512;   // blocks whose bitmaps lie in shared memory
constexpr i64 kWords = kQueries / 32;

// Queries (row, query head of the KV head's group) of a chunk, of which those of one sequence
// count.
struct Chunk {
  i64 first, queries, group, sequence;
};

// Calls `visit(chunk)` for each sequence that has rows in this block's chunk. Sequences ascend.
template <class Visit>
SACCADE_DEVICE void for_each_sequence(const IndexParams& p, const Visit& visit) {
  Chunk chunk;
  chunk.group = p.owners / p.kv_heads;
  const i64 rows = kQueries / chunk.group;
  chunk.first = blockIdx.x * rows;
  const i64 count = least(rows, p.rows - chunk.first);
  chunk.queries = count * chunk.group;
  const i64 last = least(p.sequence[chunk.first + count - 1], p.sequences - 1);
  for (chunk.sequence = most<i64>(p.sequence[chunk.first], 0); chunk.sequence <= last;
       ++chunk.sequence) {
    visit(chunk);
    sync_block();
  }
}

// Calls `visit(block of the window, query, entry)` for every choice in this block's window.
template <class Visit>
SACCADE_DEVICE void for_each_choice(const IndexParams& p, const Chunk& chunk, const Visit& visit) {
  const i64 low = blockIdx.z * kWindow, high = least(low + kWindow, p.blocks);
  for (i64 i = threadIdx.x; i < chunk.queries * p.list_width; i += blockDim.x) {
    const i64 query = i / p.list_width, place = i % p.list_width;
    const i64 row = chunk.first + query / chunk.group;
    const i64 list = row * p.owners + blockIdx.y * chunk.group + query % chunk.group;
    const i64 id = p.ids[list * p.list_width + place];
    if (id < low || id >= high || id >= p.own[row] || p.sequence[row] != chunk.sequence) continue;
    if (place && p.ids[list * p.list_width + place - 1] == id) continue;  // twice in the list
    visit(id - low, query, list * p.list_width + place);
  }
}

SACCADE_DEVICE void mark(const IndexParams& p, const Chunk& chunk, u32* bits) {
  for (i64 i = threadIdx.x; i < kWindow * kWords; i += blockDim.x) bits[i] = 0;
  sync_block();
  for_each_choice(p, chunk, [&](i64 block, i64 query, i64) {
    atomic_or(bits + block * kWords + query / 32, 1u << query % 32);
  });
  sync_block();
}

SACCADE_DEVICE i64 bin_of(const IndexParams& p, const Chunk& chunk, i64 block) {
  return (chunk.sequence * p.blocks + blockIdx.z * kWindow + block) * p.kv_heads + blockIdx.y;
}

// Grid: (chunks, Hkv, windows), 128 threads. `before` is zero where no chunk writes.
SACCADE_DEVICE void count_entries(const IndexParams& p) {
  u32* bits = reinterpret_cast<u32*>(dynamic_shared());
  for_each_sequence(p, [&](const Chunk& chunk) {
    mark(p, chunk, bits);
    const i64 blocks = least(kWindow, p.blocks - blockIdx.z * kWindow);
    for (i64 block = threadIdx.x; block < blocks; block += blockDim.x) {
      u32 count = 0;
      for (i64 word = 0; word < kWords; ++word) count += bits_set(bits[block * kWords + word]);
      p.before[bin_of(p, chunk, block) * p.chunks + blockIdx.x] = static_cast<i32>(count);
    }
  });
}

// Inclusive sum over the lanes of a warp.
template <class T>
SACCADE_DEVICE T scan_warp(T x) {
  const u32 lane = threadIdx.x % 32;
  for (u32 step = 1; step < 32; step *= 2) {
    const T below = from_lane(x, lane < step ? lane : lane - step);
    if (lane >= step) x += below;
  }
  return x;
}

// Counts of a bin's chunks become sums over the chunks before; `starts` gets the bin's total. One
// warp a bin; grid: (ceil(bins / 4)), 128 threads.
SACCADE_DEVICE void scan_chunks(const IndexParams& p) {
  const i64 bin = blockIdx.x * 4 + threadIdx.x / 32;
  if (bin >= p.bins) return;
  i32* counts = p.before + bin * p.chunks;
  i32 total = 0;
  for (i64 base = 0; base < p.chunks; base += 32) {
    const i64 at = base + threadIdx.x % 32;
    const i32 count = at < p.chunks ? counts[at] : 0;
    const i32 sum = scan_warp(count);
    if (at < p.chunks) counts[at] = total + sum - count;
    total += from_lane(sum, 31);
  }
  if (threadIdx.x % 32 == 0) p.starts[bin] = total;
}

// Totals of the bins become starts of entries and of tiles. One block of 512 threads.
SACCADE_DEVICE void scan_bins(const IndexParams& p) {
  constexpr i64 kEach = 4;
  u64* sums = reinterpret_cast<u64*>(dynamic_shared());  // [16 warps]
  u64 total = 0;                                         // entries, and tiles in the upper half
  for (i64 base = 0; base < p.bins; base += kEach * blockDim.x) {
    const i64 first = base + threadIdx.x * kEach;
    u64 own = 0;
    for (i64 i = 0; i < kEach && first + i < p.bins; ++i) {
      const u64 count = p.starts[first + i];
      own += count | static_cast<u64>(ceil_div(count, p.tile)) << 32;
    }
    const u64 sum = scan_warp(own);
    if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = sum;
    sync_block();
    u64 start = total + sum - own;
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) {
      if (warp < threadIdx.x / 32) start += sums[warp];
      total += sums[warp];
    }
    for (i64 i = 0; i < kEach && first + i < p.bins; ++i) {
      const u64 count = p.starts[first + i];
      p.starts[first + i] = static_cast<i32>(start);
      p.tile_starts[first + i] = static_cast<i32>(start >> 32);
      start += count | static_cast<u64>(ceil_div(count, p.tile)) << 32;
    }
    sync_block();
  }
  if (threadIdx.x == 0) p.starts[p.bins] = static_cast<i32>(total);
  if (threadIdx.x == 0) p.tile_starts[p.bins] = static_cast<i32>(total >> 32);
}

// Grid as of `count_entries`.
SACCADE_DEVICE void scatter_entries(const IndexParams& p) {
  u32* bits = reinterpret_cast<u32*>(dynamic_shared());
  for_each_sequence(p, [&](const Chunk& chunk) {
    mark(p, chunk, bits);
    for_each_choice(p, chunk, [&](i64 block, i64 query, i64 entry) {
      const u32* words = bits + block * kWords;
      u32 rank = bits_set(words[query / 32] & ((1u << query % 32) - 1));
      for (i64 word = 0; word < query / 32; ++word) rank += bits_set(words[word]);
      const i64 bin = bin_of(p, chunk, block);
      p.order[p.starts[bin] + p.before[bin * p.chunks + blockIdx.x] + rank] =
          static_cast<i32>(entry);
    });
  });
}

// Grid: (ceil(max(bins, most_tiles) / 128)), 128 threads. Tiles behind the last one are empty.
SACCADE_DEVICE void list_tiles(const IndexParams& p) {
  const i64 index = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < p.bins) {
    const i64 start = p.starts[index], end = p.starts[index + 1], first = p.tile_starts[index];
    for (i64 i = 0; start + i * p.tile < end && first + i < p.most_tiles; ++i) {
      p.group[first + i] = static_cast<i32>(index);
      p.first[first + i] = static_cast<i32>(start + i * p.tile);
      p.count[first + i] = static_cast<i32>(least(p.tile, end - start - i * p.tile));
    }
  }
  if (index >= p.tile_starts[p.bins] && index < p.most_tiles) {
    p.group[index] = static_cast<i32>(p.bins - 1);
    p.first[index] = p.count[index] = 0;
  }
}

SACCADE_KERNEL(saccade_index_count, IndexParams, 128, count_entries)
SACCADE_KERNEL(saccade_index_scan_chunks, IndexParams, 128, scan_chunks)
SACCADE_KERNEL(saccade_index_scan_bins, IndexParams, 512, scan_bins)
SACCADE_KERNEL(saccade_index_scatter, IndexParams, 128, scatter_entries)
SACCADE_KERNEL(saccade_index_tiles, IndexParams, 128, list_tiles)

}  // namespace saccade
