// Writing K and V into pages: panels [dim / unit][page][unit] for K, [v_dim / tile][page / unit]
// [tile][unit] for V.
#pragma once
#include "saccade/params.h"
#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

// Keys of `count` tokens, `row` elements apart, to the columns of a panel from `to` on.
template <class T, int kU>
void write_keys(T* to, int64_t page, const T* k, int64_t row, int64_t count, int64_t dim) {
  constexpr int64_t W = kWidth;
  int64_t done = 0;  // tokens whose channels are written up to `wide`
  int64_t wide = 0;
  if constexpr (kU * sizeof(T) == 4) {  // what lies together in a column is 32 bits wide
    wide = dim / (W * kU) * (W * kU);
    for (; done + W <= count; done += W)
      for (int64_t c = 0; c < wide; c += W * kU) {
        I<W> rows[W];
        for (int64_t n = 0; n < W; ++n) rows[n] = load<I<W>>(k + (done + n) * row + c);
        transpose<W>(rows);
        for (int64_t n = 0; n < W; ++n) store(to + (c + n * kU) * page + done * kU, rows[n]);
      }
  }
  for (int64_t c = 0; c < dim; c += kU)
    for (int64_t i = c < wide ? done : 0; i < count; ++i)
      std::memcpy(to + c * page + i * kU, k + i * row + c, kU * sizeof(T));
}

// Rows [begin, end) of one KV head that fall into one page, at consecutive offsets.
template <class T, int kU>
void write_run(const WritePagesParams& p, int64_t head, int64_t begin, int64_t end) {
  const int64_t page = p.slots[begin] / p.page, offset = p.slots[begin] % p.page,
                count = end - begin;
  T* k_page = static_cast<T*>(p.k_pages) + p.steps.panel(page, head) * p.page * p.dim;
  T* v_page = static_cast<T*>(p.v_pages) + p.steps.panel(page, head) * p.page * p.v_dim;
  const T* k = static_cast<const T*>(p.k) + begin * p.k_row + head * p.k_head;
  const T* v = static_cast<const T*>(p.v) + begin * p.v_row + head * p.v_head;
  write_keys<T, kU>(k_page + offset * kU, p.page, k, p.k_row, count, p.dim);
  const int64_t tile = value_tile(p.v_dim);
  for (int64_t i = 0, together; i < count; i += together) {
    const int64_t at = offset + i;
    together = kU == 2 && at % 2 == 0 && i + 1 < count ? 2 : 1;
    for (int64_t first = 0; first < p.v_dim; first += tile) {
      T* to = v_page + first * p.page + at / kU * kU * tile + at % kU;
      const T* from = v + i * p.v_row + first;
      if constexpr (kU == 2) {
        if (together == 2) {
          interleave<kWidth>(to, from, from + p.v_row, tile);
          continue;
        }
      }
      for (int64_t c = 0; c < tile; ++c) to[c * kU] = from[c];
    }
  }
}

// Calls fn(begin, end) for the runs of those of the rows [first, last) that have a slot.
template <class Fn>
void for_runs(const WritePagesParams& p, int64_t first, int64_t last, Fn fn) {
  const int64_t slots = p.pages * p.page;
  for (int64_t begin = first, end; begin < last; begin = end) {
    end = begin + 1;
    if (p.slots[begin] < 0 || p.slots[begin] >= slots) continue;
    while (end < last && p.slots[end] == p.slots[end - 1] + 1 && p.slots[end] % p.page != 0) ++end;
    fn(begin, end);
  }
}

// A fresh page starts clean: masked keys have weight 0, and 0 * NaN of a former owner would be NaN.
// Pages are cleared before any row is written, so that the rows of one page may come in any order.
template <class T>
void clear_pages(const WritePagesParams& p, int64_t head) {
  for_runs(p, 0, p.rows, [&](int64_t begin, int64_t end) {
    if (!p.clear || p.slots[begin] % p.page != 0 || end - begin == p.page) return;
    T* v_pages = static_cast<T*>(p.v_pages) +
                 p.steps.panel(p.slots[begin] / p.page, head) * p.page * p.v_dim;
    std::memset(v_pages, 0, static_cast<size_t>(p.page * p.v_dim) * sizeof(T));
  });
}

inline void clear_head(const WritePagesParams& p, int64_t head) {
  if (p.dtype == DType::kF32) return clear_pages<uint32_t>(p, head);
  clear_pages<uint16_t>(p, head);
}

// The rows [first, last) of one KV head; whoever writes to a page has cleared it before.
template <class T, int kU>
void write_some(const WritePagesParams& p, int64_t head, int64_t first, int64_t last) {
  for_runs(p, first, last,
           [&](int64_t begin, int64_t end) { write_run<T, kU>(p, head, begin, end); });
}

inline void write_rows(const WritePagesParams& p, int64_t head, int64_t first, int64_t last) {
  if (p.dtype == DType::kF32) write_some<uint32_t, 1>(p, head, first, last);
  if (p.dtype == DType::kBF16) write_some<uint16_t, 2>(p, head, first, last);
  if (p.dtype == DType::kF16) write_some<uint16_t, 1>(p, head, first, last);
}

// All rows of one KV head.
inline void write_rows(const WritePagesParams& p, int64_t head) {
  clear_head(p, head);
  write_rows(p, head, 0, p.rows);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
