// One unit of attention: rows x segments of keys, pass by pass. See attend.cpp for the whole
// picture.
#pragma once
#include <math.h>

#include "attend_rows.h"
#include "results.h"

namespace saccade {
namespace SACCADE_ISA {

// Relative error below 2e-7 also near 0, where 1 - 2 / (e^2x + 1) would lose every digit: a
// polynomial fitted to tanh(x) / x for |x| < 0.65.
SACCADE_INLINE F<kWidth> tanh(F<kWidth> x) {
  constexpr int W = kWidth;
  const F<W> one = splat<W>(1.0f), z = x * x;
  F<W> p = splat<W>(-0.005932980217039585f);
  p = fma<W>(p, z, splat<W>(0.020881319418549538f));
  p = fma<W>(p, z, splat<W>(-0.053825847804546356f));
  p = fma<W>(p, z, splat<W>(0.13332600891590118f));
  p = fma<W>(p, z, splat<W>(-0.333333283662796f));
  const F<W> near = fma<W>(p * z, x, x);
  const F<W> far = one - splat<W>(2.0f) / (exp_any<W>(x + x) + one);
  return z < splat<W>(0.4225f) ? near : far;
}

// Logits beyond this size are not fused with their maximum: the rounding of the maximum alone could
// make an exponent far too large.
constexpr float kFusible = 1 << 24;

// Probabilities as the A operand of the second product: fp32, or bf16 where the machine multiplies
// bf16 pairs.
template <class A>
SACCADE_INLINE void put_probabilities(A* to, F<kWidth> p) {
  if constexpr (sizeof(A) == sizeof(float)) {
    store(to, p);
  } else {
#if defined(__AVX512BF16__)
    store(to, _mm512_cvtneps_pbh((__m512)p));
#endif
  }
}

// Where the keys of a unit come from if they are not panels in pages, as they are: what gathers
// them into panels, and may hide keys, keep the exponentials and conclude something from them. It
// is asked once for a pass, a row or a tile, never in a loop over keys, so that the arithmetic
// below is compiled once for all sources.
template <class S>
struct Source {
  using B = typename S::B;
  virtual void carve(Carver&, const AttendParams&, const Unit&) = 0;
  virtual void locate(Pass<B>&, const AttendParams&, const Unit&, int64_t first) = 0;
  // Memory to ask for while `columns` scores from column `at` on, or the sums of `channels` from
  // `channel` on, take `steps` steps.
  virtual Ahead ahead_of_scores(int64_t at, int64_t columns, int64_t steps) const = 0;
  virtual Ahead ahead_of_values(int64_t channel, int64_t channels, int64_t steps) const = 0;
  virtual void hide(float* scores, const Span&) const = 0;
  // Where a row's exponentials of the pass are kept, or null, and the maximum they are relative to.
  virtual float* kept(int64_t row, int64_t first, float top) = 0;
  // The sums of all rows are known.
  virtual void conclude(const Results& run, const float* total) = 0;

 protected:
  ~Source() = default;
};

// What a unit does with one arithmetic S.
template <class S>
struct UnitRun : Results {
  using A = typename S::A;
  using B = typename S::B;
  static constexpr int W = kWidth;
  static constexpr int kU = S::kUnit;
  // Rows of a unit that go through scores, softmax and values together, in whole register tiles:
  // their scores stay in the first-level cache.
  static constexpr int64_t kSub = 32 / S::kRows * S::kRows;

