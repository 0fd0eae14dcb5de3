// Writing K and V into pages: panels [dim / unit][page][unit] for K, [v_dim / tile][page / unit]
// [tile][unit] for V.
#pragma once
#include "saccade/params.h"
#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

// Rows [begin, end) of one KV head that fall into one page, at consecutive offsets.
template <class T, int kU>
void write_run(const WritePagesParams& p, int64_t head, int64_t begin, int64_t end) {
  const int64_t page = p.slots[begin] / p.page, offset = p.slots[begin] % p.page,
                count = end - begin;
  T* k_page = static_cast<T*>(p.k_pages) + p.steps.panel(page, head) * p.page * p.dim;
  T* v_page = static_cast<T*>(p.v_pages) + p.steps.panel(page, head) * p.page * p.v_dim;
  const T* k = static_cast<const T*>(p.k) + begin * p.k_row + head * p.k_head;
  const T* v = static_cast<const T*>(p.v) + begin * p.v_row + head * p.v_head;
  for (int64_t c = 0; c < p.dim; c += kU) {
    T* to = k_page + c * p.page + offset * kU;
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(to + i * kU, k + i * p.k_row + c, kU * sizeof(T));
  }
  const int64_t tile = value_tile(p.v_dim);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t first = 0; first < p.v_dim; first += tile) {
      const int64_t at = offset + i;
      T* to = v_page + first * p.page + at / kU * kU * tile + at % kU;
      for (int64_t c = 0; c < tile; ++c) to[c * kU] = v[i * p.v_row + first + c];
    }
}

// Calls fn(begin, end) for the runs of rows that have a slot.
template <class Fn>
void for_runs(const WritePagesParams& p, Fn fn) {
  const int64_t slots = p.pages * p.page;
  for (int64_t begin = 0, end; begin < p.rows; begin = end) {
    end = begin + 1;
    if (p.slots[begin] < 0 || p.slots[begin] >= slots) continue;
    while (end < p.rows && p.slots[end] == p.slots[end - 1] + 1 && p.slots[end] % p.page != 0)
      ++end;
    fn(begin, end);
  }
}

// A fresh page starts clean: masked keys have weight 0, and 0 * NaN of a former owner would be NaN.
// Pages are cleared before any row is written, so that the rows of one page may come in any order.
template <class T, int kU>
void write_head(const WritePagesParams& p, int64_t head) {
  for_runs(p, [&](int64_t begin, int64_t end) {
    if (!p.clear || p.slots[begin] % p.page != 0 || end - begin == p.page) return;
    T* v_pages = static_cast<T*>(p.v_pages) +
                 p.steps.panel(p.slots[begin] / p.page, head) * p.page * p.v_dim;
    std::memset(v_pages, 0, static_cast<size_t>(p.page * p.v_dim) * sizeof(T));
  });
  for_runs(p, [&](int64_t begin, int64_t end) { write_run<T, kU>(p, head, begin, end); });
}

// All rows of one KV head.
inline void write_rows(const WritePagesParams& p, int64_t head) {
  if (p.dtype == DType::kF32) write_head<uint32_t, 1>(p, head);
  if (p.dtype == DType::kBF16) write_head<uint16_t, 2>(p, head);
  if (p.dtype == DType::kF16) write_head<uint16_t, 1>(p, head);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
