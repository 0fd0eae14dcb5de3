// Listed blocks shorter than a page, whose keys are gathered: see listed.h.
#pragma once
#include "listed.h"
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {

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
    pass.chunk = kPass;
    pass.chunks = 1;
    pass.k[0] = k;
    pass.v[0] = v;
    is_whole = true;
    if (piece_of(p) == 16) {
      gather_pass<16>(call, u, first);
    } else {
      gather_pass<kLeastBlock>(call, u, first);
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
  // Where K and V of some keys of a block begin in their panels, or null.
  struct Place {
    const B *k, *v;
  };

  Place place_of(const ListedCall& call, const Unit& u, const int32_t* list, int64_t key) const {
    const AttendParams& p = *call.of;
    int64_t offset;
    const int64_t panel = call.panel_of(u.seq, u.kv_head, list, key, offset);
    if (panel < 0) return {nullptr, nullptr};
    const int64_t base = panel * p.page;
    return {static_cast<const B*>(p.k_pages) + base * p.dim + offset * kU,
            static_cast<const B*>(p.v_pages) + base * p.v_dim + offset * value_tile(p.v_dim)};
  }

  template <int64_t kPiece>
  void gather_pass(const ListedCall& call, const Unit& u, int64_t first) {
    const int32_t* list = call.list(u.row, u.kv_head);
    const int64_t left = u.hi - first < kPass ? u.hi - first : kPass;
    for (int64_t at = 0; at < (left + kTogether - 1) / kTogether * kTogether; at += kPiece) {
      const bool is_key = at < left;
      const Place from = is_key ? place_of(call, u, list, first + at) : Place{nullptr, nullptr};
      const bool gone = is_key && from.k == nullptr;
      is_whole = is_whole && !gone;
      for (int64_t i = at; i < at + kPiece; ++i) absent[i] = gone ? -INFINITY : 0.0f;
      if (is_key && !gone) {
        gather<kPiece>(*call.of, from, at);
      } else {
        clear<kPiece>(*call.of, at);
      }
    }
  }

  template <int64_t kPiece>
  void clear(const AttendParams& p, int64_t at) {
    for (int64_t c = 0; c < p.dim; c += kU)
      std::memset(static_cast<void*>(k + c * kPass + at * kU), 0, kPiece * kU * sizeof(B));
    std::memset(static_cast<void*>(v + at * p.v_dim), 0,
                static_cast<size_t>(kPiece * p.v_dim) * sizeof(B));
  }

  // kPiece keys to column `at`.
  template <int64_t kPiece>
  void gather(const AttendParams& p, const Place& from, int64_t at) {
    for (int64_t c = 0; c < p.dim; c += kU)
      std::memcpy(k + c * kPass + at * kU, from.k + c * p.page, kPiece * kU * sizeof(B));
    constexpr int64_t kUsual = 64;  // channels that lie together
    const int64_t tile = value_tile(p.v_dim);
    for (int64_t c = 0; c < p.v_dim; c += tile)
      for (int64_t i = 0; i < kPiece; i += kU) {
        B* to = v + (at + i) * p.v_dim + c * kU;
        const B* row = from.v + c * p.page + i * tile;
        if (tile == kUsual) {
          std::memcpy(to, row, kUsual * kU * sizeof(B));
        } else {
          std::memcpy(to, row, static_cast<size_t>(tile * kU) * sizeof(B));
        }
      }
  }
};

// The rows from `begins` on of every sequence, whose keys are gathered.
inline void attend_gathered(const AttendParams& p, const int32_t* begins, ThreadPool& pool) {
  ListedCall call(p);
  int64_t most;
  const Room<int32_t> hi = count_listed(call, begins, most);
  call.cu_rows = begins;
  call.row_ends = p.cu_rows + 1;
  call.hi = hi.get();
  call.page = kPass;
  call.table_width = (most + kPass - 1) / kPass;
  const UnitPlan plan(call, pool);
  if (plan.count() > 0) run_units(call, plan, unit_ops<ListedKeys>(call), pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
