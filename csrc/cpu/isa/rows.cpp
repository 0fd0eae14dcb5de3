// Row-wise kernels: RMS norm, rotary embedding, gates, merging of partial attention results.
#include <math.h>

#include "row_groups.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;

// Pieces of 1024 elements in fp32, their sums in fp64: a wide row is as exact as a narrow one.
template <class E>
double sum_of_squares(const typename E::T* x, int64_t width) {
  double total = 0.0;
  for (int64_t first = 0; first < width; first += 1024) {
    const int64_t count = width - first < 1024 ? width - first : 1024;
    F<W> squares{};
    float rest = 0.0f;
    for_vectors<W>(
        count,
        [&](int64_t i) {
          const F<W> v = E::template get<W>(x + first + i);
          squares = fma<W>(v, v, squares);
        },
        [&](int64_t i) { rest += get_one<E>(x + first + i) * get_one<E>(x + first + i); });
    total += sum_lanes<W>(squares) + rest;
  }
  return total;
}

template <class E>
void rms_norm_rows(const RmsNormParams& p, int64_t begin, int64_t end) {
  using T = typename E::T;
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_row;
    T* out = static_cast<T*>(p.out) + row * p.width;
    if (p.residual != nullptr) {
      T* residual = static_cast<T*>(p.residual) + row * p.residual_row;
      for_vectors<W>(
          p.width,
          [&](int64_t i) {
            E::template put<W>(residual + i,
                               E::template get<W>(residual + i) + E::template get<W>(x + i));
          },
          [&](int64_t i) {
            put_one<E>(residual + i, get_one<E>(residual + i) + get_one<E>(x + i));
          });
      x = residual;
    }
    const float mean =
        static_cast<float>(sum_of_squares<E>(x, p.width) / static_cast<double>(p.width));
    const float scale = 1.0f / sqrtf(mean + p.eps);
    for_vectors<W>(
        p.width,
        [&](int64_t i) {
          E::template put<W>(out + i, E::template get<W>(x + i) * splat<W>(scale) *
                                          (splat<W>(p.offset) + E::template get<W>(weight + i)));
        },
        [&](int64_t i) {
          put_one<E>(out + i, get_one<E>(x + i) * scale * (p.offset + get_one<E>(weight + i)));
        });
  }
}

template <class E>
void rope_rows(const RopeParams& p, int64_t begin, int64_t end) {
  using T = typename E::T;
  for (int64_t row = begin; row < end; ++row) {
    const float* cos = p.cos + row * p.half;
    const float* sin = p.sin + row * p.half;
    for (int64_t head = 0; head < p.heads; ++head) {
      T* low = static_cast<T*>(p.x) + row * p.x_row + head * p.x_head;
      T* high = low + p.half;
      for_vectors<W>(
          p.half,
          [&](int64_t i) {
            const F<W> a = E::template get<W>(low + i), b = E::template get<W>(high + i);
            const F<W> c = load<F<W>>(cos + i), s = load<F<W>>(sin + i);
            E::template put<W>(low + i, a * c - b * s);
            E::template put<W>(high + i, b * c + a * s);
          },
          [&](int64_t i) {
            const float a = get_one<E>(low + i), b = get_one<E>(high + i);
            put_one<E>(low + i, a * cos[i] - b * sin[i]);
            put_one<E>(high + i, b * cos[i] + a * sin[i]);
          });
    }
  }
}

// 1 / (1 + exp(-x)): a lane's result does not depend on the other lanes, nor on their number. With
// e = exp(-|x|) it is 1 / (1 + e) or e / (1 + e): one division, and nothing that overflows.
template <int V>
SACCADE_INLINE F<V> sigmoid(F<V> x) {
  const F<V> one = splat<V>(1.0f);
  const F<V> e = exp2_nonpositive<V>((x < F<V>{} ? x : -x) * splat<V>(1.4426950408889634f));
  return (x < F<V>{} ? e : one) / (one + e);
}

// A NaN passes through the clamps.
template <int V>
SACCADE_INLINE F<V> gated(const SiluMulParams& p, F<V> gate, F<V> up) {
  const F<V> limit = splat<V>(p.limit);
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return gate * sigmoid<V>(gate * splat<V>(p.alpha)) * (up + splat<V>(p.shift));
}