  const float to_log2;   // raw score -> log2 units
  const int64_t v_tile;  // channels of V that lie together (see value_tile); of gathered V, all
  Row* info;
  SegmentRows segment;
  A* q;                    // [rows][dim]
  A* q_sub;                // [kSub][dim]: the rows at work, where they do not lie side by side in q
  float* scores;           // [kSub][kPass]
  A* probabilities;        // [kSub][kPass]; in the place of the scores, if as wide as they are
  float* shrink;           // [kSub]: by how much earlier sums and outputs shrink in this pass
  float* o_sub;            // [kSub][v_dim]: outputs of the rows at work, for tiles
  B* turned;               // V panels of one pass, where the values are channels of the keys
  uint32_t is_turned = 0;  // which groups of keys they hold already
  float* own_partial;
  float* own_total;
  int64_t used;
  Pass<B> pass, next;       // next: the pages to fetch ahead while this pass computes
  Source<S>* const source;  // null: pages
  // Where K of the last pass and V of it ended in memory; whether V of this pass and K of the next
  // must be asked for. What a tile reads in the order of memory, from one pass to the next, the
  // processor reads ahead by itself, and faster than when it is asked.
  const B *k_end = nullptr, *v_end = nullptr;
  bool asks_values = true, asks_keys = true;
  // Bit i: some row's list holds keys 16 i .. 16 i + 15 of the pass. kAll: no lists, or all of it.
  static constexpr uint32_t kAll = ~0u;
  uint32_t listed = kAll, listed_next = kAll;

  UnitRun(const AttendParams& params, const Unit& unit, char* scratch, Source<S>* keys)
      : Results(params, unit),
        to_log2(params.softcap > 0 ? 1.0f : params.scale * kLog2E),
        v_tile(keys != nullptr || params.v_pages == nullptr ? params.v_dim
                                                            : saccade::value_tile(params.v_dim)),
        source(keys) {
    Carver carve{scratch};
    info = carve.take<Row>(rows);
    segment.capacity = rows;
    segment.rows = carve.take<Active>(kPasses * rows);
    q = carve.take<A>(rows * p.dim);
    q_sub = carve.take<A>(kSub * p.dim);
    scores = carve.take<float>(kSub * kPass);
    probabilities =
        sizeof(A) == sizeof(float) ? reinterpret_cast<A*>(scores) : carve.take<A>(kSub * kPass);
    shrink = carve.take<float>(kSub);
    o_sub = carve.take<float>(kTiles ? kSub * p.v_dim : 0);
    turned = carve.take<B>(p.v_pages == nullptr ? kPass * p.v_dim : 0);
    own_partial = carve.take<float>(floats());
    own_total = carve.take<float>(floats());
    if (source != nullptr) source->carve(carve, p, u);
    used = carve.at - scratch;
  }

  void prepare() {
    for (int64_t r = 0; r < rows; ++r) {
      info[r] = make_row(p, u, row_of(r), head_of(r));
      copy_q(r);
    }
  }

  void copy_q(int64_t r) {
    const int64_t offset = row_of(r) * p.q_row + head_of(r) * p.q_head;
    A* to = q + r * p.dim;
    if (sizeof(A) == static_cast<size_t>(size_of(p.dtype))) {
      std::memcpy(to, static_cast<const A*>(p.q) + offset, static_cast<size_t>(p.dim) * sizeof(A));
      return;
    }
    const uint16_t* from = static_cast<const uint16_t*>(p.q) + offset;
    for (int64_t c = 0; c < p.dim; ++c) {
      const float x = p.dtype == DType::kBF16 ? widen_bf16(from[c]) : get_one<ElementF16>(from + c);
      to[c] = static_cast<A>(x);
    }
  }

  // A decode step is a stream of pages: while K is scored, V of the same keys is asked for, and
  // while V is summed, K of the next pass. (Units of many rows compute longer than memory takes.)
  SACCADE_INLINE Ahead ahead_of(const B* from, int64_t elements, int64_t steps) const {
    if (from == nullptr || rows > kStreamRows) return {};
    return Ahead::over(from, elements * static_cast<int64_t>(sizeof(B)), steps);
  }

