// Work on the rows of a matrix, shared out among the threads.
#pragma once
#include "saccade/params.h"
#include "saccade/threads.h"
#include "simd.h"

namespace saccade {
namespace SACCADE_ISA {

// Rows are handed out in groups of about this many elements: enough work to be worth waking a
// thread.
constexpr int64_t kGrain = 16384;
constexpr int64_t kElements = 2;  // that a thread does in a nanosecond, or more

// Runs fn(params, first row, one past the last row) over groups of rows on all threads.
template <class Params>
void for_row_groups(const Params& params, int64_t rows, int64_t width, ThreadPool& pool,
                    void (*fn)(const Params&, int64_t, int64_t)) {
  struct Job {
    const Params* params;
    int64_t rows, group;
    void (*fn)(const Params&, int64_t, int64_t);
  };
  const int64_t group = width >= kGrain ? 1 : kGrain / (width < 1 ? 1 : width);
  Job job{&params, rows, group, fn};
  pool.run((rows + group - 1) / group,
           [](void* context, int64_t item, int) {
             const Job& j = *static_cast<Job*>(context);
             const int64_t begin = item * j.group;
             j.fn(*j.params, begin, begin + j.group < j.rows ? begin + j.group : j.rows);
           },
           &job, rows * width / kElements);
}

template <class Fn32, class Fn16, class Fnh>
void by_dtype(DType dtype, Fn32 f32, Fn16 bf16, Fnh f16) {
  if (dtype == DType::kF32) f32();
  if (dtype == DType::kBF16) bf16();
  if (dtype == DType::kF16) f16();
}

}  // namespace SACCADE_ISA
}  // namespace saccade
