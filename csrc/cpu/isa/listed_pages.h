// Listed blocks of whole pages: see listed.h.
#pragma once
#include "listed.h"
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {

// The pages of listed keys, for each row and whoever owns its list: tables of panels, and every row
// as a sequence of its own.
struct ListedPages {
  const ListedCall& call;
  const AttendParams& p;
  int64_t width;
  Room<int32_t> panels, begins, ends;  // [rows, owners, width], [rows + 1], [rows]

  ListedPages(const ListedCall& listed, int64_t most)
      : call(listed),
        p(*listed.of),
        width((most + p.page - 1) / p.page),
        panels(p.rows * p.owners * width),
        begins(p.rows + 1),
        ends(p.rows) {}

  void add_row(int64_t seq, int64_t row) {
    for (int64_t owner = 0; owner < p.owners; ++owner) {
      const int32_t* list = call.list(row, owner);
      int32_t* to = panels.get() + (row * p.owners + owner) * width;
      const int64_t keys = call.hi[row * p.owners + owner];
      int64_t offset;
      for (int64_t key = 0; key < keys; key += p.page)
        *to++ = static_cast<int32_t>(call.panel_of(seq, owner, list, key, offset));
    }
  }

  // The rows of every sequence, of which this call computes those from `first` on.
  void add_rows(const int32_t* first) {
    for (int64_t s = 0; s < p.seqs; ++s)
      for (int64_t row = p.cu_rows[s]; row < p.cu_rows[s + 1]; ++row) {
        const bool computes = row >= first[s];
        begins[row] = static_cast<int32_t>(row);
        ends[row] = static_cast<int32_t>(computes ? row + 1 : row);
        if (computes) add_row(s, row);
      }
    begins[p.rows] = static_cast<int32_t>(p.rows);
  }
};

// The rows from `begins` on of every sequence.
inline void attend_listed_pages(const AttendParams& p, const int32_t* begins, ThreadPool& pool) {
  ListedCall call(p);
  int64_t most;
  const Room<int32_t> hi = count_listed(call, begins, most);
  call.hi = hi.get();
  ListedPages pages(call, most);
  pages.add_rows(begins);
  call.seqs = p.rows;
  call.cu_rows = pages.begins.get();
  call.row_ends = pages.ends.get();
  call.table = pages.panels.get();
  call.table_row = p.owners * pages.width;
  call.table_head = call.table_width = pages.width;
  call.steps = {1, 0};     // a table names panels,
  call.pages = INT32_MAX;  // of which no memory holds more
  const UnitPlan plan(call, pool);
  if (plan.count() > 0) run_units(call, plan, paged_ops(call), pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
