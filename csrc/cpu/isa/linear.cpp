// y = x W^T + bias over packed panels of 32 outputs. Small batches stream the weight once; large
// ones reuse each panel for a block of rows. A row's sums run over k in one order, whatever the
// other rows are.
#include "amx.h"
#include "product.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

constexpr int W = kWidth;
constexpr int64_t kPanel = 32;
// Rows that share a pass over a group of panels, in whole register tiles; their x stays in the
// second-level cache, with tiles in the first.
constexpr int64_t kRows = kTiles ? 32 : kNarrow ? 60 : 64;
// Bytes of a group of panels that many rows pass over: it should stay in the second-level cache.
constexpr int64_t kCached = (kTiles ? 1024 : 512) << 10;
constexpr int kVectors = 2;

struct Job {
  const LinearParams* p;
  int64_t row_blocks, panels, panels_per_item;
  char* scratch;
  int64_t scratch_bytes;
};

int64_t unit_of(DType dtype) {
  return dtype == DType::kBF16 ? 2 : 1;
}

// Writes c (rows x 32, fp32, row stride 32) as out rows, adding the bias.
template <class E>
void put_panel(const LinearParams& p, const float* c, int64_t row, int64_t count, int64_t panel) {
  const int64_t first = panel * kPanel, width = p.outs - first < kPanel ? p.outs - first : kPanel;
  for (int64_t m = 0; m < count; ++m) {
    typename E::T* y = static_cast<typename E::T*>(p.y) + (row + m) * p.y_row + first;
    const float* from = c + m * kPanel;
    for_vectors<W>(
        width,
        [&](int64_t i) {
          F<W> v = load<F<W>>(from + i);
          if (p.bias != nullptr) v += load<F<W>>(p.bias + first + i);
          E::template put<W>(y + i, v);
        },
        [&](int64_t i) {
          put_one<E>(y + i, from[i] + (p.bias != nullptr ? p.bias[first + i] : 0.0f));
        });
  }
}

void put_panel(const LinearParams& p, const float* c, int64_t row, int64_t count, int64_t panel) {
  if (p.out_dtype == DType::kF32) put_panel<ElementF32>(p, c, row, count, panel);
  if (p.out_dtype == DType::kBF16) put_panel<ElementBF16>(p, c, row, count, panel);
  if (p.out_dtype == DType::kF16) put_panel<ElementF16>(p, c, row, count, panel);
}

// One panel of 32 outputs for a block of rows.
template <class S>
struct Panel {
  const typename S::A* x;
  int64_t x_row;
  const typename S::B* weight;
  int64_t steps;
  float* c;

  template <int M>
  SACCADE_INLINE void run(int64_t row) {
    constexpr int kWide = kNarrow && M <= 2 ? 4 : kVectors;  // few rows: one reading of the weights
    for (int64_t half = 0; half < kPanel; half += W * kWide) {
      F<W> acc[M][kWide] = {};
      product<S, W, kWide, M>(acc, x + row * x_row, x_row, weight + half * S::kUnit,
                              kPanel * S::kUnit, steps);
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < kWide; ++n) store(c + (row + m) * kPanel + half + n * W, acc[m][n]);
    }
  }
};

template <class S>
void run_item(const Job& job, int64_t item, int thread) {
  const LinearParams& p = *job.p;
  const int64_t row = item % job.row_blocks * kRows;
  const int64_t count = p.rows - row < kRows ? p.rows - row : kRows;
  const int64_t begin = item / job.row_blocks * job.panels_per_item;
  const int64_t end =
      begin + job.panels_per_item < job.panels ? begin + job.panels_per_item : job.panels;
  const int64_t unit = unit_of(p.dtype), steps = (p.in + unit - 1) / unit;
  float* c = reinterpret_cast<float*>(job.scratch + thread * job.scratch_bytes);
  const typename S::A* x;
  int64_t x_row = p.x_row;
  if constexpr (sizeof(typename S::A) == sizeof(float)) {
    if (p.dtype == DType::kF32) {
      x = static_cast<const typename S::A*>(p.x) + row * p.x_row;
    } else {  // widen the rows once for all panels of this item
      float* wide = c + kRows * kPanel;
      for (int64_t m = 0; m < count; ++m) {
        const uint16_t* from = static_cast<const uint16_t*>(p.x) + (row + m) * p.x_row;
        float* to = wide + m * p.in;
        const bool bf16 = p.dtype == DType::kBF16;
        for_vectors<W>(
            p.in,
            [&](int64_t i) {
              store(to + i, bf16 ? widen_bf16<W>(from + i) : widen_f16<W>(from + i));
            },
            [&](int64_t i) {
              to[i] = bf16 ? get_one<ElementBF16>(from + i) : get_one<ElementF16>(from + i);
            });
      }
      x = wide;
      x_row = p.in;
    }
  } else {
    x = static_cast<const typename S::A*>(p.x) + row * p.x_row;
  }
  const typename S::B* weight = static_cast<const typename S::B*>(p.weight);
  for (int64_t panel = begin; panel < end; ++panel) {
    Panel<S> tile{x, x_row, weight + panel * steps * kPanel * unit, steps, c};
    for_row_blocks<S::kRows == 6 ? 6 : 8>(count, tile);
    put_panel(p, c, row, count, panel);
  }
}

