// Listed blocks of whole pages: see listed.h.
#pragma once
#include "listed.h"
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {

// Entries of page tables that are made at a time.
constexpr int64_t kMostTables = 1 << 20;

// The pages of listed keys of the rows from `first` on, for each row and whoever owns its list:
// tables of panels, and every row as a sequence of its own.
struct ListedPages {
  const ListedCall& call;
  int64_t first, count, width;
  Room<int32_t> panels, begins, ends;  // [count, owners, width], [count + 1], [count]

  ListedPages(const ListedCall& listed, int64_t from, int64_t rows, int64_t columns)
      : call(listed),
        first(from),
        count(rows),
        width(columns),
        panels(rows * listed.of->owners * columns),
        begins(rows + 1),
        ends(rows) {
    for (int64_t i = 0; i <= count; ++i) begins[i] = static_cast<int32_t>(first + i);
  }

  // One of a sequence; `computes`: or it is left out.
  void add_row(int64_t seq, int64_t row, bool computes) {
    const AttendParams& p = *call.of;
    ends[row - first] = static_cast<int32_t>(computes ? row + 1 : row);
    for (int64_t owner = 0; computes && owner < p.owners; ++owner) {
      const int32_t* list = call.list(row, owner);
      int32_t* to = panels.get() + ((row - first) * p.owners + owner) * width;
      const int64_t keys = call.hi[row * p.owners + owner];
      int64_t offset;
      for (int64_t key = 0; key < keys; key += p.page)
        *to++ = static_cast<int32_t>(call.panel_of(seq, owner, list, key, offset));
    }
  }

  void attend(ThreadPool& pool) const {
    ListedCall some = call;
    some.seqs = count;
    some.cu_rows = begins.get();
    some.row_ends = ends.get();
    some.table = panels.get();
    some.table_row = call.of->owners * width;
    some.table_head = some.table_width = width;
    some.steps = {1, 0};     // a table names panels,
    some.pages = INT32_MAX;  // of which no memory holds more
    const UnitPlan plan(some, pool);
    if (plan.count() > 0) run_units(some, plan, paged_ops(some), pool);
  }
};

// The rows from `begins` on of every sequence.
inline void attend_listed_pages(const AttendParams& p, const int32_t* begins, ThreadPool& pool) {
  ListedCall call(p);
  int64_t most, seq = 0;
  const Room<int32_t> hi = count_listed(call, begins, most);
  call.hi = hi.get();
  const int64_t width = (most + p.page - 1) / p.page, tables = p.owners * width;
  const int64_t rows = tables < kMostTables ? kMostTables / (tables > 0 ? tables : 1) : 1;
  for (int64_t row = 0; row < p.rows;) {
    ListedPages pages(call, row, p.rows - row < rows ? p.rows - row : rows, width);
    for (const int64_t end = row + pages.count; row < end; ++row) {
      while (row >= p.cu_rows[seq + 1]) ++seq;
      pages.add_row(seq, row, row >= begins[seq]);
    }
    pages.attend(pool);
  }
}

}  // namespace SACCADE_ISA
}  // namespace saccade
