// Paged attention. A row is one (token, head); keys pass by in blocks of kPass positions:
//   scores  S[row][key] = Q rows * K^T panels (straight from the page, lanes are keys)
//   softmax along each row
//   values  O[row][channel] += P rows * V panels (straight from the page, lanes are channels)
// Blocks and segments lie at absolute positions, every sum runs in ascending key order, and a
// masked key adds exactly 0. So a row's bits depend on that row's keys alone: not on the chunk, the
// batch, the tile or the number of threads.
#include "attend.h"

#include <math.h>

#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kFusible = 1 << 24;

SACCADE_INLINE F<W> tanh(F<W> x) {
  const F<W> one = splat<W>(1.0f);
  return one - splat<W>(2.0f) / (exp_any<W>(x + x) + one);
}

SACCADE_INLINE I<W> iota() {
  I<W> v{};
  for (int i = 0; i < W; ++i) v[i] = i;
  return v;
}

// Probabilities as the A operand of the second product: fp32, or bf16 where the machine multiplies
// bf16 pairs.
template <class A>
SACCADE_INLINE void put_probabilities(A* to, F<W> p) {
  if constexpr (sizeof(A) == sizeof(float)) {
    store(to, p);
  } else {
#if defined(__AVX512BF16__)
    store(to, _mm512_cvtneps_pbh((__m512)p));
#endif
  }
}

// What one unit of work (tokens of one sequence x heads of one KV head) does with one arithmetic S.
template <class S, bool kTiles>
struct UnitRun {
  using A = typename S::A;
  using B = typename S::B;
  static constexpr int kU = S::kUnit;

  struct Row {
    int32_t lo, hi, past;  // sees key j: lo <= j < hi, and j > past or j < sinks
    int32_t cursor;        // where in `list` the current pass begins
    uint32_t bits;         // bit i: the list holds the block of keys 16 i .. 16 i + 15 of the pass
    const int32_t* list;
  };
  struct Span {  // offsets in the pass, whole vectors
    int64_t begin, end;
  };

  const AttendParams& p;
  const Unit& u;
  const float to_log2;  // raw score -> log2 units
  int64_t rows, padded;
  Row* info;
  A* q;              // [padded][dim]
  float* scores;     // [kSub][kPass]
  A* probabilities;  // [kSub][kPass]
  float* shrink;     // [kSub]: by how much earlier sums and outputs shrink in this pass
  float* own_partial;
  float* own_total;
  int64_t used;
  Pass<B> pass, next;  // next: the pages to fetch ahead while this pass computes

  UnitRun(const AttendParams& params, const Unit& unit, char* scratch)
      : p(params), u(unit), to_log2(params.softcap > 0 ? 1.0f : params.scale * kLog2E) {
    rows = u.tokens * u.heads;
    padded = kTiles ? (rows + 15) / 16 * 16 : rows;
    Carver carve{scratch};
    info = carve.take<Row>(rows);
    q = carve.take<A>(padded * p.dim);
    scores = carve.take<float>(kSub * kPass);
    probabilities = carve.take<A>(kSub * kPass);
    shrink = carve.take<float>(kSub);
    own_partial = carve.take<float>(partial_floats());
    own_total = carve.take<float>(partial_floats());
    used = carve.at - scratch;
  }

  // A partial result: O [padded][v_dim], then per row W partial sums and the running maximum in
  // log2 units.
  int64_t partial_floats() const { return padded * (p.v_dim + W + 1); }
  float* sums(float* partial) const { return partial + padded * p.v_dim; }
  float* tops(float* partial) const { return partial + padded * (p.v_dim + W); }
  const float* sums(const float* partial) const { return partial + padded * p.v_dim; }
  const float* tops(const float* partial) const { return partial + padded * (p.v_dim + W); }

  int64_t row_of(int64_t r) const { return u.row + r / u.heads; }
  int64_t head_of(int64_t r) const { return u.head + r % u.heads; }

  // ---- set-up ----

