// Convolution of keys over the tokens before them, channel by channel.
#include "row_groups.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;

// The products of the taps, summed from the row's own key backwards.
template <class E>
SACCADE_INLINE F<W> convolved(const typename E::T* const* keys, const typename E::T* weight,
                              int64_t taps, int64_t width, int64_t i) {
  F<W> sum{};
  for (int64_t tap = 0; tap < taps; ++tap) {
    if (keys[tap] == nullptr) continue;
    sum = sum + E::template get<W>(weight + tap * width + i) * E::template get<W>(keys[tap] + i);
  }
  return sum;
}

template <int V>
SACCADE_INLINE F<V> silu(F<V> x) {
  return x / (splat<V>(1.0f) + exp_any<V>(-x));
}

template <class E>
void key_conv_rows(const KeyConvParams& p, int64_t begin, int64_t end) {
  using T = typename E::T;
  const T* weight = static_cast<const T*>(p.weight);
  const T* keys[kMostTaps];
  for (int64_t row = begin; row < end; ++row) {
    keys[0] = static_cast<const T*>(p.k) + row * p.k_row;
    for (int64_t tap = 1; tap < p.taps; ++tap) {
      const int64_t at = p.before[row * (p.taps - 1) + tap - 1];
      keys[tap] = at >= 0    ? static_cast<const T*>(p.k) + at * p.k_row
                  : at == -1 ? nullptr
                             : static_cast<const T*>(p.history) + (-2 - at) * p.width;
    }
    T* out = static_cast<T*>(p.out) + row * p.width;
    for_vectors<W>(
        p.width,
        [&](int64_t i) {
          const F<W> sum = convolved<E>(keys, weight, p.taps, p.width, i);
          const F<W> own = p.residual ? E::template get<W>(keys[0] + i) : F<W>{};
          E::template put<W>(out + i, own + silu<W>(sum));
        },
        [&](int64_t i) {
          float sum = 0.0f;
          for (int64_t tap = 0; tap < p.taps; ++tap)
            if (keys[tap] != nullptr)
              sum = sum + get_one<E>(weight + tap * p.width + i) * get_one<E>(keys[tap] + i);
          const float own = p.residual ? get_one<E>(keys[0] + i) : 0.0f;
          put_one<E>(out + i, own + silu<4>(splat<4>(sum))[0]);
        });
  }
}

}  // namespace

void key_conv(const KeyConvParams& p, ThreadPool& pool) {
  const int64_t work = p.width * (p.taps + 1);
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, work, pool, key_conv_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, work, pool, key_conv_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, work, pool, key_conv_rows<ElementF16>); });
}

}  // namespace SACCADE_ISA
}  // namespace saccade