template <class E>
void silu_mul_rows(const SiluMulParams& p, int64_t begin, int64_t end) {
  using T = typename E::T;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(p.x) + row * p.x_row;
    const T* up = gate + p.width;
    T* out = static_cast<T*>(p.out) + row * p.width;
    for_vectors<W>(
        p.width,
        [&](int64_t i) {
          E::template put<W>(out + i,
                             gated<W>(p, E::template get<W>(gate + i), E::template get<W>(up + i)));
        },
        [&](int64_t i) {
          const F<4> g = splat<4>(get_one<E>(gate + i)), u = splat<4>(get_one<E>(up + i));
          put_one<E>(out + i, gated<4>(p, g, u)[0]);
        });
  }
}

template <class E>
void sigmoid_mul_rows(const SigmoidMulParams& p, int64_t begin, int64_t end) {
  using T = typename E::T;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_row;
    const T* gate = static_cast<const T*>(p.gate) + row * p.gate_row;
    T* out = static_cast<T*>(p.out) + row * p.width;
    if (p.span == 1) {
      for_vectors<W>(
          p.width,
          [&](int64_t i) {
            const F<W> share = sigmoid<W>(E::template get<W>(gate + i));
            E::template put<W>(out + i, E::template get<W>(x + i) * share);
          },
          [&](int64_t i) {
            const float share = sigmoid<4>(splat<4>(get_one<E>(gate + i)))[0];
            put_one<E>(out + i, get_one<E>(x + i) * share);
          });
      continue;
    }
    for (int64_t first = 0; first < p.width; first += p.span) {
      const float share = sigmoid<4>(splat<4>(get_one<E>(gate + first / p.span)))[0];
      for_vectors<W>(
          p.span,
          [&](int64_t i) {
            E::template put<W>(out + first + i,
                               E::template get<W>(x + first + i) * splat<W>(share));
          },
          [&](int64_t i) { put_one<E>(out + first + i, get_one<E>(x + first + i) * share); });
    }
  }
}

// Shares of two partial results that both saw something, and the lse of both.
struct Shares {
  float a, b, lse;

  Shares(float la, float lb) {
    const float top = la > lb ? la : lb, less = expf((la > lb ? lb : la) - top);
    const float total = 1.0f + less;
    a = (la > lb ? 1.0f : less) / total;
    b = (la > lb ? less : 1.0f) / total;
    lse = top + logf(total);
  }
};

// to = a * share_a + b * share_b, of `dim` elements.
template <class E, class To>
SACCADE_INLINE void mix(typename To::T* to, const typename E::T* a, float share_a,
                        const typename E::T* b, float share_b, int64_t dim) {
  for_vectors<W>(
      dim,
      [&](int64_t i) {
        To::template put<W>(to + i, E::template get<W>(a + i) * splat<W>(share_a) +
                                        E::template get<W>(b + i) * splat<W>(share_b));
      },
      [&](int64_t i) {
        put_one<To>(to + i, get_one<E>(a + i) * share_a + get_one<E>(b + i) * share_b);
      });
}

template <class E>
void merge_rows(const MergeParams& p, int64_t begin, int64_t end) {
  using T = typename E::T;
  for (int64_t row = begin; row < end; ++row) {
    const T* a = static_cast<const T*>(p.out_a) + row * p.dim;
    const T* b = static_cast<const T*>(p.out_b) + row * p.dim;
    T* out = static_cast<T*>(p.out) + row * p.dim;
    const float la = p.lse_a[row], lb = p.lse_b[row];
    const bool empty_a = la == -INFINITY, empty_b = lb == -INFINITY;
    if (empty_a || empty_b) {  // the other side passes through, bit for bit
      for (int64_t i = 0; i < p.dim; ++i) out[i] = empty_b ? (empty_a ? T{} : a[i]) : b[i];
      p.lse[row] = empty_b ? la : lb;  // not the larger: a NaN is no empty side
      continue;
    }
    const Shares shares(la, lb);
    mix<E, E>(out, a, shares.a, b, shares.b, p.dim);
    p.lse[row] = shares.lse;
  }
}

template <class To>
SACCADE_INLINE void round_to(typename To::T* to, const float* from, int64_t dim) {
  for_vectors<W>(
      dim, [&](int64_t i) { To::template put<W>(to + i, load<F<W>>(from + i)); },
      [&](int64_t i) { put_one<To>(to + i, from[i]); });
}

