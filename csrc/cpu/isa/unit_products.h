// Scores of a pass, and the sums of its values: two products of a unit's rows, in registers or in
// tiles of AMX.
#pragma once
#include "unit_softmax.h"

namespace saccade {
namespace SACCADE_ISA {

template <class S>
struct UnitRun<S>::ScoreBlock {  // columns are keys of one chunk
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

template <class S>
inline void UnitRun<S>::score(const Active* active, int64_t count, const Span& span) {
#if SACCADE_AMX
  if (const B* k = turns_queries() ? source->key_rows() : nullptr)
    return score_key_rows(active, count, span, k);
#endif
  const A* at_work = queries(active, count);
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
    score_tiles(at_work, count, keys, pass.k[c], to);
#else
    ScoreBlock block{*this, at_work, pass.k[c], pass.v[c], to};
    Span run;
    for (int64_t at = keys.begin; next_run(c, keys.end, at, run);)
      for_tiles<W, S::kRows>(block, count, run.begin, run.end);
#endif
  }
}

template <class S>
struct UnitRun<S>::ValueBlock {  // columns are channels
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
      const A* weights = run.weights_of(r) + c * run.pass.chunk;
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
        product<S, W, NV, M>(acc, weights + some.begin, kWeights, v + some.begin * run.v_tile,
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

template <class S>
inline void UnitRun<S>::values(const Active* active, int64_t count, const Span& span, float* o) {
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
template <class S>
inline void UnitRun<S>::value_rest(const Active* active, int64_t count, const Span& span, float* o,
                                   int64_t channel) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = channel; i < p.v_dim; ++i) {
      float* to = o + active[r].row * p.v_dim + i;
      float sum = *to * shrink[r];
      for (int64_t key = span.begin; key < span.end; ++key) {
        const int64_t c = key / pass.chunk, at = key % pass.chunk;
        if (pass.v[c] == nullptr) continue;
        const B* v = value_at(pass.v[c], at / kU * kU, i) + at % kU;
        sum += S::one(weights_of(r) + key) * S::one(v);
      }
      *to = sum;
    }
}

#if SACCADE_AMX

// Many rows ask for the next pass while they are weighed, in equal parts.
template <class S>
inline void UnitRun<S>::expect_lines(int64_t count) {
  asked_k = p.page * p.dim / kLine;
  asked_v = p.page * p.v_dim / kLine;
  asked = asked_chunk = 0;
  const bool asks = rows > kStreamRows && next.chunk == p.page && p.v_pages != nullptr;
  ask_at_once = asks ? (next.chunks * (asked_k + asked_v) + count - 1) / count : 0;
}

template <class S>
inline void UnitRun<S>::ask_lines() {
  for (int64_t left = ask_at_once; left > 0 && asked_chunk < next.chunks; --left) {
    const B* from = asked < asked_k ? next.k[asked_chunk] : next.v[asked_chunk];
    const int64_t line = asked < asked_k ? asked : asked - asked_k;
    if (from != nullptr) __builtin_prefetch(from + line * kLine, 0, 2);
    if (++asked == asked_k + asked_v) asked = 0, ++asked_chunk;
  }
}

// 64 keys from `k` on, `ldb` elements between pairs of channels, for up to 16 rows.
template <class S>
inline void UnitRun<S>::wide_scores(const A* queries, const B* k, float* to) {
  const int64_t ldb = p.page * kU, steps = p.dim / 32;
  amx::wide_clear();
  for (int64_t i = 0; i < steps; ++i)
    amx::wide_step(queries + i * 32, p.dim, k + i * 16 * ldb, ldb);
  amx::wide_put(to, kPass);
}

// The same scores from keys as they lie, [kPass][dim]: the product turned round, whose sums are of
// the same numbers in the same order.
template <class S>
inline void UnitRun<S>::score_key_rows(const Active* active, int64_t count, const Span& keys,
                                       const B* k) {
  alignas(64) float tile[16 * 16];
  for (int64_t at = keys.begin / 16 * 16; at < keys.end; at += 16) {
    amx::rows_by_columns(tile, k + at * p.dim, p.dim, q_turned, p.dim / 32);
    I<W> columns[W];
    for (int64_t i = 0; i < W; ++i) columns[i] = load<I<W>>(tile + i * 16);
    transpose<W>(columns);
    for (int64_t r = 0; r < count; ++r)
      store(scores + r * kPass + at, (F<W>)columns[active[r].row]);
  }
}

template <class S>
inline void UnitRun<S>::score_tiles(const A* queries, int64_t count, const Span& keys, const B* k,
                                    float* to) {
  const int64_t ldb = p.page * kU, steps = p.dim / 32;
  int64_t at = keys.begin / 32 * 32;
  if (asks_ahead) {
    for (; at < keys.end; at += 32) {
      amx::clear<1, 2>();
      for (int64_t i = 0; i < steps; ++i) {
        amx::step<1, 2>(queries + i * 32, p.dim, k + at * kU + i * 16 * ldb, ldb);
        pieces.ask();
      }
      amx::put<1, 2>(to + at, kPass);
    }
    return;
  }
  const bool wide = count <= 16 && !streams();
  for (; wide && at < keys.end && at + 64 <= pass.chunk; at += 64)
    wide_scores(queries, k + at * kU, to + at);
  const int64_t left = keys.end - at;
  if (passes_by) {
    amx::rows_by_lanes<true>(count, left, to + at, kPass, queries, p.dim, k + at * kU, ldb, steps);
  } else {
    amx::rows_by_lanes(count, left, to + at, kPass, queries, p.dim, k + at * kU, ldb, steps);
  }
}

// 64 channels of up to 16 rows, over the keys of one chunk.
template <class S>
inline void UnitRun<S>::wide_values(float* o, int64_t channel, const Span& keys, int64_t chunk) {
  amx::wide_fetch(o + channel, p.v_dim);
  for (int64_t at = keys.begin / 32 * 32; at < keys.end; at += 32) {
    const B* v = value_at(pass.v[chunk], at, channel);
    amx::wide_step(weights_of(0) + chunk * pass.chunk + at, kWeights, v, v_tile * kU);
  }
  amx::wide_put(o + channel, p.v_dim);
}

// All channels of up to 16 rows, page by page, each in the order of memory.
template <class S>
inline void UnitRun<S>::all_values(const Span& span, float* o) {
  for (int64_t c = 0; c < pass.chunks; ++c) {
    const Span keys = in_chunk(span, c);
    if (keys.begin >= keys.end || pass.v[c] == nullptr) continue;
    for (int64_t channel = 0; channel < p.v_dim; channel += 64) wide_values(o, channel, keys, c);
  }
}

// `o`: outputs of the rows at work, side by side.
template <class S>
template <int R, int C, bool kOnce, bool kAsks>
inline void UnitRun<S>::value_tile(float* o, int64_t r, int64_t channel, const Span& span) {
  float* to = o + r * p.v_dim + channel;
  if (p.blocks != nullptr) {
    amx::clear<R, C>();
  } else {
    amx::fetch<R, C>(to, p.v_dim);
  }
  for (int64_t c = 0; c < pass.chunks; ++c) {
    if (pass.v[c] == nullptr) continue;
    const Span keys = in_chunk(span, c);
    for (int64_t at = keys.begin / 32 * 32; at < keys.end; at += 32) {
      amx::step<R, C, kOnce>(weights_of(r) + c * pass.chunk + at, kWeights,
                             value_at(pass.v[c], at, channel), v_tile * kU);
      if constexpr (kAsks) pieces.ask();
    }
  }
  amx::put<R, C>(to, p.v_dim);
}

// Outputs of the rows at work, shrunk, to `all`.
template <class S>
inline void UnitRun<S>::begin_outputs(const Active* active, int64_t count, float* all,
                                      const float* o) const {
  for (int64_t r = 0; r < count; ++r) {
    const float* from = o + active[r].row * p.v_dim;
    float* to = all + r * p.v_dim;
    if ((fresh >> r & 1) != 0) {
      for (int64_t i = 0; i < p.v_dim; i += W) store(to + i, F<W>{});
    } else if (shrink[r] != 1.0f || to != from) {
      const F<W> by = splat<W>(shrink[r]);
      for (int64_t i = 0; i < p.v_dim; i += W) store(to + i, load<F<W>>(from + i) * by);
    }
  }
}

// The sums of a pass to the outputs of the rows at work.
template <class S>
inline void UnitRun<S>::add_outputs(const Active* active, int64_t count, float* o) const {
  for (int64_t r = 0; r < count; ++r) {
    const float* from = o_sub + r * p.v_dim;
    float* to = o + active[r].row * p.v_dim;
    if ((fresh >> r & 1) != 0) {
      for (int64_t i = 0; i < p.v_dim; i += W) store(to + i, load<F<W>>(from + i));
    } else {
      const F<W> by = splat<W>(shrink[r]);
      for (int64_t i = 0; i < p.v_dim; i += W)
        store(to + i, fma<W>(load<F<W>>(to + i), by, load<F<W>>(from + i)));
    }
  }
}

// Tiles want 16 rows at equal distances: where those at work do not lie so, their outputs are
// gathered, shrunk on the way, and put back. With lists they hardly ever do: a pass is summed by
// itself, and added.
template <class S>
inline void UnitRun<S>::value_tiles(const Active* active, int64_t count, const Span& span,
                                    float* o) {
  const int64_t first = active[0].row;
  const bool adds = p.blocks != nullptr;
  const bool in_place = !adds && count % 16 == 0 && are_neighbours(active, count);
  float* all = in_place ? o + first * p.v_dim : o_sub;
  const bool narrow = count <= 16 && v_tile % 64 == 0 && !streams();
  if (!adds) {
    begin_outputs(active, count, all, o);
  } else if (narrow) {
    std::memset(all, 0, static_cast<size_t>(count * p.v_dim) * sizeof(float));
  }
  if (narrow) all_values(span, all);
  for (int64_t channel = narrow ? p.v_dim : 0; channel < p.v_dim; channel += 32) {
    const bool wide = channel + 32 <= p.v_dim;
    for (int64_t r = 0; r < count; r += 32) {
      const bool tall = r + 16 < count;
      if (tall && wide && passes_by) value_tile<2, 2, true>(all, r, channel, span);
      if (tall && wide && !passes_by) value_tile<2, 2>(all, r, channel, span);
      if (tall && !wide) value_tile<2, 1>(all, r, channel, span);
      if (!tall && wide && asks_ahead) value_tile<1, 2, false, true>(all, r, channel, span);
      if (!tall && wide && !asks_ahead) value_tile<1, 2>(all, r, channel, span);
      if (!tall && !wide) value_tile<1, 1>(all, r, channel, span);
    }
  }
  if (adds) return add_outputs(active, count, o);
  for (int64_t r = 0; !in_place && r < count; ++r) {
    float* to = o + active[r].row * p.v_dim;
    for (int64_t i = 0; i < p.v_dim; i += W) store(to + i, load<F<W>>(o_sub + r * p.v_dim + i));
  }
}

// Keys that pad a step of 32 weigh nothing. (Rows that pad a group of 16 are never read.)
template <class S>
inline void UnitRun<S>::pad_probabilities(int64_t count, const Span& span) {
  if (span.begin % 32 == 0 && span.end % 32 == 0) return;
  for (int64_t r = 0; r < count; ++r) {
    A* to = weights_of(r);
    if (span.begin % 32 != 0) put_probabilities(to + span.begin - W, F<W>{});
    if (span.end % 32 != 0) put_probabilities(to + span.end, F<W>{});
  }
}

#endif

}  // namespace SACCADE_ISA
}  // namespace saccade
