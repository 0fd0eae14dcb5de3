// First and second moments of keys by blocks, and what they say of the mass of a row's far keys.
//
// An entry of `rows` vectors [dim] belongs to a block of keys and lies in the page of its last
// token: the mean, and then the variance of each channel, or some rows of the covariance. Sums run
// over the keys in ascending order, W at a time from a multiple of W on, whatever the pages' size;
// a row's mass is computed from its own query and its own blocks. So neither depends on how the
// prompt was cut, nor on the batch.
#include <math.h>

#include "room.h"
#include "simd.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

enum Kind : int64_t { kBlocks = 0, kDiagonal = 1, kFull = 2, kBounds = 3 };

// ---- statistics ----

// One KV head of one sequence; blocks that share no prior entry are items of their own.
template <class E, int kU>
struct MomentsRun {
  using T = typename E::T;
  const KeyMomentsParams& p;
  int64_t seq, head;
  const T** places = nullptr;  // [keys / W]: where the first channel of W keys lies
  float* mean = nullptr;       // [dim], of the keys at work
  float* centred = nullptr;    // [slice][keys]: rows of the covariance at work, less their mean
  int64_t begin = 0, end = 0;  // the keys at work

  int64_t slice() const { return p.kind == kFull ? p.entry_rows - 1 : 0; }
  int64_t most_keys() const { return p.spread * p.block; }

  int64_t carve(char* from) {
    const int64_t bytes = (most_keys() / W * static_cast<int64_t>(sizeof(T*)) + 63) / 64 * 64;
    places = reinterpret_cast<const T**>(from);
    mean = reinterpret_cast<float*>(from + bytes);
    centred = mean + (p.dim + 15) / 16 * 16;
    const int64_t floats = (p.dim + 15) / 16 * 16 + slice() * most_keys();
    return bytes + floats * static_cast<int64_t>(sizeof(float));
  }

  int64_t page_of(int64_t position) const {
    const int64_t index = position / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    return id < p.pages ? id : -1;
  }

  float* entry(int64_t block) const {
    const int64_t last = (block + 1) * p.block - 1, id = page_of(last);
    if (id < 0) return nullptr;
    const int64_t slot = p.block < p.page ? last % p.page / p.block : 0;
    return p.moments + ((id * p.slots + slot) * p.kv_heads + head) * p.entry_rows * p.dim;
  }

  // False where a page is missing.
  bool locate() {
    for (int64_t at = begin; at < end; at += W) {
      const int64_t id = page_of(at);
      if (id < 0) return false;
      places[(at - begin) / W] = static_cast<const T*>(p.k_pages) +
                                 p.steps.panel(id, head) * p.page * p.dim + at % p.page * kU;
    }
    return true;
  }

  // W keys from `position` on, of one channel, less `center`; 0 for those that do not count.
  SACCADE_INLINE F<W> keys(int64_t channel, int64_t position, float center) const {
    const T* from = places[(position - begin) / W] + channel / kU * p.page * kU;
    F<W> x;
    if constexpr (kU == 2) {
      const U<W> pairs = load<U<W>>(from);
      x = channel % 2 == 0 ? (F<W>)(pairs << 16) : (F<W>)(pairs & 0xffff0000u);
    } else {
      x = E::template get<W>(from);
    }
    x -= splat<W>(center);
    for (int64_t i = 0; i < p.sinks - position && i < W; ++i) x[i] = 0.0f;
    return x;
  }

