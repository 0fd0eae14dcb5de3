// Which tokens expert-choice heads keep when only the best so far are kept: one list per head and
// sequence, whose worst token gives way to a better one.
#include <math.h>

#include "simd.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

struct Job {
  const KeepBestParams* p;
  char* scratch;
  int64_t slice;
};

// The list of one head of one sequence. A heap of its slots, the worst token at the top, is made
// when more than one token comes; the first token of a text stays out of it where it is protected.
struct List {
  const KeepBestParams& p;
  int64_t seq, head, length;
  float* score;
  int32_t *position, *heap;
  int64_t heaped;

  int64_t at(int64_t slot) const {
    const int64_t index = slot / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    return id < 0 || id >= p.pages ? -1 : (id * p.heads + head) * p.page + slot % p.page;
  }

  bool guarded(int64_t slot) const { return p.first && position[slot] == 0; }

  bool worse(int64_t a, int64_t b) const {
    return score[a] != score[b] ? score[a] < score[b] : position[a] < position[b];
  }

  void load() {
    for (int64_t begin = 0; begin < length; begin += p.page) {
      const int64_t from = at(begin), count = length - begin < p.page ? length - begin : p.page;
      for (int64_t i = 0; i < count; ++i) {
        score[begin + i] = from < 0 ? INFINITY : p.scores_kept[from + i];
        position[begin + i] = from < 0 ? INT32_MAX : p.positions_kept[from + i];
      }
    }
  }

  void sift_down(int64_t node) {
    const int32_t slot = heap[node];
    for (int64_t child; (child = 2 * node + 1) < heaped; node = child) {
      if (child + 1 < heaped && worse(heap[child + 1], heap[child])) ++child;
      if (!worse(heap[child], slot)) break;
      heap[node] = heap[child];
    }
    heap[node] = slot;
  }

  void push(int32_t slot) {
    int64_t node = heaped++;
    for (; node > 0 && worse(slot, heap[(node - 1) / 2]); node = (node - 1) / 2)
      heap[node] = heap[(node - 1) / 2];
    heap[node] = slot;
  }

  void make_heap() {
    heaped = 0;
    for (int64_t slot = 0; slot < length; ++slot)
      if (!guarded(slot)) heap[heaped++] = static_cast<int32_t>(slot);
    for (int64_t node = heaped / 2 - 1; node >= 0; --node) sift_down(node);
  }

  // The slot of the worst token, by looking at all of them; -1: none may go.
  int64_t find_worst() const {
    int64_t found = -1;
    for (int64_t slot = 0; slot < length; ++slot)
      if (!guarded(slot) && (found < 0 || worse(slot, found))) found = slot;
    return found;
  }

  void put(int64_t slot, float value, int64_t where) {
    score[slot] = value;
    position[slot] = static_cast<int32_t>(where);
    if (const int64_t to = at(slot); to >= 0) {
      p.scores_kept[to] = value;
      p.positions_kept[to] = position[slot];
    }
  }

  // Where the token of a row goes, or -1. `one`: no further token comes.
  int64_t take(int64_t row, bool one) {
    const float given = p.scores[row * p.heads + head];
    const float value = given == given ? given : -1.0f;  // a NaN is worse than all
    const int64_t where = p.positions[row];
    if (p.before[row] < p.after[row]) {
      const int64_t slot = length++;
      put(slot, value, where);
      if (!one && !guarded(slot)) push(static_cast<int32_t>(slot));
      return slot;
    }
    const int64_t worst = one ? find_worst() : heaped > 0 ? heap[0] : -1;
    // Of equal scores the later token is better, and this one is the latest.
    if (worst < 0 || value < score[worst]) return -1;
    put(worst, value, where);
    if (!one) sift_down(0);
    return worst;
  }
};

void keep_one(void* context, int64_t item, int thread) {
  const Job& job = *static_cast<Job*>(context);
  const KeepBestParams& p = *job.p;
  const int64_t seq = item / p.heads, most = p.table_width * p.page;
  const int64_t begin = p.cu_rows[seq], end = p.cu_rows[seq + 1];
  if (begin == end) return;
  char* scratch = job.scratch + thread * job.slice;
  float* score = reinterpret_cast<float*>(scratch);
  int32_t* position = reinterpret_cast<int32_t*>(score + most);
  const int64_t length = p.before[begin] < most ? p.before[begin] : most;
  List list{p, seq, item % p.heads, length, score, position, position + most, 0};
  list.load();
  const bool one = end - begin == 1;
  if (!one) list.make_heap();
  for (int64_t row = begin; row < end; ++row) {
    const bool fits = p.before[row] >= p.after[row] || list.length < most;
    p.slots[row * p.heads + list.head] = fits ? static_cast<int32_t>(list.take(row, one)) : -1;
  }
}

}  // namespace

void keep_best(const KeepBestParams& p, ThreadPool& pool) {
  const int64_t slice = (3 * p.table_width * p.page * 4 + 63) / 64 * 64;
  Job job{&p, pool.scratch(slice), slice};
  const int64_t items = p.seqs * p.heads;
  if (p.rows == 1) {  // waking threads costs more than looking at a few thousand scores
    for (int64_t item = 0; item < items; ++item) keep_one(&job, item, 0);
  } else {
    pool.run(items, keep_one, &job);
  }
}

}  // namespace SACCADE_ISA
}  // namespace saccade
