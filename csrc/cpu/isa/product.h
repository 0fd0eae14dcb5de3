// The register tile of every matrix product here: C[M][NV vectors] += A[M][k] * B[k][NV vectors], A
// broadcast. Each lane sums over k in ascending order, so a result does not depend on M, NV or the
// vector width.
#pragma once
#include "saccade/params.h"
#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

// AVX2: fused multiplication and addition, but 16 registers.
constexpr bool kNarrow = kWidth == 8;

// A policy says what one step of k is: elements of A and B it consumes, and how to multiply them.

struct StepF32 {  // fp32 * fp32
  using A = float;
  using B = float;
  static constexpr int kUnit = 1;
  static constexpr int kRows = kNarrow ? 6 : 4;  // of a register tile: 12 sums of 16 registers
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
  static constexpr int kRows = 4;
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
  static constexpr int kRows = 4;
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

#if defined(__AVX512BF16__)
using StepOfBF16 = StepBF16;
#else
using StepOfBF16 = StepPairs;
#endif

// Whether fp32 and fp16 are left to an older instruction set, which computes them as well.
#if defined(SACCADE_OLDER)
constexpr bool kBF16Alone = true;
#else
constexpr bool kBF16Alone = false;
#endif

// Calls fn with the arithmetic for elements of that type.
template <class Fn>
auto with_step(DType dtype, Fn&& fn) {
  if constexpr (!kBF16Alone) {
    if (dtype == DType::kF32) return fn(StepF32{});
    if (dtype == DType::kF16) return fn(StepF16{});
  }
  return fn(StepOfBF16{});
}

// Memory to ask for while a product runs: `lines` cache lines per step of k, `gap` bytes apart, the
// first of them from `at` on. Null: none. Several streams at a time let the processor's own
// prefetcher run ahead in each of them; one stream waits for the few lines a core asks for at once.
struct Ahead {
  const char* at = nullptr;
  int64_t lines = 0, gap = 0;
  // Or scattered memory: `count` rows of `bytes` bytes, one behind the other.
  const char* const* rows = nullptr;
  int64_t count = 0, bytes = 0;
  int64_t row = 0, offset = 0;  // of the scattered memory, what is asked for next

  SACCADE_INLINE void ask(int64_t k) {
    for (int64_t line = 0; line < lines; ++line) {
      if (rows == nullptr) {
        __builtin_prefetch(at + line * gap + k * 64, 0, 2);
        continue;
      }
      if (row < count) __builtin_prefetch(rows[row] + offset, 0, 2);
      offset += 64;
      if (offset >= bytes) offset = 0, ++row;
    }
  }

  // `bytes` from `from` on, over `steps` steps.
  static Ahead over(const void* from, int64_t bytes, int64_t steps) {
    return {static_cast<const char*>(from), (bytes / 64 + steps - 1) / steps, steps * 64};
  }
};

// One step where 16 registers must do: what stays in registers beside the sums is the shorter side
// of the tile. `high`: row 3 of A.
template <class S, int W, int NV, int M>
SACCADE_INLINE void narrow_step(F<W> (&c)[M][NV], const typename S::A* low,
                                const typename S::A* high, int64_t lda, const typename S::B* b) {
  using Wide = typename S::template Wide<W>;
  const auto row = [&](int m) {
    return S::template broadcast<W>(m < 3 ? low + m * lda : high + (m - 3) * lda);
  };
  if constexpr (M < NV) {
    Wide scalars[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) scalars[m] = row(m);
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) {
      const Wide vector = S::template wide<W>(b + n * W * S::kUnit);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) c[m][n] = S::template multiply<W>(c[m][n], scalars[m], vector);
    }
  } else {
    Wide vectors[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) vectors[n] = S::template wide<W>(b + n * W * S::kUnit);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Wide scalar = row(m);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) c[m][n] = S::template multiply<W>(c[m][n], scalar, vectors[n]);
    }
  }
}

