// Small launches of every kernel whose threads share memory, for ThreadSanitizer: every CUDA thread
// is a thread of the system. What they compute is checked elsewhere; here only that nothing is
// unwritten.
#include <stdio.h>

#include <vector>

#include "decode.cu"
#include "index.cu"
#include "means.cu"
#include "select.cu"
#include "write.cu"

using namespace saccade;

namespace {

constexpr i64 kPage = 16, kPages = 8, kHeads = 4, kKvHeads = 2, kDim = 16, kRows = 3;

// Numbers between -1 and 1.
std::vector<float> numbers(size_t count) {
  std::vector<float> made(count);
  u32 state = 1;
  for (float& each : made) {
    state = state * 1664525u + 1013904223u;
    each = static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
  }
  return made;
}

int unwritten(const char* what, const std::vector<float>& values) {
  for (float each : values)
    if (!(each == each)) {
      printf("%s: NaN\n", what);
      return 1;
    }
  return 0;
}

// Two sequences of 1 and 2 rows; each kernel that needs them has these.
const std::vector<i32> cu_rows{0, 1, 3};
const std::vector<i64> positions{40, 98, 99};
const std::vector<i32> table{5, 1, 2, -1, -1, -1, -1, 0, 3, 4, 6, 7, 1, 2};
constexpr i64 kWidth = 7;

int decode_race() {
  const auto q = numbers(kRows * kHeads * kDim);
  const auto k = numbers(kPages * kKvHeads * kPage * kDim), v = k;
  std::vector<float> out(q.size(), NAN), lse(kRows * kHeads, NAN);
  std::vector<float> partial(kRows * kKvHeads * 4 * 2 * (kDim + 2), NAN);
  std::vector<i32> arrived(kRows * kKvHeads);
  DecodeParams p{};
  p.rows = kRows, p.seqs = 2, p.heads = kHeads, p.kv_heads = kKvHeads, p.dim = p.v_dim = kDim;
  p.page = kPage, p.pages = kPages, p.q = q.data(), p.q_row = kHeads * kDim, p.q_head = kDim;
  p.k_pages = k.data(), p.v_pages = v.data(), p.k_page = p.v_page = kKvHeads * kPage * kDim;
  p.table = table.data(), p.table_row = p.table_width = kWidth, p.cu_rows = cu_rows.data();
  p.positions = positions.data(), p.owners = p.block = 1, p.out = out.data(), p.lse = lse.data();
  p.group = 2, p.splits = 4, p.tile = 16, p.least = 2, p.partial = partial.data();
  p.arrived = arrived.data(), p.scale = 0.25;
  saccade_decode_f32_2(&p, 4, kKvHeads, kRows, 128, 16384);
  return unwritten("decode", out) + unwritten("decode", lse);
}

int select_race() {
  const auto q = numbers(kRows * kHeads * kDim), means = numbers(kPages * kKvHeads * kDim);
  std::vector<i32> ids(kRows * kHeads * 3, -7), arrived(3 * kKvHeads);
  std::vector<u64> partial(3 * kKvHeads * 2 * 32 * 32);
  SelectParams p{};
  p.rows = kRows, p.seqs = 2, p.heads = kHeads, p.kv_heads = kKvHeads, p.dim = kDim;
  p.page = p.block = kPage, p.pages = kPages, p.slots = 1, p.topk = 2;
  p.q = q.data(), p.q_row = kHeads * kDim, p.q_head = kDim, p.means = means.data();
  p.table = table.data(), p.table_row = p.table_width = kWidth, p.cu_rows = cu_rows.data();
  p.positions = positions.data(), p.ids = ids.data(), p.tokens = 16, p.splits = 2, p.listed = 32;
  p.partial = partial.data(), p.arrived = arrived.data();
  saccade_select_f32(&p, 2, kKvHeads, 2, 128, 40960);
  for (i32 id : ids)
    if (id == -7) return 1;
  return 0;
}

int index_race() {
  const std::vector<i32> ids{0, 1, 0, 2, 1, 4, 0, 5, 2, 3, 0, 4};  // [rows, Hkv, 2]
  const std::vector<i64> sequence{0, 1, 1}, own{2, 6, 6};
  constexpr i64 kBins = 2 * kWidth * kKvHeads, kMost = 12;
  std::vector<i32> before(kBins), starts(kBins + 1), tile_starts(kBins + 1), order(12);
  std::vector<i32> group(kMost), first(kMost), count(kMost, -7);
  IndexParams p{};
  p.rows = kRows, p.sequences = 2, p.owners = p.kv_heads = kKvHeads, p.list_width = 2;
  p.blocks = kWidth, p.ids = ids.data(), p.sequence = sequence.data(), p.own = own.data();
  p.chunks = 1, p.bins = kBins, p.before = before.data(), p.starts = starts.data();
  p.tile_starts = tile_starts.data(), p.order = order.data(), p.group = group.data();
  p.first = first.data(), p.count = count.data(), p.most_tiles = kMost, p.tile = 2;
  saccade_index_count(&p, 1, kKvHeads, 1, 128, 16384);
  saccade_index_scan_chunks(&p, (kBins + 3) / 4, 1, 1, 128, 0);
  saccade_index_scan_bins(&p, 1, 1, 1, 512, 128);
  saccade_index_scatter(&p, 1, kKvHeads, 1, 128, 16384);
  saccade_index_tiles(&p, 1, 1, 1, 128, 0);
  for (i32 each : count)
    if (each == -7) return 1;
  return 0;
}

int means_race() {
  const auto k = numbers(kPages * kKvHeads * kPage * kDim);
  std::vector<float> means(kPages * kKvHeads * kDim);
  const std::vector<i64> members{5, 1, 4, 6}, home{1, 6}, begin{0, 0};
  MeansParams p{};
  p.count = 2, p.kv_heads = kKvHeads, p.dim = p.width = kDim, p.page = kPage, p.pages = kPages;
  p.block = 2 * kPage, p.spread = 2, p.source = k.data(), p.source_page = kKvHeads * kPage * kDim;
  p.members = members.data(), p.home = home.data(), p.begin = begin.data(), p.homes = kPages;
  p.means = means.data();
  saccade_means_f32(&p, 2, kKvHeads, 1, 256, 4096);
  return unwritten("means", means);
}

int write_race() {
  const auto k = numbers(kRows * kKvHeads * kDim), v = k;
  std::vector<float> k_pages(kPages * kKvHeads * kPage * kDim), v_pages(k_pages.size(), NAN);
  const std::vector<i64> slots{3 * kPage, 3 * kPage + 1, 3 * kPage + 2};
  WriteParams p{};
  p.rows = kRows, p.kv_heads = kKvHeads, p.page = kPage, p.pages = kPages;
  p.k_bytes = p.v_bytes = p.k_head = p.v_head = kDim * 4, p.k_row = p.v_row = kKvHeads * kDim * 4;
  p.k = reinterpret_cast<const u8*>(k.data()), p.v = reinterpret_cast<const u8*>(v.data());
  p.slots = slots.data(), p.k_pages = reinterpret_cast<u8*>(k_pages.data());
  p.v_pages = reinterpret_cast<u8*>(v_pages.data());
  p.k_page = p.v_page = kKvHeads * kPage * kDim * 4, p.clear = 1;
  saccade_write_16(&p, kRows, 1, 1, 128, 32);
  const auto begin = v_pages.begin() + 3 * kKvHeads * kPage * kDim;
  return unwritten("write", std::vector<float>(begin, begin + kKvHeads * kPage * kDim));
}

}  // namespace

// Runs all, or those of one source (`races decode`).
int main(int count, char** words) {
  const struct {
    const char* unit;
    int (*run)();
  } all[] = {{"decode", decode_race},
             {"select", select_race},
             {"index", index_race},
             {"means", means_race},
             {"write", write_race}};
  int failed = 0;
  for (const auto& each : all)
    if (count < 2 || !strcmp(each.unit, words[1])) failed += each.run();
  return failed;
}
