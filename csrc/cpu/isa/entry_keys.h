// Entries (summaries of windows of tokens) as the keys of attention: where they lie, and how they
// become panels, in a unit's own memory or once for all units.
#pragma once
#include "entry_lists.h"
#include "panels.h"
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {

template <class S>
struct EntryKeys final : Source<S> {
  using B = typename S::B;
  static constexpr int W = kWidth;
  static constexpr int kU = S::kUnit;
  static constexpr int64_t kGroup = 32;  // as many as a step of tiles takes

  B* k;                 // [dim / unit][kPass][unit], or [kPass][dim] (see key_rows)
  B* v;                 // [kPass / unit][v_dim][unit]
  B* nothing;           // [width]: an entry that is not there
  float* absent;        // [kPass]: -inf for those that have no page; then whether there are any
  float* exponentials;  // [rows][most]
  float* factors;  // [rows][passes]: the maxima that they are relative to, then what makes them
                   // probabilities
  float* planes = nullptr;  // see Planes
  bool is_whole;            // no entry of the pass is absent
  bool ready = false;

  // K, V and `absent`, in one piece.
  void carve_panel(Carver& carve, const AttendParams& p) {
    k = carve.take<B>(kPass * p.dim);
    v = carve.take<B>(kPass * p.v_dim);
    absent = carve.take<float>(kPass + 1);
  }

  void carve(Carver& carve, const AttendParams& p, const Unit& u) override {
    const EntryCall& call = static_cast<const EntryCall&>(p);
    const int64_t rows = u.tokens * u.heads;
    carve_panel(carve, p);
    nothing = carve.take<B>(call.c->width);
    if (call.kept == nullptr) {
      exponentials = carve.take<float>(rows * call.most);
      factors = carve.take<float>(rows * call.passes());
      if (call.c->ids != nullptr) planes = carve.take<float>(Planes::floats(*call.c, call.most));
    } else {
      const int64_t first = (u.kv_head * p.rows + u.row) * u.heads;
      exponentials = call.kept + first * call.most;
      factors = call.factors + first * call.passes();
    }
    most_ = call.most;
    passes_ = call.passes();
  }

  // Panels of the entries first .. first + kPass - 1; those that nobody sees are zeros.
  void locate(Pass<B>& pass, const AttendParams& p, const Unit& u, int64_t first) override {
    const EntryCall& call = static_cast<const EntryCall&>(p);
    if (call.shares_panels(u.seq)) {
      begin(call, false);
      Carver carve{call.panel(u.seq, u.kv_head, first / kPass)};
      carve_panel(carve, p);
      is_whole = absent[kPass] == 0.0f;
    } else {
      if (!ready) {
        begin(call, u.tokens * u.heads <= kStreamRows);
        std::memset(static_cast<void*>(nothing), 0, static_cast<size_t>(bytes_));
      }
      gather(call, u, first);
    }
    pass.chunk = kPass;
    pass.chunks = 1;
    pass.k[0] = k;
    pass.v[0] = v;
  }

  // One of the panels that units share, of entries before `end`.
  void make_panel(const EntryCall& call, const Unit& u, int64_t pass, B* zeros) {
    Carver carve{call.panel(u.seq, u.kv_head, pass)};
    carve_panel(carve, call);
    nothing = zeros;
    begin(call, false);
    gather(call, u, pass * kPass);
    absent[kPass] = is_whole ? 0.0f : 1.0f;
  }

  // Where memory is slower than arithmetic, the next pass is asked for evenly: half of it while
  // this one is gathered, a quarter while scores are computed, a quarter while values are summed.
  Ahead ahead_of_scores(int64_t at, int64_t columns, int64_t steps) const override {
    const int64_t part = v_dim_ > 0 ? 4 : 2;
    return ahead(kPass / 2 + at / part, columns / part, steps);
  }
  Ahead ahead_of_values(int64_t channel, int64_t channels, int64_t steps) const override {
    const int64_t part = kPass / 4;
    return ahead(3 * part + channel * part / v_dim_, channels * part / v_dim_, steps);
  }

  void hide(float* scores, const Span& span) const override {
    if (is_whole) return;
    for (int64_t i = span.begin; i < span.end; i += W)
      store(scores + i, load<F<W>>(scores + i) + load<F<W>>(absent + i));
  }
  bool hides() const override { return !is_whole; }
  const B* key_rows() const override { return takes_rows_ ? k : nullptr; }
  float* kept(int64_t row, int64_t first, float top) override {
    factors[row * passes_ + first / kPass] = top;
    return exponentials + row * most_ + first;
  }

  // The sums are known: lists at once, or later where threads share the unit.
  void conclude(const Results& run, const float* total) override {
    const EntryCall& call = static_cast<const EntryCall&>(run.p);
    if (call.c->ids == nullptr) return;
    for (int64_t r = 0; r < run.rows; ++r) {
      const float top = run.tops(total)[r];
      const float sum = top == -INFINITY ? 0.0f : sum_lanes<W>(load<F<W>>(run.sums(total) + r * W));
      float* of = factors + r * passes_;
      for (int64_t i = 0; i < passes_; ++i) of[i] = sum == 0.0f ? 0.0f : exp2f(of[i] - top) / sum;
    }
    for (int64_t t = 0; call.kept == nullptr && t < run.u.tokens; ++t) {
      const int64_t r = t * run.u.heads;
      Chooser{
          call,          *call.c,       exponentials + r * most_,          factors + r * passes_,
          run.u.row + t, run.u.kv_head, Planes(*call.c, call.most, planes)}
          .choose();
    }
  }

 private:
  int64_t most_, passes_, v_dim_, bytes_, next_first_, next_count_;
  bool streams_, takes_rows_;
  const B* next_[kPass];  // the entries of the next pass

  void begin(const EntryCall& call, bool streams) {
    v_dim_ = call.v_dim;
    streams_ = streams;
    takes_rows_ = kTiles && streams;
    bytes_ = call.c->width * int64_t{sizeof(B)};
  }

  void gather(const EntryCall& call, const Unit& u, int64_t first) {
    const CompressedParams& c = *call.c;
    if (!ready || next_first_ != first) find(c, u, first);
    const B* now[kPass];
    std::memcpy(now, next_, sizeof(now));
    find(c, u, first + kPass);
    ready = is_whole = true;
    for (int64_t at = 0; at < u.hi - first && at < kPass; at += kGroup) {
      for (int64_t i = at; i < at + kGroup; ++i) {
        const bool gone = now[i] == nothing && first + i < u.hi;
        absent[i] = gone ? -INFINITY : 0.0f;
        is_whole = is_whole && !gone;
      }
      takes_rows_ ? copy_group(now, call, c.value_first, at)
                  : gather_group(now, call, c.value_first, at);
    }
  }

  void find(const CompressedParams& c, const Unit& u, int64_t first) {
    next_first_ = first;
    next_count_ = 0;
    for (int64_t i = 0; i < kPass; ++i) {
      const B* from = first + i < u.hi ? entry(c, u, first + i) : nullptr;
      if (first + i < u.hi) next_count_ = i + 1;
      next_[i] = from == nullptr ? nothing : from;
    }
  }

  SACCADE_INLINE void ask_for(int64_t first, int64_t count) const {
    for (int64_t i = first; streams_ && i < first + count && i < next_count_; ++i)
      for (int64_t at = 0; at < bytes_; at += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(next_[i]) + at, 0, 2);
  }

  SACCADE_INLINE Ahead ahead(int64_t first, int64_t count, int64_t steps) const {
    if (!streams_ || first >= next_count_ || steps == 0) return {};
    Ahead found;
    found.rows = reinterpret_cast<const char* const*>(next_ + first);
    found.count = first + count < next_count_ ? count : next_count_ - first;
    found.bytes = bytes_;
    found.lines = (found.count * ((bytes_ + 63) / 64) + steps - 1) / steps;
    return found;
  }

  // Where an entry lies, null: nowhere. Lengths of pages and strides are powers of two.
  SACCADE_INLINE static const B* entry(const CompressedParams& c, const Unit& u, int64_t index) {
    const int stride = __builtin_ctzll(static_cast<uint64_t>(c.stride));
    const int page = __builtin_ctzll(static_cast<uint64_t>(c.page));
    const int64_t last = (index << stride) + c.length - 1, in_table = last >> page;
    if (in_table >= c.table_width) return nullptr;
    const int64_t id = c.table[u.seq * c.table_row + in_table];
    if (id < 0 || id >= c.pages) return nullptr;
    const int64_t slot = stride < page ? (last & (c.page - 1)) >> stride : 0;
    return static_cast<const B*>(c.entries) + (id * c.slots + slot) * c.field.slot +
           u.kv_head * c.field.head;
  }

  // kGroup entries from `at` on: their keys as columns of the panel.
  void gather_group(const B* const* from, const AttendParams& p, int64_t value, int64_t at) {
    for (int64_t i = at; i < at + kGroup; i += W) {
      if (kTiles) {  // they ask for nothing while they compute
        ask_for(i, W);
      } else {
        ask_for(i / 2, W / 2);
      }
      gather_columns<kU>(from + i, p.dim, k + i * kU, kPass);
    }
    for (int64_t i = at; i < at + kGroup; i += kU)
      gather_value(from + i, value, p.v_dim, v + i * p.v_dim);
  }

  // The same with keys as rows, in the order of memory.
  void copy_group(const B* const* from, const AttendParams& p, int64_t value, int64_t at) {
    for (int64_t i = at; i < at + kGroup; i += kU) {
      ask_for(i, kU);
      for (int64_t e = i; e < i + kU; ++e)
        std::memcpy(static_cast<void*>(k + e * p.dim), from[e],
                    static_cast<size_t>(p.dim) * sizeof(B));
      gather_value(from + i, value, p.v_dim, v + i * p.v_dim);
    }
  }

  // The values of kU entries, their channels in turn.
  static void gather_value(const B* const* from, int64_t first, int64_t dim, B* to) {
    if constexpr (kU == 1) {
      std::memcpy(to, from[0] + first, static_cast<size_t>(dim) * sizeof(B));
    } else {
      interleave<W>(to, from[0] + first, from[1] + first, dim);
    }
  }
};

}  // namespace SACCADE_ISA
}  // namespace saccade
