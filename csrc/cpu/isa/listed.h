// Attention over lists of blocks so short that a pass over the pages would hold mostly keys that a
// row does not see. Far from the beginning of a text a token's listed keys are gathered instead,
// side by side, and are to the rest of attention a text of their own: key i is the i-th that the
// token's heads see. What a row sums, and in which order, depends on its position and list alone.
#pragma once
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {

// Rows that are no farther than so many times the keys of a list read the pages as they are: many
// rows then share what they read, which up to here is faster than to gather for each.
constexpr int64_t kNear = 8;

// Whether lists of short blocks are all that hides keys from rows, and serve whole groups of heads.
SACCADE_INLINE bool has_short_lists(const AttendParams& p) {
  return p.blocks != nullptr && p.block < 16 && p.owners == p.kv_heads && p.lo == nullptr &&
         p.hi == nullptr && p.window == 0 && p.v_pages != nullptr && p.page % kLeastBlock == 0;
}

// [S]: the first row of every sequence that is far from its beginning. The caller frees it.
inline int32_t* split_rows(const AttendParams& p) {
  int32_t* splits = static_cast<int32_t*>(malloc(static_cast<size_t>(p.seqs) * sizeof(int32_t)));
  for (int64_t s = 0; s < p.seqs; ++s) {
    splits[s] = p.cu_rows[s];
    while (splits[s] < p.cu_rows[s + 1] && p.positions[splits[s]] < kNear * p.list_width * p.block)
      ++splits[s];
  }
  return splits;
}

// A call as one over gathered keys, as many as `hi` says, a pass of them under one page.
struct ListedCall : AttendParams {
  const AttendParams* of;

  explicit ListedCall(const AttendParams& call) : AttendParams(call), of(&call) {}

  const int32_t* list(int64_t row, int64_t kv_head) const {
    const int64_t index = of->list_of_row != nullptr ? of->list_of_row[row] : row;
    return of->blocks + (index * of->owners + kv_head) * of->list_width;
  }

  // Listed keys up to the row's position. Lists ascend and end in -1.
  int64_t visible(int64_t row, int64_t kv_head) const {
    const int32_t* ids = list(row, kv_head);
    const int64_t position = of->positions[row];
    int64_t low = 0, high = of->list_width;  // blocks before low do not begin beyond the position
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ids[middle] >= 0 && ids[middle] * of->block <= position) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == 0) return 0;
    const int64_t left = position + 1 - ids[low - 1] * of->block;
    return (low - 1) * of->block + (left < of->block ? left : of->block);
  }
};

template <class S>
struct ListedKeys final : Source<S> {
  using B = typename S::B;
  static constexpr int kU = S::kUnit;
  static constexpr int64_t kTogether = 32;  // as many keys as a step of tiles takes

  B* k;           // [dim / unit][kPass][unit]
  B* v;           // [kPass / unit][v_dim][unit]
  float* absent;  // [kPass]: -inf for keys that have no page
  bool is_whole;  // no key of the pass is absent

  void carve(Carver& carve, const AttendParams& p, const Unit&) override {
    k = carve.take<B>(kPass * p.dim);
    v = carve.take<B>(kPass * p.v_dim);
    absent = carve.take<float>(kPass);
  }

  // Panels of the keys first .. first + kPass - 1 of the unit's one token; beyond the last are
  // zeros.
  void locate(Pass<B>& pass, const AttendParams& p, const Unit& u, int64_t first) override {
    const ListedCall& call = static_cast<const ListedCall&>(p);
    const int32_t* list = call.list(u.row, u.kv_head);
    pass.chunk = kPass;
    pass.chunks = 1;
    pass.k[0] = k;
    pass.v[0] = v;
    is_whole = true;
    const int64_t left = u.hi - first < kPass ? u.hi - first : kPass;
    for (int64_t at = 0; at < (left + kTogether - 1) / kTogether * kTogether; at += kLeastBlock) {
      const int64_t key = first + at;
      const int64_t panel = at < left ? panel_of(*call.of, u, list[key / p.block] * p.block) : -1;
      const bool gone = at < left && panel < 0;
      is_whole = is_whole && !gone;
      for (int64_t i = at; i < at + kLeastBlock; ++i) absent[i] = gone ? -INFINITY : 0.0f;
      if (panel < 0) {
        clear(p, at);
      } else {
        const int64_t place = list[key / p.block] * p.block + key % p.block;
        gather(*call.of, panel, place % call.of->page, at);
      }
    }
  }