  void set_row(int64_t r) {
    Row& row = info[r];
    const int64_t at = row_of(r), position = p.positions[at], limit = p.table_width * p.page;
    const int64_t hi = p.hi != nullptr ? p.hi[at] : position + 1;
    row.hi = static_cast<int32_t>(hi < limit ? hi : limit);  // no key lies beyond the page table
    row.lo = p.lo != nullptr && p.lo[at] > 0 ? p.lo[at] : 0;
    row.past = p.window > 0 ? static_cast<int32_t>(position - p.window) : -1;
    row.cursor = 0;
    row.bits = 0;
    row.list = nullptr;
    if (p.blocks != nullptr) {
      const int64_t owner = p.owners == p.heads ? head_of(r) : u.kv_head;
      row.list = p.blocks + (p.list_of_row[at] * p.owners + owner) * p.list_width;
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

  void prepare() {
    for (int64_t r = 0; r < rows; ++r) {
      set_row(r);
      copy_q(r);
    }
    std::memset(static_cast<void*>(q + rows * p.dim), 0,
                static_cast<size_t>((padded - rows) * p.dim) * sizeof(A));
  }

  void clear(float* partial) const {
    std::memset(partial, 0, static_cast<size_t>(padded * (p.v_dim + W)) * sizeof(float));
    for (int64_t r = 0; r < padded; ++r) tops(partial)[r] = -INFINITY;
  }

  // ---- which keys of the pass a row looks at ----

  Span span_of(const Row& row, int64_t first) const {
    int64_t begin = row.lo, end = row.hi;
    if (p.window > 0 && first >= p.sinks && begin <= row.past) begin = row.past + 1;
    begin = begin > first ? (begin - first) / W * W : 0;
    end = end < first + kPass ? (end - first + W - 1) / W * W : kPass;
    return begin < end && (p.blocks == nullptr || row.bits != 0) ? Span{begin, end} : Span{0, 0};
  }

  bool masked(const Row& row, const Span& span, int64_t first) const {
    return row.lo > first + span.begin || row.hi < first + span.end ||
           (p.window > 0 && row.past >= first + span.begin) || p.blocks != nullptr;
  }

  void mark_blocks(Row& row, int64_t first) const {
    const int32_t* list = row.list;
    int64_t c = row.cursor;
    while (c < p.list_width && list[c] >= 0 && (list[c] + int64_t{1}) * p.block <= first) ++c;
    row.cursor = static_cast<int32_t>(c);
    row.bits = 0;
    for (; c < p.list_width && list[c] >= 0 && list[c] * p.block < first + kPass; ++c) {
      const int64_t from = list[c] * p.block - first, to = from + p.block;
      const int64_t low = from > 0 ? from / 16 : 0, high = to < kPass ? to / 16 : kPass / 16;
      for (int64_t bit = low; bit < high; ++bit) row.bits |= 1u << bit;
    }
  }

  SACCADE_INLINE I<W> seen(const Row& row, int64_t first, int64_t offset) const {
    const I<W> j = iota() + static_cast<int32_t>(first + offset);
    I<W> mask = (j < row.hi) & (j >= row.lo);
    if (p.window > 0) mask &= (j > row.past) | (j < static_cast<int32_t>(p.sinks));
    if (p.blocks != nullptr && ((row.bits >> (offset / 16)) & 1u) == 0) mask = I<W>{};
    return mask;
  }

  // A decode step is a stream of pages: while K is scored, V of the same keys is asked for, and
  // while V is summed, K of the next pass. (Units of many rows compute longer than memory takes.)
  SACCADE_INLINE Ahead ahead_of(const B* from, int64_t elements, int64_t steps) const {
    if (from == nullptr || rows > kStreamRows) return {};
    const int64_t lines = elements * static_cast<int64_t>(sizeof(B)) / 64;
    return {reinterpret_cast<const char*>(from), (lines + steps - 1) / steps};
  }

  // ---- the three stages, for up to kSub rows ----

  struct ScoreBlock {  // kVec vectors of keys
    UnitRun& run;
    const A* q;
    const B* k;
    const B* v;  // of the same keys, wanted next
    float* to;

    template <int M, int NV>
    SACCADE_INLINE void tile(int64_t r, int64_t at) {
      const AttendParams& p = run.p;
      F<W> acc[M][NV] = {};
      const int64_t steps = p.dim / kU;
      product<S, W, NV, M>(acc, q + r * p.dim, p.dim, k + at * kU, p.page * kU, steps,
                           run.ahead_of(v == nullptr || r > 0 ? nullptr : v + at * p.v_dim,
                                        NV * W * p.v_dim, steps));
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) store(to + (r + m) * kPass + at + n * W, acc[m][n]);
    }
  };

  // Scores of `count` rows from `first_row` for the keys of `span`, chunk by chunk of the pass.
  void score(int64_t first_row, int64_t count, const Span& span) {
    for (int64_t c = 0; c < pass.chunks; ++c) {
      const int64_t base = c * pass.chunk;
      const int64_t begin = span.begin > base ? span.begin - base : 0;
      const int64_t end = span.end < base + pass.chunk ? span.end - base : pass.chunk;
      if (begin >= end) continue;
      if (pass.k[c] == nullptr) {
        for (int64_t r = 0; r < count; ++r)
          for (int64_t i = begin; i < end; ++i) scores[r * kPass + base + i] = -INFINITY;
        continue;
      }
      ScoreBlock block{*this, q + first_row * p.dim, pass.k[c], pass.v[c], scores + base};
#if SACCADE_AMX
      if constexpr (kTiles) {
        score_tiles(block, count, begin, end);
        continue;
      }
#endif
      for_tiles<W>(block, count, begin, end);
    }
  }

  struct ValueBlock {
    UnitRun& run;
    const Span& span;
    float* o;
    int64_t first_row;

    template <int M, int NV>
    SACCADE_INLINE void tile(int64_t r, int64_t channel) {
      const AttendParams& p = run.p;
      F<W> acc[M][NV];
      float* to = o + (first_row + r) * p.v_dim + channel;
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) {
          acc[m][n] = load<F<W>>(to + m * p.v_dim + n * W) * splat<W>(run.shrink[r + m]);
        }
      for (int64_t c = 0; c < run.pass.chunks; ++c) {
        const int64_t base = c * run.pass.chunk;
        const int64_t begin = span.begin > base ? span.begin - base : 0;
        const int64_t end = span.end < base + run.pass.chunk ? span.end - base : run.pass.chunk;
        if (begin >= end || run.pass.v[c] == nullptr) continue;
        const int64_t steps = (end - begin) / kU,
                      share = run.pass.chunk * p.dim / p.v_dim;  // K per channel
        const B* k = r > 0 || run.next.k[c] == nullptr ? nullptr : run.next.k[c] + channel * share;
        product<S, W, NV, M>(acc, run.probabilities + r * kPass + base + begin, kPass,
                             run.pass.v[c] + begin * p.v_dim + channel * kU, p.v_dim * kU, steps,
                             run.ahead_of(k, NV * W * share, steps));
      }
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) store(to + m * p.v_dim + n * W, acc[m][n]);
    }
  };

  void values(int64_t first_row, int64_t count, const Span& span, float* o) {
#if SACCADE_AMX
    if constexpr (kTiles) {
      value_tiles(first_row, count, span, o);
      return;
    }
#endif
    ValueBlock block{*this, span, o, first_row};
    const int64_t whole = p.v_dim / W * W;
    for_tiles<W>(block, count, 0, whole);
    if (whole < p.v_dim) value_rest(first_row, count, span, o, whole);
  }

  // Channels beyond the last whole vector, one at a time.
  void value_rest(int64_t first_row, int64_t count, const Span& span, float* o, int64_t channel) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = channel; i < p.v_dim; ++i) {
        float sum = o[(first_row + r) * p.v_dim + i] * shrink[r];
        for (int64_t key = span.begin; key < span.end; ++key) {
          const int64_t c = key / pass.chunk, at = key % pass.chunk;
          if (pass.v[c] == nullptr) continue;
          const B* v = pass.v[c] + at / kU * kU * p.v_dim + i * kU + at % kU;
          const A* weight = probabilities + r * kPass + key;
          sum += S::one(weight) * S::one(v);
        }
        o[(first_row + r) * p.v_dim + i] = sum;
      }
  }

