// Means of windows of keys and values. Keys are lanes in their panels: they are added in vectors
// that begin at a multiple of the width, whatever the window, then lane by lane. Values have
// channels as lanes and are added token by token. So the bits depend on the position, and not on
// the page size.
#include "simd.h"
#include "summaries.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;

template <class E, int kU>
struct Window {
  using T = typename E::T;
  const WindowMeansParams& p;
  int64_t index, head;
  const int64_t tile = value_tile(p.v_dim);

  // Calls fn(page, first, end) for the parts of the window in each page, as offsets in it.
  template <class Fn>
  SACCADE_INLINE void parts(Fn fn) const {
    int64_t left = p.length, from = p.begin[index];
    for (int64_t i = 0; left > 0 && i < p.spread; ++i) {
      const int64_t end = from + left < p.page ? from + left : p.page;
      const int64_t page = p.members[index * p.spread + i];
      fn(p.steps.panel(page, head) * p.page, from, end);
      left -= end - from;
      from = 0;
    }
  }

  // Lanes whose keys at, at + 1 .. lie in [from, end).
  static SACCADE_INLINE I<W> inside(int64_t at, int64_t from, int64_t end) {
    I<W> mask{};
    for (int lane = 0; lane < W; ++lane) mask[lane] = at + lane >= from && at + lane < end ? -1 : 0;
    return mask;
  }

  void mean_key(T* to, float share) const {
    for (int64_t c = 0; c < p.dim; c += kU) {
      F<W> sums[kU] = {};
      parts([&](int64_t base, int64_t from, int64_t end) {
        const T* k = static_cast<const T*>(p.k_pages) + base * p.dim + c * p.page;
        for (int64_t at = from / W * W; at < end; at += W) {
          F<W> keys[kU];
          if constexpr (kU == 2) {
            const U<W> pairs = load<U<W>>(k + 2 * at);
            keys[0] = (F<W>)(pairs << 16);
            keys[1] = (F<W>)(pairs & 0xffff0000u);
          } else {
            keys[0] = E::template get<W>(k + at);
          }
          const bool whole = at >= from && at + W <= end;
          const I<W> mask = whole ? I<W>{} - 1 : inside(at, from, end);
          for (int e = 0; e < kU; ++e) sums[e] += whole ? keys[e] : mask != 0 ? keys[e] : F<W>{};
        }
      });
      for (int e = 0; e < kU; ++e) put_one<E>(to + c + e, sum_lanes<W>(sums[e]) * share);
    }
  }

  // Where channel c of the tokens in a page begins.
  SACCADE_INLINE const T* channel(int64_t base, int64_t c) const {
    const T* panel = static_cast<const T*>(p.v_pages) + base * p.v_dim;
    return panel + c / tile * tile * p.page + c % tile * kU;
  }

  // Value of one token, channels c .. c + W - 1 from `v` on, or just c.
  SACCADE_INLINE F<W> values(const T* v, int64_t token) const {
    if constexpr (kU == 2) {
      const U<W> pairs = load<U<W>>(v + token / 2 * 2 * tile);
      return (F<W>)(token % 2 != 0 ? pairs & 0xffff0000u : pairs << 16);
    }
    return E::template get<W>(v + token * tile);
  }
  SACCADE_INLINE float value(const T* v, int64_t token) const {
    return get_one<E>(v + token / kU * kU * tile + token % kU);
  }

  void mean_value(T* to, float share) const {
    for_vectors<W>(
        p.v_dim,
        [&](int64_t c) {
          F<W> sum{};
          parts([&](int64_t base, int64_t from, int64_t end) {
            const T* v = channel(base, c);
            for (int64_t t = from; t < end; ++t) sum += values(v, t);
          });
          E::template put<W>(to + c, sum * splat<W>(share));
        },
        [&](int64_t c) {
          float sum = 0.0f;
          parts([&](int64_t base, int64_t from, int64_t end) {
            const T* v = channel(base, c);
            for (int64_t t = from; t < end; ++t) sum += value(v, t);
          });
          put_one<E>(to + c, sum * share);
        });
  }

  void run() const {
    if (!is_there(p, index)) return;
    const float share = 1.0f / static_cast<float>(p.length);
    T* to = static_cast<T*>(p.means) + p.home[index] * p.field.slot + head * p.field.head;
    mean_key(to, share);
    mean_value(to + p.dim, share);
  }
};

void mean_item(void* context, int64_t item, int) {
  const WindowMeansParams& p = *static_cast<const WindowMeansParams*>(context);
  const int64_t index = item / p.kv_heads, head = item % p.kv_heads;
  if (p.dtype == DType::kF32) Window<ElementF32, 1>{p, index, head}.run();
  if (p.dtype == DType::kBF16) Window<ElementBF16, 2>{p, index, head}.run();
  if (p.dtype == DType::kF16) Window<ElementF16, 1>{p, index, head}.run();
}

}  // namespace

void window_means(const WindowMeansParams& p, ThreadPool& pool) {
  pool.run(p.count * p.kv_heads, mean_item, const_cast<WindowMeansParams*>(&p));
}

}  // namespace SACCADE_ISA
}  // namespace saccade