  void block(int64_t number) {
    float* to = entry(number);
    const int64_t oldest = number - p.spread + 1 > 0 ? number - p.spread + 1 : 0;
    const float* prior = p.kind != kBlocks && number >= p.spread ? entry(number - p.spread) : to;
    const int64_t first = oldest * p.block > p.sinks ? oldest * p.block : p.sinks;
    begin = first / W * W;
    end = (number + 1) * p.block;
    if (to == nullptr || prior == nullptr || !locate()) return;
    const int64_t count = end > first ? end - first : 0;
    const int64_t before = prior != to && first > p.sinks ? first - p.sinks : 0;
    std::memset(to, 0, static_cast<size_t>(p.entry_rows * p.dim) * sizeof(float));
    if (count == 0) return;
    for (int64_t c = 0; c < p.dim; ++c) {
      F<W> sum{};
      for (int64_t at = begin; at < end; at += W) sum += keys(c, at, 0.0f);
      mean[c] = sum_lanes<W>(sum) / static_cast<float>(count);
    }
    const Join join{static_cast<float>(before), static_cast<float>(count)};
    if (p.kind == kFull) {
      covariance(number % p.spread * slice(), join, prior, to);
    } else {
      variance(join, prior, to);
    }
    for (int64_t c = 0; c < p.dim; ++c)
      to[c] = before > 0 ? prior[c] + (mean[c] - prior[c]) * join.share() : mean[c];
  }

  // Moments of `before` keys and of `count` more, put together (Chan et al. 1979).
  struct Join {
    float before, count;
    float share() const { return count / (before + count); }
    float second(float prior, float own, float gap_a, float gap_b) const {
      return prior + (own - prior) * share() + gap_a * gap_b * share() * (1.0f - share());
    }
  };

  void variance(const Join& join, const float* prior, float* to) {
    for (int64_t c = 0; c < p.dim; ++c) {
      F<W> sum{};
      for (int64_t at = begin; at < end; at += W) {
        const F<W> x = keys(c, at, mean[c]);
        sum = fma<W>(x, x, sum);
      }
      const float own = sum_lanes<W>(sum) / join.count, gap = mean[c] - prior[c];
      to[p.dim + c] = join.before > 0 ? join.second(prior[p.dim + c], own, gap, gap) : own;
    }
  }

  // Rows first .. first + slice of the covariance.
  void covariance(int64_t first, const Join& join, const float* prior, float* to) {
    const int64_t rows = p.dim - first < slice() ? p.dim - first : slice();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t at = begin; at < end; at += W)
        store(centred + r * most_keys() + at - begin, keys(first + r, at, mean[first + r]));
    for (int64_t c = 0; c < p.dim; ++c) {
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) covariance_rows<4>(first, r, c, join, prior, to);
      for (; r < rows; ++r) covariance_rows<1>(first, r, c, join, prior, to);
    }
  }

  template <int N>
  void covariance_rows(int64_t first, int64_t r, int64_t c, const Join& join, const float* prior,
                       float* to) const {
    F<W> sums[N] = {};
    for (int64_t at = begin; at < end; at += W) {
      const F<W> x = keys(c, at, mean[c]);
      for (int n = 0; n < N; ++n)
        sums[n] = fma<W>(x, load<F<W>>(centred + (r + n) * most_keys() + at - begin), sums[n]);
    }
    for (int n = 0; n < N; ++n) {
      const int64_t i = first + r + n, at = (1 + r + n) * p.dim + c;
      const float own = sum_lanes<W>(sums[n]) / join.count;
      const float gap_a = mean[i] - prior[i], gap_b = mean[c] - prior[c];
      to[at] = join.before > 0 ? join.second(prior[at], own, gap_a, gap_b) : own;
    }
  }
};

struct MomentsJob {
  const KeyMomentsParams* p;
  char* scratch;
  int64_t slice;
};

template <class E, int kU>
void moments_item(void* context, int64_t item, int thread) {
  const MomentsJob& job = *static_cast<MomentsJob*>(context);
  const KeyMomentsParams& p = *job.p;
  const int64_t chain = item % p.spread, owner = item / p.spread;
  MomentsRun<E, kU> run{p, owner / p.kv_heads, owner % p.kv_heads};
  run.carve(job.scratch + thread * job.slice);
  const int64_t first = p.first[run.seq], past = first % p.spread;
  // An entry needs the one `spread` blocks before: each chain of these is walked in order.
  for (int64_t n = first + (chain + p.spread - past) % p.spread; n < p.last[run.seq]; n += p.spread)
    run.block(n);
}