#if SACCADE_AMX
  void score_tiles(const ScoreBlock& block, int64_t count, int64_t begin, int64_t end) {
    const int64_t ldb = p.page * kU;
    for (int64_t at = begin / 32 * 32; at < end; at += 32) {
      const B* k = block.k + at * kU;
      int64_t r = 0;
      for (; r + 16 < count; r += 32) {
        amx::product<2, 2>(block.to + r * kPass + at, kPass, block.q + r * p.dim, p.dim, k, ldb,
                           p.dim / 32);
      }
      if (r < count) {
        amx::product<1, 2>(block.to + r * kPass + at, kPass, block.q + r * p.dim, p.dim, k, ldb,
                           p.dim / 32);
      }
    }
  }

  template <int R, int C>
  void value_tile(int64_t r, int64_t channel, const Span& span, float* o) {
    amx::fetch<R, C>(o, p.v_dim);
    for (int64_t c = 0; c < pass.chunks; ++c) {
      const int64_t base = c * pass.chunk;
      const int64_t begin = span.begin > base ? (span.begin - base) / 32 * 32 : 0;
      const int64_t end = span.end < base + pass.chunk ? span.end - base : pass.chunk;
      if (pass.v[c] == nullptr) continue;
      for (int64_t at = begin; at < end; at += 32) {
        amx::step<R, C>(probabilities + r * kPass + base + at, kPass,
                        pass.v[c] + at * p.v_dim + channel * kU, p.v_dim * kU);
      }
    }
    amx::put<R, C>(o, p.v_dim);
  }

  void value_tiles(int64_t first_row, int64_t count, const Span& span, float* o) {
    for (int64_t r = 0; r < count; ++r) {
      float* row = o + (first_row + r) * p.v_dim;
      for (int64_t i = 0; i < p.v_dim; i += W)
        store(row + i, load<F<W>>(row + i) * splat<W>(shrink[r]));
    }
    for (int64_t channel = 0; channel < p.v_dim; channel += 32) {
      const bool wide = channel + 32 <= p.v_dim;
      for (int64_t r = 0; r < count; r += 32) {
        float* to = o + (first_row + r) * p.v_dim + channel;
        const bool tall = r + 16 < count;
        if (tall && wide) value_tile<2, 2>(r, channel, span, to);
        if (tall && !wide) value_tile<2, 1>(r, channel, span, to);
        if (!tall && wide) value_tile<1, 2>(r, channel, span, to);
        if (!tall && !wide) value_tile<1, 1>(r, channel, span, to);
      }
    }
  }