template <class S, int W, int NV, int M, bool kAsks>
SACCADE_INLINE void narrow_product(F<W> (&c)[M][NV], const typename S::A* a, int64_t lda,
                                   const typename S::B* b, int64_t ldb, int64_t steps,
                                   Ahead ahead) {
  const typename S::A *high = a + 3 * lda, *end = a + steps * S::kUnit;
  for (int64_t k = 0; a != end; ++k) {
    if constexpr (kAsks) ahead.ask(k);
    narrow_step<S, W, NV, M>(c, a, high, lda, b);
    a += S::kUnit, high += S::kUnit, b += ldb;
    // The compiler is not to know how they move on: it would keep a pointer for each row.
    if constexpr (M > 3) __asm__("" : "+r"(a), "+r"(high), "+r"(b));
  }
}

template <class S, int W, int NV, int M>
SACCADE_INLINE void narrow_product(F<W> (&c)[M][NV], const typename S::A* a, int64_t lda,
                                   const typename S::B* b, int64_t ldb, int64_t steps,
                                   const Ahead& ahead) {
  if (ahead.lines == 0) {
    narrow_product<S, W, NV, M, false>(c, a, lda, b, ldb, steps, {});
  } else {
    narrow_product<S, W, NV, M, true>(c, a, lda, b, ldb, steps, ahead);
  }
}

// C += A * B for `steps` steps of k. lda: elements between rows of A; ldb: elements between steps
// of B.
template <class S, int W, int NV, int M>
SACCADE_INLINE void product(F<W> (&c)[M][NV], const typename S::A* a, int64_t lda,
                            const typename S::B* b, int64_t ldb, int64_t steps, Ahead ahead = {}) {
  if constexpr (kNarrow) return narrow_product<S, W, NV, M>(c, a, lda, b, ldb, steps, ahead);
  for (int64_t k = 0; k < steps; ++k) {
    ahead.ask(k);
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

// Calls fn.template run<M>(first) over [0, n) in blocks of kBlock rows, then 4, 2, 1.
template <int kBlock, class Fn>
SACCADE_INLINE void for_row_blocks(int64_t n, Fn& fn) {
  int64_t i = 0;
  if constexpr (kNarrow) {  // what is left first: few rows read B in the order of memory
    for (; n % kBlock - i >= 2; i += 2) fn.template run<2>(i);
    if (n % kBlock > i) fn.template run<1>(i), ++i;
  }
  for (; i + kBlock <= n; i += kBlock) fn.template run<kBlock>(i);
  if (i + 4 <= n) fn.template run<4>(i), i += 4;
  if (i + 2 <= n) fn.template run<2>(i), i += 2;
  if (i < n) fn.template run<1>(i);
}

// Register tiles: 16 sums where there are 32 registers, else 8.
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

template <int W, int kRows = kTileRows, class Block>
SACCADE_INLINE void for_tiles(Block& block, int64_t rows, int64_t begin, int64_t end) {
  int64_t r = 0;
  if (rows >= kRows) {  // one panel of columns serves all rows before the next one is read
    const int64_t whole = rows / kRows * kRows, step = kTileVectors * W;
    for (int64_t at = begin; at < end; at += step) {
      const int64_t stop = at + step < end ? at + step : end;
      for (r = 0; r < whole; r += kRows) for_columns<W, kRows, kTileVectors>(block, r, at, stop);
    }
    r = whole;
  }
  if constexpr (kRows > 4) {
    if (r + 4 <= rows) for_columns<W, 4, 2>(block, r, begin, end), r += 4;
  }
  if constexpr (kNarrow) {
    if (r + 3 == rows) for_columns<W, 3, 2>(block, r, begin, end), r += 3;
  }
  if (r + 2 <= rows) for_columns<W, 2, 4>(block, r, begin, end), r += 2;
  if (r < rows) for_columns<W, 1, 4>(block, r, begin, end);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
