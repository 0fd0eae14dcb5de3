// A few vector operations over GCC/Clang vector types: the same source for every instruction set
// and width. Multiplication and addition are fused only where `fma` is called (the build forbids
// contraction), so a lane's result does not depend on the width of the vector that carried it.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define SACCADE_INLINE inline __attribute__((always_inline))

namespace saccade {
namespace SACCADE_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

template <int W>
struct Types {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef int32_t I __attribute__((vector_size(4 * W)));
  typedef uint32_t U __attribute__((vector_size(4 * W)));
  typedef uint16_t H __attribute__((vector_size(2 * W)));
};
template <int W>
using F = typename Types<W>::F;
template <int W>
using I = typename Types<W>::I;
template <int W>
using U = typename Types<W>::U;
template <int W>
using H = typename Types<W>::H;

template <class V>
SACCADE_INLINE V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}
template <class V>
SACCADE_INLINE void store(void* to, V v) {
  std::memcpy(to, &v, sizeof(V));
}

template <int W>
SACCADE_INLINE F<W> splat(float x) {
  return x - F<W>{};  // x - 0 is x, and compilers fold it to a broadcast
}
template <int W>
SACCADE_INLINE I<W> splat_int(int32_t x) {
  return I<W>{} + x;
}

template <int W>
SACCADE_INLINE F<W> fma(F<W> a, F<W> b, F<W> c) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return (F<W>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
#if defined(__FMA__)
  if constexpr (W == 8) return (F<W>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (W == 4) return (F<W>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#endif
  return a * b + c;
}

// The larger of a and b; b where either is NaN.
template <int W>
SACCADE_INLINE F<W> max(F<W> a, F<W> b) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return (F<W>)_mm512_max_ps((__m512)a, (__m512)b);
#endif
#if defined(__AVX2__)
  if constexpr (W == 8) return (F<W>)_mm256_max_ps((__m256)a, (__m256)b);
#endif
  return a > b ? a : b;
}

// Bit l: lane l of a comparison holds.
SACCADE_INLINE uint32_t lane_bits(I<kWidth> mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kWidth; ++lane) bits |= mask[lane] != 0 ? 1u << lane : 0;
  return bits;
#endif
}

// Lane l is lane from[l] of a and b, those of b numbered from W on.
template <int W>
SACCADE_INLINE I<W> shuffle(I<W> a, I<W> b, I<W> from) {
#if defined(__clang__)
  int32_t lanes[2 * W];
  store(lanes, a), store(lanes + W, b);
  for (int lane = 0; lane < W; ++lane) a[lane] = lanes[from[lane]];
  return a;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

template <int W>
SACCADE_INLINE float max_lanes(F<W> v) {
  if constexpr (W == 4) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  } else {
    F<W / 2> halves[2];
    std::memcpy(halves, &v, sizeof(v));
    return max_lanes<W / 2>(max<W / 2>(halves[0], halves[1]));
  }
}

// A number's bits, in an order that ascends as numbers do.
SACCADE_INLINE uint32_t ascending_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Lane l joins all lanes of rows[l], which are used up: transpose, below, with one joined row
// instead of two.
template <int W, class Join, int S = 1>
SACCADE_INLINE F<W> joined_rows(F<W> (&rows)[W], Join join) {
  I<W> low, high;
  for (int lane = 0; lane < W; ++lane) {
    low[lane] = (lane & S) != 0 ? W + lane - S : lane;
    high[lane] = low[lane] + S;
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; i += 2 * S) {
    const I<W> first = (I<W>)rows[i], second = (I<W>)rows[i + S];
    rows[i] = join((F<W>)shuffle<W>(first, second, low), (F<W>)shuffle<W>(first, second, high));
  }
  if constexpr (2 * S < W) return joined_rows<W, Join, 2 * S>(rows, join);
  return rows[0];
}
template <int W>
SACCADE_INLINE F<W> max_of_rows(F<W> (&rows)[W]) {
  return joined_rows<W>(rows, [](F<W> a, F<W> b) { return max<W>(a, b); });
}
template <int W>
SACCADE_INLINE F<W> sum_of_rows(F<W> (&rows)[W]) {
  return joined_rows<W>(rows, [](F<W> a, F<W> b) { return a + b; });
}