  // All keys of a pass that some row sees, at once: those of the first pass of a segment, which
  // nobody has asked for yet, and those of a pass of which only some are listed.
  void fetch_keys(const Pass<B>& of, uint32_t bits) const {
    if (rows > kStreamRows) return;
    const int64_t groups = of.chunk / 16, width = 16 * kU;
    for (int64_t c = 0; c < of.chunks; ++c) {
      if (of.k[c] == nullptr) continue;
      for (int64_t channel = 0; channel < p.dim / kU; ++channel)
        for (int64_t g = 0; g < groups; ++g)
          if ((bits >> (c * groups + g) & 1) != 0)
            __builtin_prefetch(of.k[c] + channel * p.page * kU + g * width, 0, 2);
    }
  }

  // The next stretch of keys, in chunk c from `at` on and before `end`, that some row's list holds.
  SACCADE_INLINE bool next_run(int64_t c, int64_t end, int64_t& at, Span& run) const {
    const uint32_t bits = listed >> c * (pass.chunk / 16);
    if (listed != kAll)
      while (at < end && (bits >> at / 16 & 1) == 0) at = at / 16 * 16 + 16;
    if (at >= end) return false;
    run = {at, end};
    if (listed != kAll) {
      run.end = at / 16 * 16 + 16;
      while (run.end < end && (bits >> run.end / 16 & 1) != 0) run.end += 16;
      if (run.end > end) run.end = end;
    }
    at = run.end;
    return true;
  }

  // Channel `channel` of the key `at`, a multiple of the unit, from which the panel goes on by
  // keys.
  SACCADE_INLINE const B* value_at(const B* v, int64_t at, int64_t channel) const {
    return v + channel / v_tile * v_tile * p.page + at * v_tile + channel % v_tile * kU;
  }

  // ---- the three stages, for up to kSub rows ----

  // The rows at work, side by side: straight from q, or gathered. Tiles read whole groups of 16
  // rows.
  const A* queries(const Active* active, int64_t count) {
    const int64_t first = active[0].row, read = kTiles ? (count + 15) / 16 * 16 : count;
    if (active[count - 1].row == first + count - 1 && first + read <= rows)
      return q + first * p.dim;
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(q_sub + r * p.dim, q + active[r].row * p.dim,
                  static_cast<size_t>(p.dim) * sizeof(A));
    }
    std::memset(static_cast<void*>(q_sub + count * p.dim), 0,
                static_cast<size_t>((read - count) * p.dim) * sizeof(A));
    return q_sub;
  }

  // Where the values are channels of the keys, V panels are made of K panels, a group of keys at
  // a time, when the first rows need them.
  static constexpr int64_t kTurn = kTiles ? 32 : 16;

  void expect_turned() {
    if (p.v_pages != nullptr) return;
    is_turned = 0;
    for (int64_t c = 0; c < pass.chunks; ++c)
      pass.v[c] = pass.k[c] == nullptr ? nullptr : turned + c * pass.chunk * p.v_dim;
  }

  void turn_keys(int64_t first, const Span& span) {
    if (p.v_pages != nullptr) return;
    for (int64_t at = span.begin / kTurn * kTurn; at < span.end; at += kTurn) {
      const int64_t c = at / pass.chunk;
      if (pass.k[c] == nullptr || (is_turned >> at / kTurn & 1) != 0) continue;
      is_turned |= 1u << at / kTurn;
      const int64_t in_chunk = at % pass.chunk, left = u.hi - first - at;
      turn_group(pass.k[c] + in_chunk * kU, turned + at * p.v_dim, left < kTurn ? left : kTurn);
    }
  }

  // The leading channels of kTurn keys. Those that no row of the unit sees weigh nothing, and
  // become 0: what lies there may be a former owner's.
  void turn_group(const B* k, B* v, int64_t known) const {
    B row[kTurn * kU];
    for (int64_t i = 0; i < p.v_dim; i += kU, k += p.page * kU, v += kU * kU) {
      std::memcpy(row, k, sizeof(row));
      for (int64_t e = known * kU; e < kTurn * kU; ++e) row[e] = B{};
      const int64_t channels = p.v_dim - i < kU ? p.v_dim - i : kU;
      for (int64_t key = 0; key < kTurn; key += kU)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t e = 0; e < kU; ++e) v[key * p.v_dim + c * kU + e] = row[(key + e) * kU + c];
    }
  }

