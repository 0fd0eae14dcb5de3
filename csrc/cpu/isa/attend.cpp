// Paged attention. A lane of a vector is one query row: (token, head). Keys pass by in blocks of kPass positions:
//   scores  S^T[key][lane] = K rows (straight from the page) * Q^T
//   softmax down the keys of each lane
//   values  O^T[channel][lane] += V^T rows (straight from the page) * P^T
// Blocks and segments lie at absolute positions, sums run in ascending key order, and a masked key adds exactly 0.
// So a row's bits depend on that row's keys alone: not on the chunk, the batch, the tile or the number of threads.
#include "attend.h"

#include <math.h>

#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <int W>
SACCADE_INLINE F<W> tanh(F<W> x) {
  const F<W> one = splat<W>(1.0f);
  return one - splat<W>(2.0f) / (exp_any<W>(x + x) + one);
}

// Rows of P^T as the B operand of the second product: fp32, or bf16 pairs of consecutive keys.
template <class S, int W>
SACCADE_INLINE void put_probabilities(typename S::B* to, F<W> even, F<W> odd, int64_t lanes) {
  if constexpr (S::kUnit == 1) {
    store(to, even);
    store(to + lanes, odd);
  } else {
#if defined(__AVX512BF16__)
    if constexpr (W == 16) {
      alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
      store(to, _mm512_permutexvar_epi16(_mm512_load_si512(order), both));
    } else {
      alignas(32) static const uint16_t order[16] = {0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15};
      const __m256i both = (__m256i)_mm256_cvtne2ps_pbh((__m256)odd, (__m256)even);
      store(to, _mm256_permutexvar_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(order)), both));
    }
#endif
  }
}

// What one unit of work (tokens of one sequence x heads of one KV head) does, for one arithmetic S and lane width.
template <class S, int W, int NV, bool kTiles>
struct UnitRun {
  static constexpr int L = W * NV;
  // Tile instructions take 32 rows at a time, register tiles 8.
  static constexpr int64_t kGrain = kTiles ? 32 : 8;
  using A = typename S::A;
  using B = typename S::B;

  struct Lanes {  // one group of L rows
    alignas(64) int32_t hi[L], lo[L], past[L];  // a row sees key j: lo <= j < hi, and j > past or j < sinks
    alignas(64) uint32_t bits[L];               // blocks of the current pass that the row's list holds
    const int32_t* list[L];
    int32_t cursor[L];
    int32_t min_lo, max_lo, min_hi, max_hi, min_past, max_past;
  };

  const AttendParams& p;
  const Unit& u;
  const float to_log2;  // raw score -> log2 units
  int64_t lanes, groups;
  Lanes* info;
  B* q;
  float* scores;
  B* probabilities;
  float *k_wide, *v_wide;
  float* own_partial;
  float* own_total;
  Pass<A> pass;

  UnitRun(const AttendParams& params, const Unit& unit, char* scratch)
      : p(params), u(unit), to_log2(params.softcap > 0 ? 1.0f : params.scale * kLog2E) {
    lanes = u.tokens * u.heads;
    groups = (lanes + L - 1) / L;
    Carver carve{scratch};
    info = carve.take<Lanes>(groups);
    q = carve.take<B>(groups * p.dim * L);
    scores = carve.take<float>(kPass * L);
    probabilities = carve.take<B>(kPass * L);
    k_wide = carve.take<float>(converts() ? kPass * p.dim : 0);
    v_wide = carve.take<float>(converts() ? kPass * p.v_dim : 0);
    own_partial = carve.take<float>(partial_floats());
    own_total = carve.take<float>(partial_floats());
    used = carve.at - scratch;
  }
  int64_t used;

  bool converts() const { return sizeof(A) != static_cast<size_t>(size_of(p.dtype)); }
  // Per group: O^T [v_dim][L], then the running maximum [L] (log2 units), then the sum [L].
  int64_t group_floats() const { return (p.v_dim + 2) * L; }
  int64_t partial_floats() const { return groups * group_floats(); }

  // ---- set-up: bounds of each lane, and Q^T ----