// Sum over the lanes, in a fixed order.
template <int W>
SACCADE_INLINE float sum_lanes(F<W> v) {
  float lanes[W];
  store(lanes, v);
  for (int step = W / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

// Turns W rows of W lanes into W columns: blocks of S x S lanes change places, S = 1, 2, .. W / 2.
template <int W, int S = 1>
SACCADE_INLINE void transpose(I<W> (&rows)[W]) {
  I<W> low, high;  // lanes of (rows[i], rows[i + S]), the second row's numbered from W on
  for (int lane = 0; lane < W; ++lane) {
    low[lane] = (lane & S) != 0 ? W + lane - S : lane;
    high[lane] = low[lane] + S;
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if ((i & S) != 0) continue;
    const I<W> first = rows[i], second = rows[i + S];
    rows[i] = shuffle<W>(first, second, low);
    rows[i + S] = shuffle<W>(first, second, high);
  }
  if constexpr (2 * S < W) transpose<W, 2 * S>(rows);
}

#if defined(__AVX512DQ__)
// x less its floor; 0 at the infinities.
template <int W>
SACCADE_INLINE F<W> fraction(F<W> x) {
  constexpr int kDown = _MM_FROUND_TO_NEG_INF;
  if constexpr (W == 16) return (F<W>)_mm512_reduce_ps((__m512)x, kDown);
  if constexpr (W == 8) return (F<W>)_mm256_reduce_ps((__m256)x, kDown);
  if constexpr (W == 4) return (F<W>)_mm_reduce_ps((__m128)x, kDown);
}

// p * 2^floor(x); 0 where x < -126, so that nothing is denormal (a hundred times slower).
template <int W>
SACCADE_INLINE F<W> scale_normal(F<W> p, F<W> x) {
  constexpr int kNotLess = _CMP_NLT_UQ;
  const F<W> least = splat<W>(-126.0f);
  if constexpr (W == 16) {
    const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, (__m512)least, kNotLess);
    return (F<W>)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)x);
  }
  if constexpr (W == 8) {
    const __mmask8 normal = _mm256_cmp_ps_mask((__m256)x, (__m256)least, kNotLess);
    return (F<W>)_mm256_maskz_scalef_ps(normal, (__m256)p, (__m256)x);
  }
  if constexpr (W == 4) {
    const __mmask8 normal = _mm_cmp_ps_mask((__m128)x, (__m128)least, kNotLess);
    return (F<W>)_mm_maskz_scalef_ps(normal, (__m128)p, (__m128)x);
  }
}

// 2^f for a fraction f, relative error below 1e-7; exactly 1 at 0.
template <int W>
SACCADE_INLINE F<W> exp2_fraction(F<W> f) {
  F<W> p = splat<W>(1.8671300495043397e-3f);
  p = fma<W>(p, f, splat<W>(9.017030708491802e-3f));
  p = fma<W>(p, f, splat<W>(5.579991266131401e-2f));
  p = fma<W>(p, f, splat<W>(2.4016444385051727e-1f));
  p = fma<W>(p, f, splat<W>(6.931512951850891e-1f));
  return fma<W>(p, f, splat<W>(1.0f));
}
#endif

// 2^x for x <= 0 (and a little above), relative error below 1e-7; exactly 1 at 0, exactly 0 below
// 2^-126 and at -inf; NaN at NaN.
template <int W>
SACCADE_INLINE F<W> exp2_nonpositive(F<W> x) {
#if defined(__AVX512DQ__)  // half the instructions
  return scale_normal<W>(exp2_fraction<W>(fraction<W>(x)), x);
#else
  const F<W> floor = splat<W>(-126.0f);
  const F<W> clamped = max<W>(floor, x);
  const F<W> magic = splat<W>(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const F<W> shifted = clamped + magic;
  const F<W> f = clamped - (shifted - magic);
  F<W> p = splat<W>(1.3264726003922617e-3f);
  p = fma<W>(p, f, splat<W>(9.671512723052281e-3f));
  p = fma<W>(p, f, splat<W>(5.550733747223784e-2f));
  p = fma<W>(p, f, splat<W>(2.4022242083557113e-1f));
  p = fma<W>(p, f, splat<W>(6.931469775963933e-1f));
  p = fma<W>(p, f, splat<W>(1.0f));
  const I<W> exponent = (I<W>)shifted << 23;
  const F<W> value = (F<W>)((I<W>)p + exponent);
  return x < floor ? F<W>{} : value;
#endif
}

// While it lives, what would be denormal is 0 in this thread.
struct FlushScope {
#if defined(__AVX512DQ__)
  const unsigned before = _mm_getcsr();
  FlushScope() { _mm_setcsr(before | _MM_FLUSH_ZERO_ON); }
  ~FlushScope() { _mm_setcsr(before); }
#else
  FlushScope() {}
#endif
};

// The same in a FlushScope, which spares a comparison.
template <int W>
SACCADE_INLINE F<W> exp2_flushed(F<W> x) {
#if defined(__AVX512DQ__)
  if constexpr (W == 16)
    return (F<W>)_mm512_scalef_ps((__m512)exp2_fraction<W>(fraction<W>(x)), (__m512)x);
#endif
  return exp2_nonpositive<W>(x);
}

// exp(x), saturating at the ends; NaN at NaN.
template <int W>
SACCADE_INLINE F<W> exp_any(F<W> x) {
  const F<W> y = max<W>(splat<W>(-252.0f), x * splat<W>(1.4426950408889634f));
  const F<W> capped = y > splat<W>(252.0f) ? splat<W>(252.0f) : y;
  // Two halves keep each exponent in the range of exp2_nonpositive; positive powers are
  // reciprocals.
  const F<W> half = capped * splat<W>(0.5f);
  const F<W> negative = half > F<W>{} ? -half : half;
  const F<W> e = exp2_nonpositive<W>(negative);
  const F<W> root = half > F<W>{} ? splat<W>(1.0f) / e : e;
  return root * root;
}

// ---- 16-bit formats ----

template <int W>
SACCADE_INLINE F<W> widen_bf16(const uint16_t* from) {
  return (F<W>)(__builtin_convertvector(load<H<W>>(from), U<W>) << 16);
}

SACCADE_INLINE float widen_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even; NaN stays NaN. The result sits in the low half of each 32-bit lane.
template <int W>
SACCADE_INLINE U<W> round_bf16(F<W> x) {
  const U<W> bits = (U<W>)x;
  const U<W> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return x == x ? rounded : (U<W>{} + 0x7fc0u);
}

template <int W>
SACCADE_INLINE void store_bf16(uint16_t* to, F<W> x) {
  store(to, __builtin_convertvector(round_bf16<W>(x), H<W>));
}

template <int W>
SACCADE_INLINE F<W> widen_f16(const uint16_t* from) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return (F<W>)_mm512_cvtph_ps((__m256i)load<H<W>>(from));
#endif
#if defined(__F16C__)
  if constexpr (W == 8) return (F<W>)_mm256_cvtph_ps((__m128i)load<H<W>>(from));
#endif
  F<W> out{};
  for (int i = 0; i < W; ++i) {
    _Float16 h;
    std::memcpy(&h, from + i, 2);
    out[i] = static_cast<float>(h);
  }
  return out;
}

