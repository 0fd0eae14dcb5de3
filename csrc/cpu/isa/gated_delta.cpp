// The gated delta rule, token by token. A state is [key channels][value channels]; its columns do
// not know of each other, so that an item of work is one sequence, one head and kColumns columns,
// which stay in the first-level cache. Sums run over the key channels in ascending order: what a
// row reads does not depend on how columns, sequences or steps are shared out.
#include <math.h>

#include "simd.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kColumns = 64;
constexpr float kLengthEps = 1e-6f;

struct DeltaJob {
  const GatedDeltaParams* p;
  int64_t pieces;  // of the columns of a head
  char* scratch;
  int64_t slice;
};

template <class E>
struct DeltaPiece {
  using T = typename E::T;
  const GatedDeltaParams& p;
  int64_t seq, head, column, width;
  float* state;  // [key_dim][width]
  float *q, *k;  // [key_dim], of the row at work

  // Of length 1, times `scale`.
  void load_unit(const void* from, int64_t at, float scale, float* to) const {
    const T* x = static_cast<const T*>(from) + at;
    float squares = 0.0f;
    for (int64_t i = 0; i < p.key_dim; ++i) {
      to[i] = get_one<E>(x + i);
      squares += to[i] * to[i];
    }
    const float factor = scale / sqrtf(squares + kLengthEps);
    for (int64_t i = 0; i < p.key_dim; ++i) to[i] *= factor;
  }

  float* stored(int64_t index) const {
    return p.states + ((index * p.heads + head) * p.key_dim) * p.value_dim + column;
  }

  void load_state() {
    const int64_t from = p.load[seq], bytes = width * static_cast<int64_t>(sizeof(float));
    for (int64_t c = 0; c < p.key_dim; ++c) {
      if (from < 0) {
        std::memset(state + c * width, 0, static_cast<size_t>(bytes));
      } else {
        std::memcpy(state + c * width, stored(from) + c * p.value_dim, static_cast<size_t>(bytes));
      }
    }
  }

  void store_state(int64_t to) const {
    for (int64_t c = 0; c < p.key_dim; ++c)
      std::memcpy(stored(to) + c * p.value_dim, state + c * width,
                  static_cast<size_t>(width) * sizeof(float));
  }

  // Columns at .. at + NV * W - 1 of one row.
  template <int NV>
  SACCADE_INLINE void columns(int64_t row, int64_t at, float decay, float beta) {
    const T* v = static_cast<const T*>(p.v) + row * p.v_row + head * p.value_dim + column + at;
    T* out = static_cast<T*>(p.out) + (row * p.heads + head) * p.value_dim + column + at;
    F<W> change[NV]{}, read[NV]{};
    for (int64_t c = 0; c < p.key_dim; ++c)
      for (int n = 0; n < NV; ++n)
        change[n] = fma<W>(load<F<W>>(state + c * width + at + n * W), splat<W>(k[c]), change[n]);
    for (int n = 0; n < NV; ++n)
      change[n] = (E::template get<W>(v + n * W) - change[n] * splat<W>(decay)) * splat<W>(beta);
    for (int64_t c = 0; c < p.key_dim; ++c)
      for (int n = 0; n < NV; ++n) {
        float* s = state + c * width + at + n * W;
        const F<W> now = fma<W>(change[n], splat<W>(k[c]), load<F<W>>(s) * splat<W>(decay));
        store(s, now);
        read[n] = fma<W>(now, splat<W>(q[c]), read[n]);
      }
    for (int n = 0; n < NV; ++n) E::template put<W>(out + n * W, read[n]);
  }

  void run() {
    const int64_t key_head = head / (p.heads / p.key_heads);
    const float scale = 1.0f / sqrtf(static_cast<float>(p.key_dim));
    load_state();
    for (int64_t i = p.cu[seq]; i < p.cu[seq + 1]; ++i) {
      const int64_t row = p.rows[i];
      load_unit(p.q, row * p.q_row + key_head * p.key_dim, scale, q);
      load_unit(p.k, row * p.k_row + key_head * p.key_dim, 1.0f, k);
      const float decay = p.decay[row * p.heads + head], beta = p.beta[row * p.heads + head];
      int64_t at = 0;
      for (; at + 4 * W <= width; at += 4 * W) columns<4>(row, at, decay, beta);
      for (; at + W <= width; at += W) columns<1>(row, at, decay, beta);
      if (p.store[i] >= 0) store_state(p.store[i]);
    }
  }

  int64_t carve(char* from) {
    const char* begin = from;
    const auto take = [&from](int64_t floats) {
      float* piece = reinterpret_cast<float*>(from);
      from += (floats * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
      return piece;
    };
    state = take(p.key_dim * kColumns);
    q = take(p.key_dim);
    k = take(p.key_dim);
    return from - begin;
  }
};

template <class E>
void delta_item(void* context, int64_t item, int thread) {
  const DeltaJob& job = *static_cast<DeltaJob*>(context);
  const GatedDeltaParams& p = *job.p;
  const int64_t column = item % job.pieces * kColumns, left = p.value_dim - column;
  const int64_t head = item / job.pieces % p.heads, seq = item / job.pieces / p.heads;
  DeltaPiece<E> piece{p,       seq,     head,   column, left < kColumns ? left : kColumns,
                      nullptr, nullptr, nullptr};
  piece.carve(job.scratch + thread * job.slice);
  piece.run();
}

template <class E>
void gated_delta_with(const GatedDeltaParams& p, ThreadPool& pool) {
  DeltaJob job{&p, (p.value_dim + kColumns - 1) / kColumns, nullptr, 0};
  DeltaPiece<E> measure{p, 0, 0, 0, 0, nullptr, nullptr, nullptr};
  job.slice = (measure.carve(nullptr) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  pool.run(p.seqs * p.heads * job.pieces, delta_item<E>, &job);
}

}  // namespace

void gated_delta(const GatedDeltaParams& p, ThreadPool& pool) {
  if (p.dtype == DType::kF32) gated_delta_with<ElementF32>(p, pool);
  if (p.dtype == DType::kBF16) gated_delta_with<ElementBF16>(p, pool);
  if (p.dtype == DType::kF16) gated_delta_with<ElementF16>(p, pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