  void set_lane(Lanes& g, int at, int64_t lane) {
    const int64_t row = u.row + lane / u.heads, head = u.head + lane % u.heads;
    const int64_t position = p.positions[row];
    g.hi[at] = p.hi != nullptr ? p.hi[row] : static_cast<int32_t>(position + 1);
    g.lo[at] = p.lo != nullptr && p.lo[row] > 0 ? p.lo[row] : 0;
    const int64_t limit = p.table_width * p.page;  // no key lies beyond the page table
    if (g.hi[at] > limit) g.hi[at] = static_cast<int32_t>(limit);
    g.past[at] = p.window > 0 ? static_cast<int32_t>(position - p.window) : -1;
    g.cursor[at] = 0;
    g.list[at] = nullptr;
    if (p.blocks != nullptr) {
      const int64_t owner = p.owners == p.heads ? head : u.kv_head;
      g.list[at] = p.blocks + (p.list_of_row[row] * p.owners + owner) * p.list_width;
    }
  }

  void pack_q(int64_t group, int at, int64_t lane) {
    const int64_t row = u.row + lane / u.heads, head = u.head + lane % u.heads;
    const int64_t offset = row * p.q_row + head * p.q_head;
    B* to = q + group * p.dim * L + at * S::kUnit;
    if constexpr (S::kUnit == 2) {
      const uint16_t* from = static_cast<const uint16_t*>(p.q) + offset;
      for (int64_t c = 0; c < p.dim; c += 2) std::memcpy(to + c * L, from + c, 4);
    } else if (p.dtype == DType::kF32) {
      const float* from = static_cast<const float*>(p.q) + offset;
      for (int64_t c = 0; c < p.dim; ++c) to[c * L] = from[c];
    } else {
      const uint16_t* from = static_cast<const uint16_t*>(p.q) + offset;
      const bool bf16 = p.dtype == DType::kBF16;
      for (int64_t c = 0; c < p.dim; ++c) {
        to[c * L] = bf16 ? widen_bf16(from[c]) : get_one<ElementF16>(from + c);
      }
    }
  }

  void prepare() {
    for (int64_t group = 0; group < groups; ++group) {
      Lanes& g = info[group];
      for (int at = 0; at < L; ++at) {
        // Spare lanes repeat the last row, so that they never widen or narrow what the group sees.
        const int64_t lane = group * L + at < lanes ? group * L + at : lanes - 1;
        set_lane(g, at, lane);
        pack_q(group, at, lane);
      }
      g.min_lo = g.max_lo = g.lo[0];
      g.min_hi = g.max_hi = g.hi[0];
      g.min_past = g.max_past = g.past[0];
      for (int at = 1; at < L; ++at) {
        if (g.lo[at] < g.min_lo) g.min_lo = g.lo[at];
        if (g.lo[at] > g.max_lo) g.max_lo = g.lo[at];
        if (g.hi[at] < g.min_hi) g.min_hi = g.hi[at];
        if (g.hi[at] > g.max_hi) g.max_hi = g.hi[at];
        if (g.past[at] < g.min_past) g.min_past = g.past[at];
        if (g.past[at] > g.max_past) g.max_past = g.past[at];
      }
    }
  }

  void clear(float* partial) const {
    for (int64_t group = 0; group < groups; ++group) {
      float* o = partial + group * group_floats();
      std::memset(o, 0, static_cast<size_t>(group_floats()) * sizeof(float));
      for (int at = 0; at < L; ++at) o[p.v_dim * L + at] = -INFINITY;
    }
  }

  // ---- which keys of the pass a group looks at ----

  struct Span {
    int64_t begin, end;  // offsets in the pass, whole grains
    bool masked;
  };

  Span span_of(const Lanes& g, int64_t first) const {
    const int64_t last = first + kPass;
    int64_t begin = g.min_lo, end = g.max_hi;
    if (p.window > 0 && first >= p.sinks && begin <= g.min_past) begin = g.min_past + 1;
    begin = begin > first ? begin : first;
    end = end < last ? end : last;
    if (begin >= end) return {0, 0, false};
    begin = (begin - first) / kGrain * kGrain;
    end = (end - first + kGrain - 1) / kGrain * kGrain;
    const bool masked = g.max_lo > first + begin || g.min_hi < first + end ||
                        (p.window > 0 && g.max_past >= first + begin) || p.blocks != nullptr;
    return {begin, end, masked};
  }