  Ahead ahead_of_scores(int64_t, int64_t, int64_t) const override { return {}; }
  Ahead ahead_of_values(int64_t, int64_t, int64_t) const override { return {}; }

  void hide(float* scores, const Span& span) const override {
    if (is_whole) return;
    for (int64_t i = span.begin; i < span.end; ++i) scores[i] += absent[i];
  }
  bool hides() const override { return !is_whole; }
  float* kept(int64_t, int64_t, float) override { return nullptr; }
  void conclude(const Results&, const float*) override {}

 private:
  // The number of the panel that holds a position, or -1.
  static int64_t panel_of(const AttendParams& p, const Unit& u, int64_t position) {
    const int64_t index = position / p.page;
    if (position < 0 || index >= p.table_width) return -1;
    const int64_t id = p.table[u.seq * p.table_row + index];
    return id < 0 || id >= p.pages ? -1 : p.steps.panel(id, u.kv_head);
  }

  void clear(const AttendParams& p, int64_t at) {
    for (int64_t c = 0; c < p.dim; c += kU)
      std::memset(static_cast<void*>(k + c * kPass + at * kU), 0, kLeastBlock * kU * sizeof(B));
    std::memset(static_cast<void*>(v + at * p.v_dim), 0,
                static_cast<size_t>(kLeastBlock * p.v_dim) * sizeof(B));
  }

  // The kLeastBlock keys from `offset` on of a panel, to column `at`.
  void gather(const AttendParams& p, int64_t panel, int64_t offset, int64_t at) {
    const B* from = static_cast<const B*>(p.k_pages) + panel * p.page * p.dim + offset * kU;
    for (int64_t c = 0; c < p.dim; c += kU)
      std::memcpy(k + c * kPass + at * kU, from + c * p.page, kLeastBlock * kU * sizeof(B));
    const int64_t tile = value_tile(p.v_dim);
    from = static_cast<const B*>(p.v_pages) + panel * p.page * p.v_dim + offset * tile;
    for (int64_t c = 0; c < p.v_dim; c += tile, from += tile * p.page)
      for (int64_t i = 0; i < kLeastBlock; i += kU)
        std::memcpy(v + (at + i) * p.v_dim + c * kU, from + i * tile,
                    static_cast<size_t>(tile * kU) * sizeof(B));
  }
};

// The rows from `begins` on of every sequence.
inline void attend_listed(const AttendParams& p, const int32_t* begins, ThreadPool& pool) {
  ListedCall call(p);
  int32_t* hi =
      static_cast<int32_t*>(malloc(static_cast<size_t>(p.rows * p.kv_heads) * sizeof(int32_t)));
  int64_t most = 0;
  for (int64_t s = 0; s < p.seqs; ++s)
    for (int64_t row = begins[s]; row < p.cu_rows[s + 1]; ++row)
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        const int64_t keys = call.visible(row, head);
        hi[row * p.kv_heads + head] = static_cast<int32_t>(keys);
        most = keys > most ? keys : most;
      }
  call.cu_rows = begins;
  call.row_ends = p.cu_rows + 1;
  call.hi = hi;
  call.hi_owners = p.kv_heads;
  call.blocks = nullptr;
  call.page = kPass;
  call.table_width = (most + kPass - 1) / kPass;
  call.unit_rows = p.heads / p.kv_heads;
  const UnitPlan plan(call, pool);
  if (plan.count() > 0) run_units(call, plan, unit_ops<ListedKeys>(call), pool);
  free(hi);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