  // The part of `span` in chunk c of the pass, as offsets in the chunk.
  SACCADE_INLINE Span in_chunk(const Span& span, int64_t c) const {
    const int64_t base = c * pass.chunk;
    const int64_t begin = span.begin > base ? span.begin - base : 0;
    const int64_t end = span.end < base + pass.chunk ? span.end - base : pass.chunk;
    return {begin, end};
  }

  struct ScoreBlock {  // columns are keys of one chunk
    UnitRun& run;
    const A* q;
    const B* k;
    const B* v;  // of the same keys, wanted next
    float* to;

    template <int M, int NV>
    SACCADE_INLINE void tile(int64_t r, int64_t at) {
      const AttendParams& p = run.p;
      const int64_t steps = p.dim / kU;
      Ahead ahead;
      if (run.source != nullptr) {
        if (r == 0) ahead = run.source->ahead_of_scores(at, NV * W, steps);
      } else {
        const bool asks = r == 0 && run.asks_values && v != nullptr;
        const B* wanted = asks ? v + at * p.v_dim : nullptr;
        ahead = run.ahead_of(wanted, NV * W * p.v_dim, steps);
      }
      F<W> acc[M][NV] = {};
      product<S, W, NV, M>(acc, q + r * p.dim, p.dim, k + at * kU, p.page * kU, steps, ahead);
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) store(to + (r + m) * kPass + at + n * W, acc[m][n]);
    }
  };

  void score(const A* queries, int64_t count, const Span& span) {
    for (int64_t c = 0; c < pass.chunks; ++c) {
      const Span keys = in_chunk(span, c);
      if (keys.begin >= keys.end) continue;
      float* to = scores + c * pass.chunk;
      if (pass.k[c] == nullptr) {
        for (int64_t r = 0; r < count; ++r)
          for (int64_t i = keys.begin; i < keys.end; ++i) to[r * kPass + i] = -INFINITY;
        continue;
      }
#if SACCADE_AMX
      score_tiles(queries, count, keys, pass.k[c], to);
#else
      ScoreBlock block{*this, queries, pass.k[c], pass.v[c], to};
      Span run;
      for (int64_t at = keys.begin; next_run(c, keys.end, at, run);)
        for_tiles<W, S::kRows>(block, count, run.begin, run.end);
#endif
    }
  }

  struct ValueBlock {  // columns are channels
    UnitRun& run;
    const Active* active;
    const Span& span;
    float* o;

    template <int M, int NV>
    SACCADE_INLINE void tile(int64_t r, int64_t channel) {
      const AttendParams& p = run.p;
      F<W> acc[M][NV];
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n)
          acc[m][n] = load<F<W>>(at(r + m, channel + n * W)) * splat<W>(run.shrink[r + m]);
      const int64_t share = run.pass.chunk * p.dim / p.v_dim;  // elements of K per channel of V
      for (int64_t c = 0; c < run.pass.chunks; ++c) {
        const Span keys = run.in_chunk(span, c);
        if (keys.begin >= keys.end || run.pass.v[c] == nullptr) continue;
        const bool asks =
            r == 0 && run.asks_keys && run.listed_next == kAll && run.next.k[c] != nullptr;
        const B* k = asks ? run.next.k[c] + channel * share : nullptr;
        const A* weights = run.probabilities + r * kPass + c * run.pass.chunk;
        const B* v = run.value_at(run.pass.v[c], 0, channel);
        Span some;
        for (int64_t from = keys.begin; run.next_run(c, keys.end, from, some); k = nullptr) {
          const int64_t steps = (some.end - some.begin) / kU;
          Ahead ahead;
          if (run.source != nullptr) {
            if (r == 0) ahead = run.source->ahead_of_values(channel, NV * W, steps);
          } else {
            ahead = run.ahead_of(k, NV * W * share, steps);
          }
          product<S, W, NV, M>(acc, weights + some.begin, kPass, v + some.begin * run.v_tile,
                               run.v_tile * kU, steps, ahead);
        }
      }
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) store(at(r + m, channel + n * W), acc[m][n]);
    }
    SACCADE_INLINE float* at(int64_t r, int64_t channel) const {
      return o + active[r].row * run.p.v_dim + channel;
    }
  };

  void values(const Active* active, int64_t count, const Span& span, float* o) {
#if SACCADE_AMX
    value_tiles(active, count, span, o);
#else
    ValueBlock block{*this, active, span, o};
    const int64_t whole = p.v_dim / W * W;
    for_tiles<W, S::kRows>(block, count, 0, whole);
    if (whole < p.v_dim) value_rest(active, count, span, o, whole);
#endif
  }

  // Channels beyond the last whole vector, one at a time.
  void value_rest(const Active* active, int64_t count, const Span& span, float* o,
                  int64_t channel) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = channel; i < p.v_dim; ++i) {
        float* to = o + active[r].row * p.v_dim + i;
        float sum = *to * shrink[r];
        for (int64_t key = span.begin; key < span.end; ++key) {
          const int64_t c = key / pass.chunk, at = key % pass.chunk;
          if (pass.v[c] == nullptr) continue;
          const B* v = value_at(pass.v[c], at / kU * kU, i) + at % kU;
          sum += S::one(probabilities + r * kPass + key) * S::one(v);
        }
        *to = sum;
      }
  }