  // Marks which blocks of this pass each lane's list holds; false when none does. Bit i: keys 16 i .. 16 i + 15.
  bool mark_blocks(Lanes& g, int64_t first) const {
    bool any = false;
    for (int at = 0; at < L; ++at) {
      const int32_t* list = g.list[at];
      int64_t c = g.cursor[at];
      if (c > 0 && static_cast<int64_t>(list[c - 1] + 1) * p.block > first) c = 0;  // a new unit went back
      while (c < p.list_width && list[c] >= 0 && (list[c] + int64_t{1}) * p.block <= first) ++c;
      g.cursor[at] = static_cast<int32_t>(c);
      uint32_t bits = 0;
      for (; c < p.list_width && list[c] >= 0 && list[c] * p.block < first + kPass; ++c) {
        const int64_t from = list[c] * p.block - first, to = from + p.block;
        const int64_t low = from > 0 ? from / 16 : 0, high = to < kPass ? to / 16 : kPass / 16;
        for (int64_t bit = low; bit < high; ++bit) bits |= 1u << bit;
      }
      g.bits[at] = bits;
      any |= bits != 0;
    }
    return any;
  }

  // ---- the three stages ----

  void score(const Span& span, const B* qt) {
    for (int64_t c = 0; c < pass.chunks; ++c) {
      const int64_t begin = span.begin > c * pass.chunk ? span.begin : c * pass.chunk;
      const int64_t end = span.end < (c + 1) * pass.chunk ? span.end : (c + 1) * pass.chunk;
      for (int64_t r = begin; r < end; r += kGrain) {
        float* to = scores + r * L;
        if (pass.k[c] == nullptr) {
          for (int64_t i = 0; i < kGrain * L; ++i) to[i] = -INFINITY;
          continue;
        }
        const A* rows = pass.k[c] + (r - c * pass.chunk) * p.dim;
#if SACCADE_AMX
        if constexpr (kTiles) {
          amx::product<2, L / 16>(to, L, rows, p.dim, qt, 2 * L, p.dim / 32);
          continue;
        }
#endif
        F<W> acc[8][NV] = {};
        product<S, W, NV, 8>(acc, rows, p.dim, qt, L * S::kUnit, p.dim / S::kUnit);
        for (int m = 0; m < 8; ++m)
          for (int n = 0; n < NV; ++n) store(to + m * L + n * W, acc[m][n]);
      }
    }
  }

  SACCADE_INLINE F<W> capped(F<W> s) const {
    return tanh<W>(s * splat<W>(p.scale / p.softcap)) * splat<W>(p.softcap * kLog2E);
  }

  SACCADE_INLINE I<W> seen(const Lanes& g, int n, int64_t key, int64_t offset) const {
    const I<W> j = splat_int<W>(static_cast<int32_t>(key));
    I<W> mask = (j < load<I<W>>(g.hi + n * W)) & (j >= load<I<W>>(g.lo + n * W));
    if (p.window > 0 && key >= p.sinks) mask &= j > load<I<W>>(g.past + n * W);
    if (p.blocks != nullptr) {
      const U<W> bits = load<U<W>>(g.bits + n * W) >> static_cast<uint32_t>(offset / 16);
      mask &= (I<W>)(bits & 1u) != I<W>{};
    }
    return mask;
  }

  // Turns scores into probabilities; returns the factors by which earlier sums and outputs shrink.
  void softmax(const Lanes& g, const Span& span, int64_t first, float* top, float* sum, F<W> (&shrink)[NV]) {
    const F<W> none = splat<W>(-INFINITY);
    for (int n = 0; n < NV; ++n) {
      F<W> high = none;
      float* column = scores + n * W;
      if (span.masked || p.softcap > 0) {
        for (int64_t r = span.begin; r < span.end; ++r) {
          F<W> s = load<F<W>>(column + r * L);
          if (p.softcap > 0) s = capped(s);
          if (span.masked) s = seen(g, n, first + r, r) ? s : none;
          store(column + r * L, s);
          high = max<W>(high, s);
        }
      } else {
        for (int64_t r = span.begin; r < span.end; ++r) high = max<W>(high, load<F<W>>(column + r * L));
      }
      const F<W> factor = splat<W>(to_log2), old = load<F<W>>(top + n * W);
      const F<W> now = max<W>(old, high * factor);
      const F<W> base = now == none ? F<W>{} : now;
      shrink[n] = exp2_nonpositive<W>(old - base);
      F<W> even_sum{}, odd_sum{};
      for (int64_t r = span.begin; r < span.end; r += 2) {
        const F<W> even = exp2_nonpositive<W>(fma<W>(load<F<W>>(column + r * L), factor, -base));
        const F<W> odd = exp2_nonpositive<W>(fma<W>(load<F<W>>(column + r * L + L), factor, -base));
        even_sum += even;
        odd_sum += odd;
        put_probabilities<S, W>(probabilities + r * L + n * W * S::kUnit, even, odd, L);
      }
      store(sum + n * W, fma<W>(load<F<W>>(sum + n * W), shrink[n], even_sum + odd_sum));
      store(top + n * W, now);
    }
  }