#endif

  SACCADE_INLINE F<W> capped(F<W> s) const {
    return tanh(s * splat<W>(p.scale / p.softcap)) * splat<W>(p.softcap * kLog2E);
  }

  // Largest score of a row, after mask and cap.
  SACCADE_INLINE float highest(const Row& row, const Span& own, int64_t first, float* s) const {
    const F<W> none = splat<W>(-INFINITY);
    F<W> high = none;
    if (p.softcap > 0) {
      for (int64_t i = own.begin; i < own.end; i += W) {
        store(s + i, pass.k[i / pass.chunk] == nullptr ? none : capped(load<F<W>>(s + i)));
      }
    }
    if (masked(row, own, first)) {
      for (int64_t i = own.begin; i < own.end; i += W) {
        store(s + i, seen(row, first, i) ? load<F<W>>(s + i) : none);
      }
    }
    for (int64_t i = own.begin; i < own.end; i += W) high = max<W>(high, load<F<W>>(s + i));
    return max_lanes<W>(high);
  }

  // Scores of one row -> probabilities over `span`; keeps the row's maximum and sums.
  SACCADE_INLINE void softmax_row(int64_t first_row, int64_t r, int64_t first, const Span& span,
                                  float* partial) {
    const Row& row = info[first_row + r];
    float* s = scores + r * kPass;
    A* to = probabilities + r * kPass;
    float* top = tops(partial) + first_row + r;
    float* sum = sums(partial) + (first_row + r) * W;
    const Span own = span_of(row, first);
    for (int64_t i = span.begin; i < own.begin; i += W) put_probabilities(to + i, F<W>{});
    for (int64_t i = own.begin > own.end ? span.begin : own.end; i < span.end; i += W) {
      put_probabilities(to + i, F<W>{});
    }
    const float high = highest(row, own, first, s) * to_log2;
    const float now = *top > high ? *top : high;
    const float base = now == -INFINITY ? 0.0f : now;
    shrink[r] = exp2_nonpositive<4>(splat<4>(*top - base))[0];
    const F<W> factor = splat<W>(to_log2), minus = splat<W>(-base);
    F<W> total{};
    // Beyond this size the rounding of `base` alone could make an exponent that is fused far too
    // large.
    const bool huge = base > kFusible || base < -kFusible;
    for (int64_t i = own.begin; i < own.end; i += W) {
      const F<W> x = load<F<W>>(s + i);
      const F<W> e = exp2_nonpositive<W>(huge ? x * factor + minus : fma<W>(x, factor, minus));
      total += e;
      put_probabilities(to + i, e);
    }
    store(sum, fma<W>(load<F<W>>(sum), splat<W>(shrink[r]), total));
    *top = now;
  }

  // ---- a segment of keys, and what becomes of it ----

  void attend_rows(int64_t first_row, int64_t count, int64_t first, const Span& span,
                   float* partial) {
    score(first_row, count, span);
    for (int64_t r = 0; r < count; ++r) softmax_row(first_row, r, first, span, partial);
    if constexpr (kTiles) {  // rows that pad a tile, and keys that pad a step, weigh nothing
      for (int64_t r = 0; r < (count + 15) / 16 * 16; ++r) {
        A* to = probabilities + r * kPass;
        if (r >= count) std::memset(static_cast<void*>(to), 0, kPass * sizeof(A));
        for (int64_t i = span.begin / 32 * 32; i < span.begin; i += W)
          put_probabilities(to + i, F<W>{});
        for (int64_t i = span.end; i < (span.end + 31) / 32 * 32; i += W)
          put_probabilities(to + i, F<W>{});
      }
    }
    values(first_row, count, span, partial);
  }

  void attend_pass(int64_t first, float* partial) {
    bool located = false;
    for (int64_t first_row = 0; first_row < rows; first_row += kSub) {
      const int64_t count = rows - first_row < kSub ? rows - first_row : kSub;
      Span span{kPass, 0};
      for (int64_t r = first_row; r < first_row + count; ++r) {
        if (p.blocks != nullptr) mark_blocks(info[r], first);
        const Span own = span_of(info[r], first);
        if (own.begin >= own.end) continue;
        if (own.begin < span.begin) span.begin = own.begin;
        if (own.end > span.end) span.end = own.end;
      }
      if (span.begin >= span.end) continue;
      if (!located) {
        pass.locate(p, u, first);
        next.locate(p, u, first + kPass);
      }
      located = true;
      attend_rows(first_row, count, first, span, partial);
    }
  }

  // The partial result over the keys of [begin, end), a segment.
  void attend_segment(int64_t begin, int64_t end, float* partial) {
    clear(partial);
    for (int64_t first = begin; first < end && first < u.hi; first += kPass) {
      const bool between = p.window > 0 && first >= p.sinks && first + kPass <= u.window_begin;
      if (!between) attend_pass(first, partial);
    }
  }

  void merge_into(float* total, const float* partial) const {
    for (int64_t r = 0; r < rows; ++r) {
      float* top = tops(total) + r;
      const float other = tops(partial)[r];
      const float now = *top > other ? *top : other, base = now == -INFINITY ? 0.0f : now;
      const F<W> keep = splat<W>(exp2_nonpositive<4>(splat<4>(*top - base))[0]);
      const F<W> add = splat<W>(exp2_nonpositive<4>(splat<4>(other - base))[0]);
      float* to = total + r * p.v_dim;
      const float* from = partial + r * p.v_dim;
      for_vectors<W>(
          p.v_dim,
          [&](int64_t i) {
            store(to + i, fma<W>(load<F<W>>(from + i), add, load<F<W>>(to + i) * keep));
          },
          [&](int64_t i) { to[i] = from[i] * add[0] + to[i] * keep[0]; });
      float* sum = sums(total) + r * W;
      store(sum, fma<W>(load<F<W>>(sums(partial) + r * W), add, load<F<W>>(sum) * keep));
      *top = now;
    }
  }

  template <class E>
  void put_rows(const float* total) const {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = row_of(r) * p.heads + head_of(r);
      float top = tops(total)[r], sum = sum_lanes<W>(load<F<W>>(sums(total) + r * W)), keep = 1.0f;
      if (p.sink_logits != nullptr) {
        const float sink = p.sink_logits[head_of(r)] * kLog2E, now = top > sink ? top : sink;
        const float base = now == -INFINITY ? 0.0f : now;
        keep = exp2f(top - base);
        sum = sum * keep + exp2f(sink - base);
        top = now;
      }
      const float factor = sum == 0.0f ? 0.0f : keep / sum;
      const float* o = total + r * p.v_dim;
      typename E::T* out = static_cast<typename E::T*>(p.out) + at * p.v_dim;
      for_vectors<W>(
          p.v_dim,
          [&](int64_t i) { E::template put<W>(out + i, load<F<W>>(o + i) * splat<W>(factor)); },
          [&](int64_t i) { put_one<E>(out + i, o[i] * factor); });
      p.lse[at] = sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
    }
  }

  void finish(const float* total) const {
    if (p.out_dtype == DType::kF32) put_rows<ElementF32>(total);
    if (p.out_dtype == DType::kBF16) put_rows<ElementBF16>(total);
    if (p.out_dtype == DType::kF16) put_rows<ElementF16>(total);
  }
};