template <int W>
SACCADE_INLINE void store_f16(uint16_t* to, F<W> x) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    store(to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (W == 8) {
    store(to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
    return;
  }
#endif
  for (int i = 0; i < W; ++i) {
    const _Float16 h = static_cast<_Float16>(x[i]);
    std::memcpy(to + i, &h, 2);
  }
}

// ---- element types as policies: load W elements as fp32, store W of them ----

struct ElementF32 {
  using T = float;
  template <int W>
  static SACCADE_INLINE F<W> get(const T* from) {
    return load<F<W>>(from);
  }
  template <int W>
  static SACCADE_INLINE void put(T* to, F<W> x) {
    store(to, x);
  }
};
struct ElementBF16 {
  using T = uint16_t;
  template <int W>
  static SACCADE_INLINE F<W> get(const T* from) {
    return widen_bf16<W>(from);
  }
  template <int W>
  static SACCADE_INLINE void put(T* to, F<W> x) {
    store_bf16<W>(to, x);
  }
};
struct ElementF16 {
  using T = uint16_t;
  template <int W>
  static SACCADE_INLINE F<W> get(const T* from) {
    return widen_f16<W>(from);
  }
  template <int W>
  static SACCADE_INLINE void put(T* to, F<W> x) {
    store_f16<W>(to, x);
  }
};

template <class E>
SACCADE_INLINE float get_one(const typename E::T* from) {
  typename E::T four[4] = {*from, 0, 0, 0};
  return E::template get<4>(four)[0];
}
template <class E>
SACCADE_INLINE void put_one(typename E::T* to, float x) {
  typename E::T four[4];
  E::template put<4>(four, splat<4>(x));
  *to = four[0];
}

// Calls fn(offset) for whole vectors and tail(offset) for the rest of n elements.
template <int W, class Fn, class Tail>
SACCADE_INLINE void for_vectors(int64_t n, Fn fn, Tail tail) {
  int64_t i = 0;
  for (; i + W <= n; i += W) fn(i);
  for (; i < n; ++i) tail(i);
}

// Two rows of `count` 16-bit numbers, in turn.
template <int W>
SACCADE_INLINE void interleave(uint16_t* to, const uint16_t* a, const uint16_t* b, int64_t count) {
  for_vectors<W>(
      count,
      [&](int64_t i) {
        const U<W> low = __builtin_convertvector(load<H<W>>(a + i), U<W>);
        const U<W> high = __builtin_convertvector(load<H<W>>(b + i), U<W>);
        store(to + 2 * i, low | high << 16);
      },
      [&](int64_t i) {
        to[2 * i] = a[i];
        to[2 * i + 1] = b[i];
      });
}

}  // namespace SACCADE_ISA
}  // namespace saccade