  struct ValueRows {  // O^T rows of M channels
    const UnitRun& run;
    const Span& span;
    float* o;
    const F<W> (&shrink)[NV];

    template <int M>
    SACCADE_INLINE void run_block(int64_t channel) {
      F<W> acc[M][NV];
      float* rows = o + channel * L;
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) acc[m][n] = load<F<W>>(rows + m * L + n * W) * shrink[n];
      const auto& pass = run.pass;
      for (int64_t c = 0; c < pass.chunks; ++c) {
        const int64_t begin = span.begin > c * pass.chunk ? span.begin : c * pass.chunk;
        const int64_t end = span.end < (c + 1) * pass.chunk ? span.end : (c + 1) * pass.chunk;
        if (begin >= end || pass.v[c] == nullptr) continue;
        product<S, W, NV, M>(acc, pass.v[c] + channel * pass.v_row + (begin - c * pass.chunk), pass.v_row,
                             run.probabilities + begin * L, L * S::kUnit, (end - begin) / S::kUnit);
      }
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < NV; ++n) store(rows + m * L + n * W, acc[m][n]);
    }
  };

#if SACCADE_AMX
  template <int R>
  void value_tiles(const Span& span, float* rows, int64_t channel) {
    amx::fetch<R, L / 16>(rows, L);
    for (int64_t c = 0; c < pass.chunks; ++c) {
      const int64_t begin = span.begin > c * pass.chunk ? span.begin : c * pass.chunk;
      const int64_t end = span.end < (c + 1) * pass.chunk ? span.end : (c + 1) * pass.chunk;
      if (pass.v[c] == nullptr) continue;
      for (int64_t r = begin; r < end; r += 32) {
        const A* v = pass.v[c] + channel * pass.v_row + (r - c * pass.chunk);
        amx::step<R, L / 16>(v, pass.v_row, probabilities + r * L, 2 * L);
      }
    }
    amx::put<R, L / 16>(rows, L);
  }