#if SACCADE_AMX
// Whole tiles of rows are read where they are, others are copied: what lies behind the last row
// gives sums that nobody reads. kOnce: of many rows, 32 stay in the first-level cache while the
// weights go past it.
template <bool kOnce>
void run_rows(const LinearParams& p, const uint16_t* x, int64_t x_row, int64_t row, int64_t count,
              int64_t begin, int64_t end, float* c) {
  const uint16_t* weight = static_cast<const uint16_t*>(p.weight);
  const TileScope tiles(count);
  for (int64_t panel = begin; panel < end; ++panel) {
    amx::rows_product<kOnce>(count, c, kPanel, x, x_row, weight + panel * p.in * kPanel, 2 * kPanel,
                             p.in / 32);
    put_panel(p, c, row, count, panel);
  }
}

void run_item_amx(const Job& job, int64_t item, int thread) {
  const LinearParams& p = *job.p;
  const int64_t row = item % job.row_blocks * kRows;
  const int64_t count = p.rows - row < kRows ? p.rows - row : kRows;
  const int64_t begin = item / job.row_blocks * job.panels_per_item;
  const int64_t end =
      begin + job.panels_per_item < job.panels ? begin + job.panels_per_item : job.panels;
  float* c = reinterpret_cast<float*>(job.scratch + thread * job.scratch_bytes);
  const uint16_t* x = static_cast<const uint16_t*>(p.x) + row * p.x_row;
  if (count == kRows && job.row_blocks > 1)
    return run_rows<true>(p, x, p.x_row, row, count, begin, end, c);
  uint16_t* copy = reinterpret_cast<uint16_t*>(c + kRows * kPanel);
  for (int64_t m = 0; m < count; ++m)
    std::memcpy(copy + m * p.in, x + m * p.x_row, static_cast<size_t>(p.in) * 2);
  run_rows<false>(p, copy, p.in, row, count, begin, end, c);
}
#endif

using ItemRunner = void (*)(const Job&, int64_t, int);

ItemRunner runner_for(const LinearParams& p) {
#if SACCADE_AMX
  (void)p;
  return run_item_amx;
#else
  return with_step(p.dtype, [](auto step) -> ItemRunner { return run_item<decltype(step)>; });
#endif
}

// The call of one head alone.
LinearParams of_head(const LinearParams& p, int64_t head) {
  const int64_t unit = unit_of(p.dtype), panels = (p.outs + kPanel - 1) / kPanel;
  const int64_t weights = panels * kPanel * ((p.in + unit - 1) / unit * unit);
  LinearParams one = p;
  one.x = static_cast<const char*>(p.x) + head * p.x_head * size_of(p.dtype);
  one.weight = static_cast<const char*>(p.weight) + head * weights * size_of(p.dtype);
  one.y = static_cast<char*>(p.y) + head * p.y_head * size_of(p.out_dtype);
  return one;
}

// Of one thread, roughly: weights arrive at 16 bytes, products go at 32 FLOPs a nanosecond.
int64_t nanoseconds(const LinearParams& p) {
  const int64_t weights = p.heads * p.in * p.outs;
  const int64_t reading = weights * size_of(p.dtype) / 16, computing = weights * p.rows / 16;
  return reading > computing ? reading : computing;
}

}  // namespace

void linear(const LinearParams& p, ThreadPool& pool) {
  if (p.rows == 0 || p.heads == 0) return;
  struct Call {
    Job job;
    ItemRunner run;
    int64_t items;  // of a head
  };
  const int64_t row_blocks = (p.rows + kRows - 1) / kRows, panels = (p.outs + kPanel - 1) / kPanel;
  // About eight items a thread even out the ends, and a group of panels should stay in the
  // second-level cache while all row blocks pass over it; a panel is the least piece.
  const int64_t cached = kCached / (kPanel * (p.in < 1 ? 1 : p.in) * size_of(p.dtype));
  int64_t per_item = p.heads * panels * row_blocks / (8 * pool.size());
  if (row_blocks > 1 && per_item > cached) per_item = cached;
  per_item = per_item < 1 ? 1 : (per_item > panels ? panels : per_item);
  const int64_t bytes = (kRows * (kPanel + p.in) * 4 + 63) / 64 * 64;
  Call call{{&p, row_blocks, panels, per_item, nullptr, 0},
            runner_for(p),
            row_blocks * ((panels + per_item - 1) / per_item)};
  call.job.scratch_bytes = (bytes + 4095) / 4096 * 4096;
  call.job.scratch = pool.scratch(call.job.scratch_bytes);
  pool.run(
      call.items * p.heads,
      [](void* context, int64_t item, int thread) {
        const Call& c = *static_cast<Call*>(context);
        const LinearParams one = of_head(*c.job.p, item / c.items);
        Job job = c.job;
        job.p = &one;
        c.run(job, item % c.items, thread);
      },
      &call, nanoseconds(p));
}

}  // namespace SACCADE_ISA
}  // namespace saccade