// Rows are (row, head) pairs. A side that saw nothing adds nothing.
template <class E>
void correct_rows(const CorrectParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    typename E::T* to = static_cast<typename E::T*>(p.answer) + row * p.dim;
    const float* a = p.out + row * p.dim;
    const int64_t source = p.source[row / p.heads], at = source * p.heads + row % p.heads;
    const bool known = source >= 0 && source < p.known, merges = p.weights != nullptr;
    if (!known || (merges && p.weights[at] == -INFINITY)) {
      round_to<E>(to, a, p.dim);
      continue;
    }
    const float* b = p.table + at * p.dim;
    if (!merges) {
      mix<ElementF32, E>(to, a, 1.0f, b, 1.0f, p.dim);
    } else if (p.lse[row] == -INFINITY) {
      round_to<E>(to, b, p.dim);
    } else {
      const Shares shares(p.lse[row], p.weights[at]);
      mix<ElementF32, E>(to, a, shares.a, b, shares.b, p.dim);
    }
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p, ThreadPool& pool) {
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, p.width, pool, rms_norm_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, p.width, pool, rms_norm_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, p.width, pool, rms_norm_rows<ElementF16>); });
}

void rope(const RopeParams& p, ThreadPool& pool) {
  const int64_t width = p.heads * p.half * 2;
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, width, pool, rope_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, width, pool, rope_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, width, pool, rope_rows<ElementF16>); });
}

void silu_mul(const SiluMulParams& p, ThreadPool& pool) {
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, 2 * p.width, pool, silu_mul_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, 2 * p.width, pool, silu_mul_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, 2 * p.width, pool, silu_mul_rows<ElementF16>); });
}

void sigmoid_mul(const SigmoidMulParams& p, ThreadPool& pool) {
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, 2 * p.width, pool, sigmoid_mul_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, 2 * p.width, pool, sigmoid_mul_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, 2 * p.width, pool, sigmoid_mul_rows<ElementF16>); });
}

void merge(const MergeParams& p, ThreadPool& pool) {
  by_dtype(
      p.dtype, [&] { for_row_groups(p, p.rows, 2 * p.dim, pool, merge_rows<ElementF32>); },
      [&] { for_row_groups(p, p.rows, 2 * p.dim, pool, merge_rows<ElementBF16>); },
      [&] { for_row_groups(p, p.rows, 2 * p.dim, pool, merge_rows<ElementF16>); });
}

void correct(const CorrectParams& p, ThreadPool& pool) {
  const int64_t rows = p.rows * p.heads;
  by_dtype(
      p.dtype, [&] { for_row_groups(p, rows, 2 * p.dim, pool, correct_rows<ElementF32>); },
      [&] { for_row_groups(p, rows, 2 * p.dim, pool, correct_rows<ElementBF16>); },
      [&] { for_row_groups(p, rows, 2 * p.dim, pool, correct_rows<ElementF16>); });
}

// Reads `data` once on all threads and returns a checksum: the ceiling of every memory-bound
// kernel.
double stream_read(const void* data, int64_t bytes, ThreadPool& pool) {
  constexpr int64_t kPiece = 1 << 20;
  struct Job {
    const char* data;
    int64_t bytes;
    double sums[64][8];
  };
  Job job{static_cast<const char*>(data), bytes, {}};
  pool.run((bytes + kPiece - 1) / kPiece,
           [](void* context, int64_t item, int thread) {
             Job& j = *static_cast<Job*>(context);
             const int64_t end = (item + 1) * kPiece < j.bytes ? (item + 1) * kPiece : j.bytes;
             F<W> sums[4] = {};
             for (int64_t at = item * kPiece; at + 16 * W <= end; at += 16 * W)
               for (int u = 0; u < 4; ++u) sums[u] += load<F<W>>(j.data + at + 4 * W * u);
             j.sums[thread % 64][0] += sum_lanes<W>(sums[0] + sums[1] + sums[2] + sums[3]);
           },
           &job);
  double total = 0;
  for (auto& sum : job.sums) total += sum[0];
  return total;
}

}  // namespace SACCADE_ISA
}  // namespace saccade
