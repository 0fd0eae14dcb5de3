// Attention over lists whose tokens are replaced while rows attend: what a row replaces, the rows
// before it must have read. A thread takes a list and goes through its rows in turns: it writes the
// keys of a row that replaces one, and of those after it that do not, and then these rows attend.
#include "store.h"
#include "tables.h"
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

struct TurnsJob {
  const AttendTurnsParams* p;
  UnitOps ops;
  char* scratch;
  int64_t slice;
};

// A fresh page is cleared, unless its first token replaces another.
void write_turn(const AttendTurnsParams& p, int64_t begin, int64_t end, bool clear) {
  const AttendParams& a = p.attend;
  const int64_t size = size_of(a.dtype);
  WritePagesParams w{a.dtype,
                     end - begin,
                     1,
                     a.dim,
                     a.v_dim,
                     a.page,
                     a.pages,
                     a.steps,
                     const_cast<void*>(a.k_pages),
                     const_cast<void*>(a.v_pages),
                     static_cast<const char*>(p.k) + begin * p.k_row * size,
                     p.k_row,
                     0,
                     static_cast<const char*>(p.v) + begin * p.v_row * size,
                     p.v_row,
                     0,
                     p.slots + begin,
                     clear};
  write_rows(w, 0);
}

void list_item(void* context, int64_t seq, int thread) {
  const TurnsJob& job = *static_cast<TurnsJob*>(context);
  const AttendTurnsParams& p = *job.p;
  const AttendParams& a = p.attend;
  const int64_t last = a.cu_rows[seq + 1];
  for (int64_t begin = a.cu_rows[seq], end; begin < last; begin = end) {
    end = begin + 1;
    while (end < last && end - begin < kMaxRows && !p.replaces[end]) ++end;
    const int64_t fresh = begin + (p.replaces[begin] != 0);
    if (fresh > begin) write_turn(p, begin, fresh, false);
    if (end > fresh) write_turn(p, fresh, end, true);
    Unit u{seq, 0, 0, 1, begin, end - begin, 0, 0, 0, 0};
    for (int64_t row = begin; row < end; ++row) u.hi = a.hi[row] > u.hi ? a.hi[row] : u.hi;
    u.last_segment = (u.hi + kSegment - 1) / kSegment;
    job.ops.whole(a, u, job.scratch + thread * job.slice);
  }
}

}  // namespace

void attend_turns(const AttendTurnsParams& p, ThreadPool& pool) {
  TurnsJob job{&p, paged_ops(p.attend), nullptr, 0};
  const Unit largest{0, 0, 0, 1, 0, kMaxRows, 0, 0, 0, 0};
  job.slice = (job.ops.scratch_bytes(p.attend, largest) + 4095) / 4096 * 4096;
  job.scratch = pool.scratch(job.slice);
  pool.run(p.attend.seqs, list_item, &job);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
