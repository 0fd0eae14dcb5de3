// Writing K and V into pages, a KV head at a time.
#include "store.h"

#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {

void write_pages(const WritePagesParams& p, ThreadPool& pool) {
  struct Job {
    const WritePagesParams* p;
  };
  Job job{&p};
  const auto one = [](void* context, int64_t head, int) {
    write_rows(*static_cast<Job*>(context)->p, head);
  };
  if (p.rows < 16) {  // a decode step: waking threads costs more than the copies
    for (int64_t head = 0; head < p.kv_heads; ++head) one(&job, head, 0);
  } else {
    pool.run(p.kv_heads, one, &job);
  }
}

}  // namespace SACCADE_ISA
}  // namespace saccade