#if SACCADE_AMX
  void score_tiles(const A* queries, int64_t count, const Span& keys, const B* k, float* to) {
    for (int64_t at = keys.begin / 32 * 32; at < keys.end; at += 32) {
      for (int64_t r = 0; r < count; r += 32) {
        const A* a = queries + r * p.dim;
        const int64_t ldb = p.page * kU, steps = p.dim / 32;
        float* c = to + r * kPass + at;
        if (r + 16 < count) {
          amx::product<2, 2>(c, kPass, a, p.dim, k + at * kU, ldb, steps);
        } else {
          amx::product<1, 2>(c, kPass, a, p.dim, k + at * kU, ldb, steps);
        }
      }
    }
  }

  template <int R, int C>
  void value_tile(int64_t r, int64_t channel, const Span& span) {
    float* o = o_sub + r * p.v_dim + channel;
    amx::fetch<R, C>(o, p.v_dim);
    for (int64_t c = 0; c < pass.chunks; ++c) {
      if (pass.v[c] == nullptr) continue;
      const Span keys = in_chunk(span, c);
      for (int64_t at = keys.begin / 32 * 32; at < keys.end; at += 32) {
        amx::step<R, C>(probabilities + r * kPass + c * pass.chunk + at, kPass,
                        value_at(pass.v[c], at, channel), v_tile * kU);
      }
    }
    amx::put<R, C>(o, p.v_dim);
  }

  // Tiles want rows at equal distances: outputs are gathered, shrunk on the way, and put back.
  void value_tiles(const Active* active, int64_t count, const Span& span, float* o) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < p.v_dim; i += W) {
        store(o_sub + r * p.v_dim + i,
              load<F<W>>(o + active[r].row * p.v_dim + i) * splat<W>(shrink[r]));
      }
    for (int64_t channel = 0; channel < p.v_dim; channel += 32) {
      const bool wide = channel + 32 <= p.v_dim;
      for (int64_t r = 0; r < count; r += 32) {
        const bool tall = r + 16 < count;
        if (tall && wide) value_tile<2, 2>(r, channel, span);
        if (tall && !wide) value_tile<2, 1>(r, channel, span);
        if (!tall && wide) value_tile<1, 2>(r, channel, span);
        if (!tall && !wide) value_tile<1, 1>(r, channel, span);
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(o + active[r].row * p.v_dim, o_sub + r * p.v_dim,
                  static_cast<size_t>(p.v_dim) * sizeof(float));
    }
  }

  // Rows that pad a group of 16, and keys that pad a step of 32, weigh nothing.
  void pad_probabilities(int64_t count, const Span& span) {
    for (int64_t r = 0; r < (count + 15) / 16 * 16; ++r) {
      A* to = probabilities + r * kPass;
      if (r >= count) std::memset(static_cast<void*>(to), 0, kPass * sizeof(A));
      for (int64_t i = span.begin / 32 * 32; i < span.begin; i += W)
        put_probabilities(to + i, F<W>{});
      for (int64_t i = span.end; i < (span.end + 31) / 32 * 32; i += W)
        put_probabilities(to + i, F<W>{});
    }
  }