// The entry points of one UnitRun as plain functions, so that the driver is compiled once.
template <class Run, bool kTiles>
struct Entry {
  static int64_t scratch_bytes(const AttendParams& p, const Unit& u) {
    return Run(p, u, nullptr).used;
  }
  static int64_t partial_floats(const AttendParams& p, const Unit& u) {
    return Run(p, u, nullptr).partial_floats();
  }
  static void whole(const AttendParams& p, const Unit& u, char* scratch) {
    Run run(p, u, scratch);
    const TileScope<kTiles> tiles;
    run.prepare();
    run.clear(run.own_total);
    for (int64_t at = u.first_segment; at < u.last_segment; ++at) {
      if (!may_see(p, u, at)) continue;
      run.attend_segment(at * kSegment, (at + 1) * kSegment, run.own_partial);
      run.merge_into(run.own_total, run.own_partial);
    }
    run.finish(run.own_total);
  }
  static void segment(const AttendParams& p, const Unit& u, int64_t at, char* scratch,
                      float* partial) {
    Run run(p, u, scratch);
    const TileScope<kTiles> tiles;
    run.prepare();
    run.attend_segment(at * kSegment, (at + 1) * kSegment, partial);
  }
  static void clear(const AttendParams& p, const Unit& u, float* total) {
    Run(p, u, nullptr).clear(total);
  }
  static void merge(const AttendParams& p, const Unit& u, float* total, const float* partial) {
    Run(p, u, nullptr).merge_into(total, partial);
  }
  static void finish(const AttendParams& p, const Unit& u, const float* total) {
    Run(p, u, nullptr).finish(total);
  }
  static UnitOps ops() {
    return {scratch_bytes, partial_floats, whole, segment, clear, merge, finish};
  }
};

UnitOps choose_ops(const AttendParams& p) {
  if (p.dtype == DType::kF32) return Entry<UnitRun<StepF32, false>, false>::ops();
  if (p.dtype == DType::kF16) return Entry<UnitRun<StepF16, false>, false>::ops();
#if SACCADE_AMX
  if (p.dim % 32 == 0 && p.v_dim % 16 == 0 && p.page % 32 == 0)
    return Entry<UnitRun<StepBF16, true>, true>::ops();
#endif
#if defined(__AVX512BF16__)
  return Entry<UnitRun<StepBF16, false>, false>::ops();
#else
  return Entry<UnitRun<StepPairs, false>, false>::ops();
#endif
}

}  // namespace

void attend(const AttendParams& p, ThreadPool& pool) {
  const UnitPlan plan(p);
  if (plan.count() > 0) run_units(p, plan, choose_ops(p), pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