template <class E, int kU>
void moments_all(const KeyMomentsParams& p, ThreadPool& pool) {
  MomentsRun<E, kU> measure{p, 0, 0};
  MomentsJob job{&p, nullptr, (measure.carve(nullptr) + 4095) / 4096 * 4096};
  job.scratch = pool.scratch(job.slice);
  pool.run(p.seqs * p.kv_heads * p.spread, moments_item<E, kU>, &job);
}

// ---- mass ----

constexpr int64_t kTile = 8;     // rows that share the load of an entry
constexpr int64_t kPanel = 256;  // blocks scored before their exponentials are summed
constexpr int kHeads = 4;        // of these at a time

template <class EQ, class EE>
struct MassRun {
  const FarMassParams& p;
  int64_t seq, kv_head, row, rows, group;
  float* q = nullptr;       // [rows * group][2 dim]: what meets the two vectors of an entry
  float* scores = nullptr;  // [rows * group][kPanel], in log2 units
  float* top = nullptr;     // [rows * group]: the largest so far
  float* sum = nullptr;     // [rows * group]: of exponentials beside it

  int64_t carve(char* from) {
    const int64_t all = kTile * group;
    q = reinterpret_cast<float*>(from);
    scores = q + all * 2 * p.dim;
    top = scores + all * kPanel;
    sum = top + all;
    return ((sum + all) - reinterpret_cast<float*>(from)) * static_cast<int64_t>(sizeof(float));
  }

  float query(int64_t r, int64_t h, int64_t channel) const {
    const typename EQ::T* from = static_cast<const typename EQ::T*>(p.q);
    return get_one<EQ>(from + (row + r) * p.q_row + (kv_head * group + h) * p.q_head + channel);
  }

  void load_q() {
    for (int64_t i = 0; i < rows * group; ++i) {
      float *first = q + i * 2 * p.dim, *second = first + p.dim;
      for (int64_t c = 0; c < p.dim; ++c) {
        const float x = query(i / group, i % group, c) * p.scale;
        if (p.kind == kBounds) {
          first[c] = x < 0.0f ? x : 0.0f;
          second[c] = x < 0.0f ? 0.0f : x;
        } else {
          first[c] = x;
          second[c] = 0.5f * x * x;
        }
      }
      top[i] = -INFINITY;
      sum[i] = 0.0f;
    }
  }

  const typename EE::T* entry(int64_t block) const {
    const int64_t last = (block + 1) * p.block - 1, index = last / p.page;
    const int64_t id = index < p.table_width ? p.table[seq * p.table_row + index] : -1;
    if (id < 0 || id >= p.pages) return nullptr;
    const int64_t slot = p.block < p.page ? last % p.page / p.block : 0;
    return static_cast<const typename EE::T*>(p.entries) +
           ((id * p.slots + slot) * p.kv_heads + kv_head) * p.entry_rows * p.dim;
  }

  int64_t border(int64_t r) const { return p.positions[row + r] - p.window + 1; }
  int64_t blocks(int64_t r) const {
    return border(r) > p.sinks ? (border(r) + p.block - 1) / p.block : 0;
  }

  template <int N>
  SACCADE_INLINE void dots(const typename EE::T* from, const float* with, int64_t step,
                           int64_t length, float* to, int64_t to_step) const {
    F<W> sums[N] = {};
    float rest[N] = {};
    int64_t i = 0;
    for (; i + W <= length; i += W) {
      const F<W> x = EE::template get<W>(from + i);
      for (int n = 0; n < N; ++n) sums[n] = fma<W>(x, load<F<W>>(with + n * step + i), sums[n]);
    }
    for (; i < length; ++i)
      for (int n = 0; n < N; ++n) rest[n] += get_one<EE>(from + i) * with[n * step + i];
    for (int n = 0; n < N; ++n) to[n * to_step] = sum_lanes<W>(sums[n]) + rest[n];
  }