#endif

  SACCADE_INLINE F<W> capped(F<W> s) const {
    return tanh(s * splat<W>(p.scale / p.softcap)) * splat<W>(p.softcap * kLog2E);
  }

  // Largest score of a row over its own keys, after cap and mask.
  SACCADE_INLINE float highest(const Active& active, const Span& own, int64_t first,
                               float* s) const {
    const Row& row = info[active.row];
    const F<W> none = splat<W>(-INFINITY);
    F<W> high = none;
    if (p.softcap > 0) {
      for (int64_t i = own.begin; i < own.end; i += W) {
        store(s + i, pass.k[i / pass.chunk] == nullptr ? none : capped(load<F<W>>(s + i)));
      }
    }
    if (is_masked(p, row, own, first)) {
      for (int64_t i = own.begin; i < own.end; i += W) {
        store(s + i, seen(p, row, active, first, i) ? load<F<W>>(s + i) : none);
      }
    }
    for (int64_t i = own.begin; i < own.end; i += W) high = max<W>(high, load<F<W>>(s + i));
    return max_lanes<W>(high);
  }

  // Scores of the r-th row at work -> probabilities over `span`; keeps the row's maximum and sums.
  SACCADE_INLINE void softmax_row(const Active& active, int64_t r, int64_t first, const Span& span,
                                  float* partial) {
    float* s = scores + r * kPass;
    A* to = probabilities + r * kPass;
    float* top = tops(partial) + active.row;
    float* sum = sums(partial) + active.row * W;
    if (*top == -INFINITY) {  // nothing seen so far: what lies there is not a number of ours
      std::memset(partial + active.row * p.v_dim, 0, static_cast<size_t>(p.v_dim) * sizeof(float));
      std::memset(sum, 0, W * sizeof(float));
    }
    const Span own = span_of(p, info[active.row], first);
    for (int64_t i = span.begin; i < own.begin; i += W) put_probabilities(to + i, F<W>{});
    for (int64_t i = own.end; i < span.end; i += W) put_probabilities(to + i, F<W>{});
    if (source != nullptr) source->hide(s, own);
    const float high = highest(active, own, first, s) * to_log2;
    const float now = *top > high ? *top : high;
    const float base = now == -INFINITY ? 0.0f : now;
    shrink[r] = exp2_nonpositive<4>(splat<4>(*top - base))[0];
    const F<W> factor = splat<W>(to_log2), minus = splat<W>(-base);
    const bool huge = base > kFusible || base < -kFusible;
    F<W> total{};
    float* kept = source != nullptr ? source->kept(active.row, first, now) : nullptr;
    for (int64_t i = own.begin; i < own.end; i += W) {
      const F<W> x = load<F<W>>(s + i);
      const F<W> e = exp2_nonpositive<W>(huge ? x * factor + minus : fma<W>(x, factor, minus));
      total += e;
      put_probabilities(to + i, e);
      if (kept != nullptr) store(kept + i, e);
    }
    store(sum, fma<W>(load<F<W>>(sum), splat<W>(shrink[r]), total));
    // The maximum skips NaN; a row that saw nothing else must not pass for one that saw nothing.
    *top = now == -INFINITY && sum_lanes<W>(total) != 0.0f ? NAN : now;
  }

  // ---- passes and segments ----

  void attend_rows(const Active* active, int64_t count, int64_t first, float* partial) {
    Span span{kPass, 0};
    for (int64_t r = 0; r < count; ++r) {
      const Span own = span_of(p, info[active[r].row], first);
      if (own.begin < span.begin) span.begin = own.begin;
      if (own.end > span.end) span.end = own.end;
    }
    score(queries(active, count), count, span);
    for (int64_t r = 0; r < count; ++r) softmax_row(active[r], r, first, span, partial);
#if SACCADE_AMX
    pad_probabilities(count, span);
#endif
    turn_keys(first, span);
    values(active, count, span, partial);
  }

  uint32_t listed_of(int64_t index) const {
    if (p.blocks == nullptr || index >= kPasses) return kAll;
    uint32_t bits = 0;
    for (int64_t at = 0; at < segment.counts[index]; ++at) bits |= segment.of(index)[at].bits;
    return bits == kAll >> (32 - kPass / 16) ? kAll : bits;
  }

  // Pages that no row's list holds are neither read nor asked for: keys that nobody sees.
  static void forget_unlisted(Pass<B>& of, uint32_t bits) {
    const int64_t groups = of.chunk / 16;
    for (int64_t c = 0; c < of.chunks; ++c)
      if ((bits >> c * groups & ((1u << groups) - 1)) == 0) of.k[c] = of.v[c] = nullptr;
  }

  // Where the panels of the pass end, if they lie one behind the other in memory, or null.
  const B* end_of(const B* const* panels, int64_t dim) const {
    if (pass.chunk < p.page || panels[0] == nullptr) return nullptr;
    for (int64_t c = 1; c < pass.chunks; ++c)
      if (panels[c] != panels[0] + c * pass.chunk * dim) return nullptr;
    return panels[0] + pass.chunks * pass.chunk * dim;
  }

  void follow_memory() {
    constexpr int64_t kTile = kTileVectors * W;  // a wider row of a panel is read in several sweeps
    const B *k = end_of(pass.k, p.dim), *v = end_of(pass.v, p.v_dim);
    asks_values = v == nullptr || v_end != pass.v[0] || kTile < v_tile;
    asks_keys = k == nullptr || k != next.k[0] || kTile < p.page;
    k_end = k;
    v_end = v;
  }

  // The partial result over one segment of keys, which begins at `begin`.
  void attend_segment(int64_t begin, float* partial);
};