#endif

  void values(const Span& span, float* o, const F<W> (&shrink)[NV]) {
#if SACCADE_AMX
    if constexpr (kTiles) {
      for (int64_t i = 0; i < p.v_dim; ++i) {
        for (int n = 0; n < NV; ++n) store(o + i * L + n * W, load<F<W>>(o + i * L + n * W) * shrink[n]);
      }
      int64_t channel = 0;
      for (; channel + 32 <= p.v_dim; channel += 32) value_tiles<2>(span, o + channel * L, channel);
      if (channel < p.v_dim) value_tiles<1>(span, o + channel * L, channel);
      return;
    }
#endif
    ValueRows rows{*this, span, o, shrink};
    int64_t i = 0;
    for (; i + 8 <= p.v_dim; i += 8) rows.template run_block<8>(i);
    for (; i + 2 <= p.v_dim; i += 2) rows.template run_block<2>(i);
    for (; i < p.v_dim; ++i) rows.template run_block<1>(i);
  }

  // ---- a segment of keys, and what becomes of it ----

  void attend_pass(int64_t first, float* partial) {
    bool located = false;
    for (int64_t group = 0; group < groups; ++group) {
      Lanes& g = info[group];
      const Span span = span_of(g, first);
      if (span.begin >= span.end || (p.blocks != nullptr && !mark_blocks(g, first))) continue;
      if (!located) {
        pass.locate(p, u, first, k_wide, v_wide, converts());
        located = true;
      }
      float* o = partial + group * group_floats();
      F<W> shrink[NV];
      score(span, q + group * p.dim * L);
      softmax(g, span, first, o + p.v_dim * L, o + (p.v_dim + 1) * L, shrink);
      values(span, o, shrink);
    }
  }

  // The partial result over the keys of [begin, end), a segment.
  void attend_segment(int64_t begin, int64_t end, float* partial) {
    clear(partial);
    const int64_t past = p.positions[u.row] - p.window + 1;  // rows ascend: the first row sees furthest back
    for (int64_t first = begin; first < end; first += kPass) {
      if (p.window > 0 && first >= p.sinks && first + kPass <= past) {
        first = past / kPass * kPass - kPass;
        continue;
      }
      attend_pass(first, partial);
    }
  }

  void merge_into(float* total, const float* partial) const {
    for (int64_t group = 0; group < groups; ++group) {
      float* to = total + group * group_floats();
      const float* from = partial + group * group_floats();
      for (int n = 0; n < NV; ++n) {
        const int64_t top = p.v_dim * L + n * W, sum = top + L;
        const F<W> none = splat<W>(-INFINITY);
        const F<W> a = load<F<W>>(to + top), b = load<F<W>>(from + top);
        const F<W> now = max<W>(a, b), base = now == none ? F<W>{} : now;
        const F<W> keep = exp2_nonpositive<W>(a - base), add = exp2_nonpositive<W>(b - base);
        for (int64_t i = 0; i < p.v_dim; ++i) {
          float* at = to + i * L + n * W;
          store(at, fma<W>(load<F<W>>(from + i * L + n * W), add, load<F<W>>(at) * keep));
        }
        store(to + sum, fma<W>(load<F<W>>(from + sum), add, load<F<W>>(to + sum) * keep));
        store(to + top, now);
      }
    }
  }

  template <class E>
  void put_rows(const float* total) const {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float* o = total + lane / L * group_floats() + lane % L;
      const int64_t row = u.row + lane / u.heads, head = u.head + lane % u.heads;
      float top = o[p.v_dim * L], sum = o[(p.v_dim + 1) * L], keep = 1.0f;
      if (p.sink_logits != nullptr) {
        const float sink = p.sink_logits[head] * kLog2E, now = top > sink ? top : sink;
        keep = exp2f(top - now);
        sum = sum * keep + exp2f(sink - now);
        top = now;
      }
      const float factor = sum == 0.0f ? 0.0f : keep / sum;
      typename E::T* out = static_cast<typename E::T*>(p.out) + (row * p.heads + head) * p.v_dim;
      float four[W];
      for_vectors<W>(
          p.v_dim,
          [&](int64_t i) {
            for (int e = 0; e < W; ++e) four[e] = o[(i + e) * L];
            E::template put<W>(out + i, load<F<W>>(four) * splat<W>(factor));
          },
          [&](int64_t i) { put_one<E>(out + i, o[i * L] * factor); });
      p.lse[row * p.heads + head] = sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
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
  static int64_t scratch_bytes(const AttendParams& p, const Unit& u) { return Run(p, u, nullptr).used; }
  static int64_t partial_floats(const AttendParams& p, const Unit& u) { return Run(p, u, nullptr).partial_floats(); }
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
  static void segment(const AttendParams& p, const Unit& u, int64_t at, char* scratch, float* partial) {
    Run run(p, u, scratch);
    const TileScope<kTiles> tiles;
    run.prepare();
    run.attend_segment(at * kSegment, (at + 1) * kSegment, partial);
  }
  static void clear(const AttendParams& p, const Unit& u, float* total) { Run(p, u, nullptr).clear(total); }
  static void merge(const AttendParams& p, const Unit& u, float* total, const float* partial) {
    Run(p, u, nullptr).merge_into(total, partial);
  }
  static void finish(const AttendParams& p, const Unit& u, const float* total) { Run(p, u, nullptr).finish(total); }
  static UnitOps ops() { return {scratch_bytes, partial_floats, whole, segment, clear, merge, finish}; }
};

template <class S, bool kTiles>
UnitOps ops_for_lanes(int64_t lanes) {
  // Few rows (a decode step) take narrow vectors: the same bits in less work.
  if constexpr (kWidth == 16 && !kTiles) {
    if (lanes <= 8) return Entry<UnitRun<S, 8, 1, false>, false>::ops();
  }
  if (lanes <= kWidth) return Entry<UnitRun<S, kWidth, 1, kTiles>, kTiles>::ops();
  return Entry<UnitRun<S, kWidth, 2, kTiles>, kTiles>::ops();
}

UnitOps choose_ops(const AttendParams& p, int64_t lanes) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::kBF16) {
#if SACCADE_AMX
    if (p.dim % 32 == 0 && p.v_dim % 16 == 0 && p.page % 32 == 0) return ops_for_lanes<StepBF16, true>(lanes);
#endif
    return ops_for_lanes<StepBF16, false>(lanes);
  }
#else
  (void)p;
#endif
  return ops_for_lanes<StepF32, false>(lanes);
}

}  // namespace

void attend(const AttendParams& p, ThreadPool& pool) {
  const UnitPlan plan(p);
  if (plan.count() > 0) run_units(p, plan, choose_ops, pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