  void dots_of_row(const typename EE::T* from, int64_t r, int64_t length, float* to,
                   int64_t to_step) const {
    const float* with = q + r * group * 2 * p.dim;
    int64_t h = 0;
    for (; h + kHeads <= group; h += kHeads)
      dots<kHeads>(from, with + h * 2 * p.dim, 2 * p.dim, length, to + h * to_step, to_step);
    for (; h < group; ++h) dots<1>(from, with + h * 2 * p.dim, 0, length, to + h * to_step, 0);
  }

  // The scores of one panel of row-head i, joined to its top and sum.
  void join(int64_t i, int64_t count) {
    float* from = scores + i * kPanel;
    for (int64_t at = count; at % W != 0; ++at) from[at] = -INFINITY;
    F<W> high = splat<W>(-INFINITY), total{};
    for (int64_t at = 0; at < count; at += W) high = max<W>(high, load<F<W>>(from + at));
    const float now = top[i] > max_lanes<W>(high) ? top[i] : max_lanes<W>(high);
    const float base = now == -INFINITY ? 0.0f : now;
    for (int64_t at = 0; at < count; at += W)
      total += exp2_nonpositive<W>(load<F<W>>(from + at) - splat<W>(base));
    const float kept = top[i] == now ? sum[i] : sum[i] * exp2f(top[i] - base);
    sum[i] = kept + sum_lanes<W>(total);
    top[i] = now;
  }

  // Every block of far keys by its own entry.
  void by_blocks() {
    int64_t most = 0;
    for (int64_t r = 0; r < rows; ++r) most = blocks(r) > most ? blocks(r) : most;
    for (int64_t first = p.sinks / p.block; first < most; first += kPanel) {
      for (int64_t b = first; b < most && b < first + kPanel; ++b) {
        const typename EE::T* from = entry(b);
        for (int64_t r = 0; r < rows; ++r) {
          if (b >= blocks(r)) continue;
          const int64_t begin = b * p.block > p.sinks ? b * p.block : p.sinks;
          const int64_t end = (b + 1) * p.block < border(r) ? (b + 1) * p.block : border(r);
          float* to = scores + r * group * kPanel + b - first;
          if (from != nullptr) dots_of_row(from, r, 2 * p.dim, to, kPanel);
          const float count = log2f(static_cast<float>(end - begin));
          for (int64_t h = 0; h < group; ++h, to += kPanel)
            *to = from == nullptr ? NAN : fmaf(*to, kLog2E, count);
        }
      }
      for (int64_t i = 0; i < rows * group; ++i) {
        const int64_t left = blocks(i / group) - first;
        if (left > 0) join(i, left < kPanel ? left : kPanel);
      }
    }
  }