template <class S>
void UnitRun<S>::attend_segment(int64_t begin, float* partial) {
  clear(partial);
  segment.collect(p, info, rows, begin);
  bool started = false;
  for (int64_t i = 0; i < kPasses; ++i) {
    if (segment.counts[i] == 0) continue;
    int64_t after = i + 1;
    while (after < kPasses && segment.counts[after] == 0) ++after;
    if (source != nullptr) {
      source->locate(pass, p, u, begin + i * kPass);
      next.chunk = kPass;
      next.chunks = 0;  // nothing of pages is to be fetched
    } else {
      pass.locate(p, u, begin + i * kPass);
      next.locate(p, u, after < kPasses ? begin + after * kPass : u.hi);
    }
    listed = started ? listed_next : listed_of(i);
    listed_next = listed_of(after);
    forget_unlisted(pass, listed);
    forget_unlisted(next, listed_next);
    if (!started && k_end != pass.k[0]) fetch_keys(pass, listed);
    if (listed_next != kAll) fetch_keys(next, listed_next);
    follow_memory();
    started = true;
    expect_turned();
    for (int64_t at = 0; at < segment.counts[i]; at += kSub) {
      const int64_t left = segment.counts[i] - at;
      attend_rows(segment.of(i) + at, left < kSub ? left : kSub, begin + i * kPass, partial);
    }
  }
}

}  // namespace SACCADE_ISA
}  // namespace saccade
