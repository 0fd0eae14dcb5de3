// The register tile of every matrix product here: C[M][NV vectors] += A[M][k] * B[k][NV vectors], A
// broadcast. Each lane sums over k in ascending order, so a result does not depend on M, NV or the
// vector width.
#pragma once
#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

// A policy says what one step of k is: elements of A and B it consumes, and how to multiply them.

struct StepF32 {  // fp32 * fp32
  using A = float;
  using B = float;
  static constexpr int kUnit = 1;
  static SACCADE_INLINE float one(const float* x) { return *x; }
  template <int W>
  struct Wide {
    F<W> v;
  };
  template <int W>
  static SACCADE_INLINE Wide<W> wide(const B* b) {
    return {load<F<W>>(b)};
  }
  template <int W>
  static SACCADE_INLINE Wide<W> broadcast(const A* a) {
    return {splat<W>(*a)};
  }
  template <int W>
  static SACCADE_INLINE F<W> multiply(F<W> c, const Wide<W>& a, const Wide<W>& b) {
    return fma<W>(a.v, b.v, c);
  }
};

struct StepF16 : StepF32 {  // fp32 * fp16 (B widened on load)
  using B = uint16_t;
  using StepF32::one;
  static SACCADE_INLINE float one(const uint16_t* x) { return get_one<ElementF16>(x); }
  template <int W>
  static SACCADE_INLINE Wide<W> wide(const B* b) {
    return {widen_f16<W>(b)};
  }
};

struct StepPairs {  // fp32 pairs * bf16 pairs, for machines without a bf16 dot product
  using A = float;
  using B = uint16_t;
  static constexpr int kUnit = 2;
  static SACCADE_INLINE float one(const float* x) { return *x; }
  static SACCADE_INLINE float one(const uint16_t* x) { return widen_bf16(*x); }
  template <int W>
  struct Wide {
    F<W> even, odd;
  };
  template <int W>
  static SACCADE_INLINE Wide<W> wide(const B* b) {
    const U<W> pairs = load<U<W>>(b);
    return {(F<W>)(pairs << 16), (F<W>)(pairs & 0xffff0000u)};
  }
  template <int W>
  static SACCADE_INLINE Wide<W> broadcast(const A* a) {
    return {splat<W>(a[0]), splat<W>(a[1])};
  }
  template <int W>
  static SACCADE_INLINE F<W> multiply(F<W> c, const Wide<W>& a, const Wide<W>& b) {
    return fma<W>(a.odd, b.odd, fma<W>(a.even, b.even, c));
  }
};

#if defined(__AVX512BF16__)
struct StepBF16 {  // bf16 pairs * bf16 pairs by the machine's dot product
  using A = uint16_t;
  using B = uint16_t;
  static constexpr int kUnit = 2;
  static SACCADE_INLINE float one(const uint16_t* x) { return widen_bf16(*x); }
  template <int W>
  struct Wide {
    I<W> v;
  };
  template <int W>
  static SACCADE_INLINE Wide<W> wide(const B* b) {
    return {load<I<W>>(b)};
  }
  template <int W>
  static SACCADE_INLINE Wide<W> broadcast(const A* a) {
    int32_t pair;
    std::memcpy(&pair, a, 4);
    return {pair - I<W>{}};
  }
  template <int W>
  static SACCADE_INLINE F<W> multiply(F<W> c, const Wide<W>& a, const Wide<W>& b) {
    if constexpr (W == 16) return (F<W>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a.v, (__m512bh)b.v);
    if constexpr (W == 8) return (F<W>)_mm256_dpbf16_ps((__m256)c, (__m256bh)a.v, (__m256bh)b.v);
  }
};
#endif

// Memory to ask for while a product runs: `lines` cache lines per step of k, `gap` bytes apart, the
// first of them from `at` on. Null: none. Several streams at a time let the processor's own
// prefetcher run ahead in each of them; one stream waits for the few lines a core asks for at once.
struct Ahead {
  const char* at = nullptr;
  int64_t lines = 0, gap = 0;
  // Or scattered memory: `count` rows of `bytes` bytes, one behind the other.
  const char* const* rows = nullptr;
  int64_t count = 0, bytes = 0;

  // `bytes` from `from` on, over `steps` steps.
  static Ahead over(const void* from, int64_t bytes, int64_t steps) {
    return {static_cast<const char*>(from), (bytes / 64 + steps - 1) / steps, steps * 64};
  }
};

// C += A * B for `steps` steps of k. lda: elements between rows of A; ldb: elements between steps
// of B.
template <class S, int W, int NV, int M>
SACCADE_INLINE void product(F<W> (&c)[M][NV], const typename S::A* a, int64_t lda,
                            const typename S::B* b, int64_t ldb, int64_t steps, Ahead ahead = {}) {
  int64_t row = 0, offset = 0;
  for (int64_t k = 0; k < steps; ++k) {
    for (int64_t line = 0; line < ahead.lines; ++line) {
      if (ahead.rows == nullptr) {
        __builtin_prefetch(ahead.at + line * ahead.gap + k * 64, 0, 1);
        continue;
      }
      if (row < ahead.count) __builtin_prefetch(ahead.rows[row] + offset, 0, 1);
      offset += 64;
      if (offset >= ahead.bytes) offset = 0, ++row;
    }
    typename S::template Wide<W> wide[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) wide[n] = S::template wide<W>(b + k * ldb + n * W * S::kUnit);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const auto scalar = S::template broadcast<W>(a + m * lda + k * S::kUnit);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) c[m][n] = S::template multiply<W>(c[m][n], scalar, wide[n]);
    }
  }
}

// Calls fn.template run<M>(first) over [0, n) in blocks of 8 rows, then 4, 2, 1.
template <class Fn>
SACCADE_INLINE void for_row_blocks(int64_t n, Fn& fn) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) fn.template run<8>(i);
  if (i + 4 <= n) fn.template run<4>(i), i += 4;
  if (i + 2 <= n) fn.template run<2>(i), i += 2;
  if (i < n) fn.template run<1>(i);
}

// Register tiles: 16 accumulators where there are 32 registers, 8 where there are 16.
constexpr int kTileRows = 4;
constexpr int kTileVectors = kWidth == 16 ? 4 : 2;

// Calls block.tile<M, NV>(row, column) over `rows` rows and the columns [begin, end), whole vectors
// of W.
template <int W, int M, int NV, class Block>
SACCADE_INLINE void for_columns(Block& block, int64_t row, int64_t begin, int64_t end) {
  int64_t at = begin;
  for (; at + NV * W <= end; at += NV * W) block.template tile<M, NV>(row, at);
  if constexpr (NV > 2) {
    if (at + 2 * W <= end) block.template tile<M, 2>(row, at), at += 2 * W;
  }
  if constexpr (NV > 1) {
    if (at < end) block.template tile<M, 1>(row, at);
  }
}

template <int W, class Block>
SACCADE_INLINE void for_tiles(Block& block, int64_t rows, int64_t begin, int64_t end) {
  int64_t r = 0;
  if (rows >= kTileRows) {  // one panel of columns serves all rows before the next one is read
    const int64_t whole = rows / kTileRows * kTileRows, step = kTileVectors * W;
    for (int64_t at = begin; at < end; at += step) {
      const int64_t stop = at + step < end ? at + step : end;
      for (r = 0; r < whole; r += kTileRows)
        for_columns<W, kTileRows, kTileVectors>(block, r, at, stop);
    }
    r = whole;
  }
  if (r + 2 <= rows) for_columns<W, 2, 4>(block, r, begin, end), r += 2;
  if (r < rows) for_columns<W, 1, 4>(block, r, begin, end);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