  // All far keys by one entry, that of the latest block, or for the covariance of the latest ones.
  void by_one() {
    const int64_t slice = p.entry_rows - 1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t count = blocks(r);
      if (count == 0) continue;
      float *to = top + r * group, second[1];
      const bool full = p.kind == kFull;
      const typename EE::T* from = entry(count - 1);
      if (from != nullptr) dots_of_row(from, r, (full ? 1 : 2) * p.dim, to, 1);
      for (int64_t h = 0; full && from != nullptr && h < group; ++h) {
        const float* x = q + (r * group + h) * 2 * p.dim;
        for (int64_t back = 0; back < p.spread && back < count; ++back) {
          const typename EE::T* rows_of = entry(count - 1 - back);
          const int64_t begin = (count - 1 - back) % p.spread * slice;
          for (int64_t i = 0; i < slice && begin + i < p.dim; ++i) {
            if (rows_of != nullptr) dots<1>(rows_of + (1 + i) * p.dim, x, 0, p.dim, second, 0);
            to[h] = rows_of == nullptr ? NAN : fmaf(0.5f * x[begin + i], second[0], to[h]);
          }
        }
      }
      const float far = log2f(static_cast<float>(border(r) - p.sinks));
      for (int64_t h = 0; h < group; ++h) {
        to[h] = from == nullptr ? NAN : fmaf(to[h], kLog2E, far);
        // Not all rows of the covariance are known yet.
        if (full && count - p.sinks / p.block < p.spread) to[h] = INFINITY;
        sum[r * group + h] = 1.0f;
      }
    }
  }

  void run() {
    load_q();
    if (p.kind == kBlocks || p.kind == kBounds) {
      by_blocks();
    } else {
      by_one();
    }
    for (int64_t i = 0; i < rows * group; ++i) {
      const float mass = sum[i] == 0.0f ? -INFINITY : (top[i] + log2f(sum[i])) * kLn2;
      p.mass[(row + i / group) * p.heads + kv_head * group + i % group] = mass;
    }
  }
};

struct MassJob {
  const FarMassParams* p;
  const int64_t* first_tile;  // [seqs + 1]
  char* scratch;
  int64_t slice;
};

template <class EQ, class EE>
void mass_item(void* context, int64_t item, int thread) {
  const MassJob& job = *static_cast<MassJob*>(context);
  const FarMassParams& p = *job.p;
  const int64_t tile = item / p.kv_heads;
  int64_t low = 0, high = p.seqs;  // first_tile[low] <= tile < first_tile[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (job.first_tile[middle] <= tile ? low : high) = middle;
  }
  const int64_t row = p.cu_rows[low] + (tile - job.first_tile[low]) * kTile;
  const int64_t left = p.cu_rows[low + 1] - row;
  const int64_t rows = left < kTile ? left : kTile;
  MassRun<EQ, EE> run{p, low, item % p.kv_heads, row, rows, p.heads / p.kv_heads};
  run.carve(job.scratch + thread * job.slice);
  run.run();
}

template <class EQ, class EE>
void mass_all(const FarMassParams& p, ThreadPool& pool) {
  const Room<int64_t> first(p.seqs + 1);
  first[0] = 0;
  for (int64_t s = 0; s < p.seqs; ++s)
    first[s + 1] = first[s] + (p.cu_rows[s + 1] - p.cu_rows[s] + kTile - 1) / kTile;
  MassRun<EQ, EE> measure{p, 0, 0, 0, 0, p.heads / p.kv_heads};
  MassJob job{&p, first.get(), nullptr, (measure.carve(nullptr) + 4095) / 4096 * 4096};
  job.scratch = pool.scratch(job.slice);
  pool.run(first[p.seqs] * p.kv_heads, mass_item<EQ, EE>, &job);
}

}  // namespace

void key_moments(const KeyMomentsParams& p, ThreadPool& pool) {
  if (p.dtype == DType::kF32) moments_all<ElementF32, 1>(p, pool);
  if (p.dtype == DType::kBF16) moments_all<ElementBF16, 2>(p, pool);
  if (p.dtype == DType::kF16) moments_all<ElementF16, 1>(p, pool);
}

void far_mass(const FarMassParams& p, ThreadPool& pool) {
  const bool wide = p.entry_dtype == DType::kF32;
  if (p.dtype == DType::kF32) mass_all<ElementF32, ElementF32>(p, pool);
  if (p.dtype == DType::kBF16 && wide) mass_all<ElementBF16, ElementF32>(p, pool);
  if (p.dtype == DType::kBF16 && !wide) mass_all<ElementBF16, ElementBF16>(p, pool);
  if (p.dtype == DType::kF16 && wide) mass_all<ElementF16, ElementF32>(p, pool);
  if (p.dtype == DType::kF16 && !wide) mass_all<ElementF16, ElementF16>(p, pool);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
