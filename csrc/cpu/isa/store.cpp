// Writing K and V into pages, pieces of rows and KV heads at a time.
#include "store.h"

#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {

namespace {

constexpr int64_t kPiece = 512;  // rows of a KV head that a thread takes at a time

}  // namespace

void write_pages(const WritePagesParams& p, ThreadPool& pool) {
  if (p.rows < 16) {  // a decode step: waking threads costs more than the copies
    for (int64_t head = 0; head < p.kv_heads; ++head) write_rows(p, head);
    return;
  }
  const auto clear = [](void* context, int64_t head, int) {
    clear_head(*static_cast<WritePagesParams*>(context), head);
  };
  const auto write = [](void* context, int64_t item, int) {
    const WritePagesParams& q = *static_cast<WritePagesParams*>(context);
    const int64_t first = item / q.kv_heads * kPiece, last = first + kPiece;
    write_rows(q, item % q.kv_heads, first, last < q.rows ? last : q.rows);
  };
  WritePagesParams mine = p;
  pool.run(p.kv_heads, clear, &mine);
  pool.run((p.rows + kPiece - 1) / kPiece * p.kv_heads, write, &mine);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
