// The only binding file: raw pointers, sizes and strides in, nothing out. Validation lives at each
// op's door in Python.
#include <pybind11/pybind11.h>

#include <mutex>
#include <string>

#include "saccade/kernel_table.h"
#include "saccade/sources.h"

namespace py = pybind11;
using namespace saccade;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The kernels of one instruction set with a thread pool of their own. Calls from several Python
// threads take turns.
class Kernels {
 public:
  Kernels(const std::string& isa, int threads) : pool_(threads), isa_(isa) {
    const char* reason = nullptr;
    table_ = kernel_table(isa.c_str(), &reason);
    if (table_ == nullptr) throw py::value_error(isa + ": " + reason);
  }

  const std::string& isa() const { return isa_; }
  int threads() const { return pool_.size(); }

  template <class Params>
  void run(void (*KernelTable::*entry)(const Params&, ThreadPool&), const Params& params) {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    (table_->*entry)(params, pool_);
  }

  double stream_read(uintptr_t data, int64_t bytes) {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    return table_->stream_read(pointer<const void>(data), bytes, pool_);
  }

 private:
  ThreadPool pool_;
  std::string isa_;
  const KernelTable* table_;
  std::mutex mutex_;
};

void attend(Kernels& kernels, int dtype, int out_dtype, int64_t seqs, int64_t rows, int64_t heads,
            int64_t kv_heads, int64_t dim, int64_t v_dim, int64_t page, int64_t pages, uintptr_t q,
            int64_t q_row, int64_t q_head, int64_t page_step, int64_t head_step, uintptr_t k_pages,
            uintptr_t v_pages, uintptr_t table, int64_t table_row, int64_t table_width,
            uintptr_t cu_rows, uintptr_t positions, uintptr_t lo, uintptr_t hi, int64_t window,
            int64_t sinks, float scale, float softcap, uintptr_t sink_logits, uintptr_t blocks,
            uintptr_t list_of_row, int64_t owners, int64_t list_width, int64_t block, uintptr_t out,
            uintptr_t lse) {
  kernels.run(&KernelTable::attend, AttendParams{static_cast<DType>(dtype),
                                                 static_cast<DType>(out_dtype),
                                                 seqs,
                                                 rows,
                                                 heads,
                                                 kv_heads,
                                                 dim,
                                                 v_dim,
                                                 page,
                                                 pages,
                                                 pointer<const void>(q),
                                                 q_row,
                                                 q_head,
                                                 {page_step, head_step},
                                                 pointer<const void>(k_pages),
                                                 pointer<const void>(v_pages),
                                                 pointer<const int32_t>(table),
                                                 table_row,
                                                 table_width,
                                                 pointer<const int32_t>(cu_rows),
                                                 pointer<const int64_t>(positions),
                                                 pointer<const int32_t>(lo),
                                                 pointer<const int32_t>(hi),
                                                 window,
                                                 sinks,
                                                 scale,
                                                 softcap,
                                                 pointer<const float>(sink_logits),
                                                 pointer<const int32_t>(blocks),
                                                 pointer<const int32_t>(list_of_row),
                                                 owners,
                                                 list_width,
                                                 block,
                                                 pointer<void>(out),
                                                 pointer<float>(lse)});
}

void attend_turns(Kernels& kernels, int dtype, int out_dtype, int64_t seqs, int64_t rows,
                  int64_t dim, int64_t v_dim, int64_t page, int64_t pages, uintptr_t q,
                  int64_t q_row, int64_t page_step, int64_t head_step, uintptr_t k_pages,
                  uintptr_t v_pages, uintptr_t table, int64_t table_row, int64_t table_width,
                  uintptr_t cu_rows, uintptr_t positions, uintptr_t hi, float scale, uintptr_t out,
                  uintptr_t lse, uintptr_t k, int64_t k_row, uintptr_t v, int64_t v_row,
                  uintptr_t slots, uintptr_t replaces) {
  AttendTurnsParams p{};
  AttendParams& a = p.attend;
  a.dtype = static_cast<DType>(dtype);
  a.out_dtype = static_cast<DType>(out_dtype);
  a.seqs = seqs;
  a.rows = rows;
  a.heads = a.kv_heads = 1;
  a.dim = dim;
  a.v_dim = v_dim;
  a.page = page;
  a.pages = pages;
  a.q = pointer<const void>(q);
  a.q_row = q_row;
  a.steps = {page_step, head_step};
  a.k_pages = pointer<const void>(k_pages);
  a.v_pages = pointer<const void>(v_pages);
  a.table = pointer<const int32_t>(table);
  a.table_row = table_row;
  a.table_width = table_width;
  a.cu_rows = pointer<const int32_t>(cu_rows);
  a.positions = pointer<const int64_t>(positions);
  a.hi = pointer<const int32_t>(hi);
  a.scale = scale;
  a.out = pointer<void>(out);
  a.lse = pointer<float>(lse);
  p.k = pointer<const void>(k);
  p.k_row = k_row;
  p.v = pointer<const void>(v);
  p.v_row = v_row;
  p.slots = pointer<const int64_t>(slots);
  p.replaces = pointer<const uint8_t>(replaces);
  kernels.run(&KernelTable::attend_turns, p);
}

void linear(Kernels& kernels, int dtype, int out_dtype, int64_t rows, int64_t in, int64_t outs,
            uintptr_t x, int64_t x_row, uintptr_t weight, uintptr_t bias, uintptr_t y) {
  kernels.run(&KernelTable::linear,
              LinearParams{static_cast<DType>(dtype), static_cast<DType>(out_dtype), rows, in, outs,
                           pointer<const void>(x), x_row, pointer<const void>(weight),
                           pointer<const float>(bias), pointer<void>(y), outs, 1, 0, 0});
}

void linear_heads(Kernels& kernels, int dtype, int out_dtype, int64_t rows, int64_t heads,
                  int64_t in, int64_t outs, uintptr_t x, int64_t x_row, int64_t x_head,
                  uintptr_t weight, uintptr_t y, int64_t y_row, int64_t y_head) {
  kernels.run(&KernelTable::linear,
              LinearParams{static_cast<DType>(dtype), static_cast<DType>(out_dtype), rows, in, outs,
                           pointer<const void>(x), x_row, pointer<const void>(weight), nullptr,
                           pointer<void>(y), y_row, heads, x_head, y_head});
}

void rms_norm(Kernels& kernels, int dtype, int64_t rows, int64_t width, uintptr_t x, int64_t x_row,
              uintptr_t weight, float eps, float offset, uintptr_t residual, int64_t residual_row,
              uintptr_t out) {
  kernels.run(&KernelTable::rms_norm,
              RmsNormParams{static_cast<DType>(dtype), rows, width, pointer<const void>(x), x_row,
                            pointer<const void>(weight), eps, offset, pointer<void>(residual),
                            residual_row, pointer<void>(out)});
}

void rope(Kernels& kernels, int dtype, int64_t rows, int64_t heads, int64_t half, uintptr_t x,
          int64_t x_row, int64_t x_head, uintptr_t cos, uintptr_t sin) {
  kernels.run(&KernelTable::rope,
              RopeParams{static_cast<DType>(dtype), rows, heads, half, pointer<void>(x), x_row,
                         x_head, pointer<const float>(cos), pointer<const float>(sin)});
}

void silu_mul(Kernels& kernels, int dtype, int64_t rows, int64_t width, uintptr_t x, int64_t x_row,
              float alpha, float limit, float shift, uintptr_t out) {
  kernels.run(&KernelTable::silu_mul,
              SiluMulParams{static_cast<DType>(dtype), rows, width, pointer<const void>(x), x_row,
                            alpha, limit, shift, pointer<void>(out)});
}

void sigmoid_mul(Kernels& kernels, int dtype, int64_t rows, int64_t width, int64_t span,
                 uintptr_t x, int64_t x_row, uintptr_t gate, int64_t gate_row, uintptr_t out) {
  kernels.run(&KernelTable::sigmoid_mul,
              SigmoidMulParams{static_cast<DType>(dtype), rows, width, span, pointer<const void>(x),
                               x_row, pointer<const void>(gate), gate_row, pointer<void>(out)});
}

void key_conv(Kernels& kernels, int dtype, int64_t rows, int64_t width, int64_t taps, bool residual,
              uintptr_t k, int64_t k_row, uintptr_t history, uintptr_t before, uintptr_t weight,
              uintptr_t out) {
  kernels.run(
      &KernelTable::key_conv,
      KeyConvParams{static_cast<DType>(dtype), rows, width, taps, residual, pointer<const void>(k),
                    k_row, pointer<const void>(history), pointer<const int64_t>(before),
                    pointer<const void>(weight), pointer<void>(out)});
}

void gated_delta(Kernels& kernels, int dtype, int64_t seqs, int64_t heads, int64_t key_heads,
                 int64_t key_dim, int64_t value_dim, uintptr_t cu, uintptr_t rows, uintptr_t load,
                 uintptr_t store, uintptr_t q, int64_t q_row, uintptr_t k, int64_t k_row,
                 uintptr_t v, int64_t v_row, uintptr_t decay, uintptr_t beta, uintptr_t states,
                 uintptr_t out) {
  kernels.run(&KernelTable::gated_delta, GatedDeltaParams{static_cast<DType>(dtype),
                                                          seqs,
                                                          heads,
                                                          key_heads,
                                                          key_dim,
                                                          value_dim,
                                                          pointer<const int64_t>(cu),
                                                          pointer<const int64_t>(rows),
                                                          pointer<const int64_t>(load),
                                                          pointer<const int64_t>(store),
                                                          pointer<const void>(q),
                                                          q_row,
                                                          pointer<const void>(k),
                                                          k_row,
                                                          pointer<const void>(v),
                                                          v_row,
                                                          pointer<const float>(decay),
                                                          pointer<const float>(beta),
                                                          pointer<float>(states),
                                                          pointer<void>(out)});
}

void merge(Kernels& kernels, int dtype, int64_t rows, int64_t dim, uintptr_t out_a, uintptr_t lse_a,
           uintptr_t out_b, uintptr_t lse_b, uintptr_t out, uintptr_t lse) {
  kernels.run(&KernelTable::merge,
              MergeParams{static_cast<DType>(dtype), rows, dim, pointer<const void>(out_a),
                          pointer<const float>(lse_a), pointer<const void>(out_b),
                          pointer<const float>(lse_b), pointer<void>(out), pointer<float>(lse)});
}

void write_pages(Kernels& kernels, int dtype, int64_t rows, int64_t kv_heads, int64_t dim,
                 int64_t v_dim, int64_t page, int64_t pages, int64_t page_step, int64_t head_step,
                 uintptr_t k_pages, uintptr_t v_pages, uintptr_t k, int64_t k_row, int64_t k_head,
                 uintptr_t v, int64_t v_row, int64_t v_head, uintptr_t slots, bool clear) {
  kernels.run(&KernelTable::write_pages, WritePagesParams{static_cast<DType>(dtype),
                                                          rows,
                                                          kv_heads,
                                                          dim,
                                                          v_dim,
                                                          page,
                                                          pages,
                                                          {page_step, head_step},
                                                          pointer<void>(k_pages),
                                                          pointer<void>(v_pages),
                                                          pointer<const void>(k),
                                                          k_row,
                                                          k_head,
                                                          pointer<const void>(v),
                                                          v_row,
                                                          v_head,
                                                          pointer<const int64_t>(slots),
                                                          clear});
}

void keep_above(Kernels& kernels, int64_t seqs, int64_t rows, int64_t heads, int64_t page,
                int64_t pages, uintptr_t scores, uintptr_t thresholds, uintptr_t flags,
                uintptr_t lengths, uintptr_t table, int64_t table_row, int64_t table_width,
                uintptr_t cu_rows, uintptr_t positions, uintptr_t after, bool first,
                uintptr_t slots) {
  kernels.run(&KernelTable::keep_above,
              KeepAboveParams{seqs, rows, heads, page, pages, pointer<const float>(scores),
                              pointer<const float>(thresholds), pointer<uint8_t>(flags),
                              pointer<int32_t>(lengths), pointer<const int32_t>(table), table_row,
                              table_width, pointer<const int32_t>(cu_rows),
                              pointer<const int64_t>(positions), pointer<const int32_t>(after),
                              first, pointer<int32_t>(slots)});
}

void keep_top(Kernels& kernels, int64_t seqs, int64_t rows, int64_t heads, uintptr_t scores,
              uintptr_t cu_rows, uintptr_t after, bool first, uintptr_t slots) {
  kernels.run(&KernelTable::keep_top,
              KeepTopParams{seqs, rows, heads, pointer<const float>(scores),
                            pointer<const int32_t>(cu_rows), pointer<const int32_t>(after), first,
                            pointer<int32_t>(slots)});
}

void keep_best(Kernels& kernels, int64_t seqs, int64_t rows, int64_t heads, int64_t page,
               int64_t pages, uintptr_t scores, uintptr_t scores_kept, uintptr_t positions_kept,
               uintptr_t table, int64_t table_row, int64_t table_width, uintptr_t cu_rows,
               uintptr_t positions, uintptr_t before, uintptr_t after, bool first,
               uintptr_t slots) {
  kernels.run(&KernelTable::keep_best,
              KeepBestParams{seqs, rows, heads, page, pages, pointer<const float>(scores),
                             pointer<float>(scores_kept), pointer<int32_t>(positions_kept),
                             pointer<const int32_t>(table), table_row, table_width,
                             pointer<const int32_t>(cu_rows), pointer<const int64_t>(positions),
                             pointer<const int32_t>(before), pointer<const int32_t>(after), first,
                             pointer<int32_t>(slots)});
}

void block_means(Kernels& kernels, int dtype, int64_t count, int64_t kv_heads, int64_t dim,
                 int64_t page, int64_t pages, int64_t block, int64_t slots, int64_t spread,
                 int64_t page_step, int64_t head_step, uintptr_t k_pages, uintptr_t members,
                 uintptr_t home, uintptr_t begin, uintptr_t means) {
  kernels.run(&KernelTable::block_means, BlockMeansParams{static_cast<DType>(dtype),
                                                          count,
                                                          kv_heads,
                                                          dim,
                                                          page,
                                                          pages,
                                                          block,
                                                          slots,
                                                          spread,
                                                          {page_step, head_step},
                                                          pointer<const void>(k_pages),
                                                          pointer<const int64_t>(members),
                                                          pointer<const int64_t>(home),
                                                          pointer<const int64_t>(begin),
                                                          pointer<void>(means)});
}

void window_means(Kernels& kernels, int dtype, int64_t count, int64_t kv_heads, int64_t dim,
                  int64_t v_dim, int64_t page, int64_t pages, int64_t length, int64_t spread,
                  int64_t page_step, int64_t head_step, uintptr_t k_pages, uintptr_t v_pages,
                  uintptr_t members, uintptr_t home, uintptr_t begin, uintptr_t means) {
  kernels.run(&KernelTable::window_means, WindowMeansParams{static_cast<DType>(dtype),
                                                            count,
                                                            kv_heads,
                                                            dim,
                                                            v_dim,
                                                            page,
                                                            pages,
                                                            length,
                                                            spread,
                                                            {page_step, head_step},
                                                            pointer<const void>(k_pages),
                                                            pointer<const void>(v_pages),
                                                            pointer<const int64_t>(members),
                                                            pointer<const int64_t>(home),
                                                            pointer<const int64_t>(begin),
                                                            pointer<void>(means)});
}

void select_blocks(Kernels& kernels, int dtype, int64_t seqs, int64_t rows, int64_t heads,
                   int64_t kv_heads, int64_t dim, int64_t page, int64_t pages, int64_t block,
                   int64_t slots, int64_t topk, uintptr_t q, int64_t q_row, int64_t q_head,
                   uintptr_t means, uintptr_t table, int64_t table_row, int64_t table_width,
                   uintptr_t cu_rows, uintptr_t positions, uintptr_t ids) {
  kernels.run(&KernelTable::select_blocks, SelectBlocksParams{static_cast<DType>(dtype),
                                                              seqs,
                                                              rows,
                                                              heads,
                                                              kv_heads,
                                                              dim,
                                                              page,
                                                              pages,
                                                              block,
                                                              slots,
                                                              topk,
                                                              pointer<const void>(q),
                                                              q_row,
                                                              q_head,
                                                              pointer<const void>(means),
                                                              pointer<const int32_t>(table),
                                                              table_row,
                                                              table_width,
                                                              pointer<const int32_t>(cu_rows),
                                                              pointer<const int64_t>(positions),
                                                              pointer<int32_t>(ids)});
}

void compressed(Kernels& kernels, int dtype, int64_t seqs, int64_t rows, int64_t heads,
                int64_t kv_heads, int64_t dim, int64_t v_dim, int64_t page, int64_t pages,
                int64_t slots, int64_t length, int64_t stride, int64_t width, int64_t value_first,
                int64_t block, int64_t largest, int64_t listed, int64_t first, int64_t recent,
                int64_t every, uintptr_t q, int64_t q_row, int64_t q_head, uintptr_t entries,
                uintptr_t table, int64_t table_row, int64_t table_width, uintptr_t cu_rows,
                uintptr_t positions, float scale, uintptr_t out, uintptr_t lse, uintptr_t ids) {
  kernels.run(&KernelTable::compressed, CompressedParams{static_cast<DType>(dtype),
                                                         seqs,
                                                         rows,
                                                         heads,
                                                         kv_heads,
                                                         dim,
                                                         v_dim,
                                                         page,
                                                         pages,
                                                         slots,
                                                         length,
                                                         stride,
                                                         width,
                                                         value_first,
                                                         block,
                                                         largest,
                                                         listed,
                                                         first,
                                                         recent,
                                                         every,
                                                         pointer<const void>(q),
                                                         q_row,
                                                         q_head,
                                                         pointer<const void>(entries),
                                                         pointer<const int32_t>(table),
                                                         table_row,
                                                         table_width,
                                                         pointer<const int32_t>(cu_rows),
                                                         pointer<const int64_t>(positions),
                                                         scale,
                                                         pointer<void>(out),
                                                         pointer<float>(lse),
                                                         pointer<int32_t>(ids)});
}

void key_bounds(Kernels& kernels, int dtype, int64_t count, int64_t kv_heads, int64_t dim,
                int64_t page, int64_t pages, int64_t block, int64_t slots, int64_t page_step,
                int64_t head_step, uintptr_t k_pages, uintptr_t members, uintptr_t home,
                uintptr_t bounds) {
  kernels.run(&KernelTable::key_bounds, KeyBoundsParams{static_cast<DType>(dtype),
                                                        count,
                                                        kv_heads,
                                                        dim,
                                                        page,
                                                        pages,
                                                        block,
                                                        slots,
                                                        {page_step, head_step},
                                                        pointer<const void>(k_pages),
                                                        pointer<const int64_t>(members),
                                                        pointer<const int64_t>(home),
                                                        pointer<void>(bounds)});
}

void select_bounded(Kernels& kernels, int dtype, int64_t seqs, int64_t rows, int64_t heads,
                    int64_t kv_heads, int64_t dim, int64_t page, int64_t pages, int64_t block,
                    int64_t slots, int64_t listed, int64_t first, int64_t recent, int64_t sums,
                    uintptr_t q, int64_t q_row, int64_t q_head, uintptr_t bounds, uintptr_t table,
                    int64_t table_row, int64_t table_width, uintptr_t cu_rows, uintptr_t positions,
                    uintptr_t ids) {
  kernels.run(&KernelTable::select_bounded, SelectBoundedParams{static_cast<DType>(dtype),
                                                                seqs,
                                                                rows,
                                                                heads,
                                                                kv_heads,
                                                                dim,
                                                                page,
                                                                pages,
                                                                block,
                                                                slots,
                                                                listed,
                                                                first,
                                                                recent,
                                                                sums,
                                                                pointer<const void>(q),
                                                                q_row,
                                                                q_head,
                                                                pointer<const void>(bounds),
                                                                pointer<const int32_t>(table),
                                                                table_row,
                                                                table_width,
                                                                pointer<const int32_t>(cu_rows),
                                                                pointer<const int64_t>(positions),
                                                                pointer<int32_t>(ids)});
}

void key_moments(Kernels& kernels, int dtype, int64_t seqs, int64_t kv_heads, int64_t dim,
                 int64_t page, int64_t pages, int64_t block, int64_t slots, int64_t kind,
                 int64_t entry_rows, int64_t spread, int64_t sinks, int64_t page_step,
                 int64_t head_step, uintptr_t k_pages, uintptr_t table, int64_t table_row,
                 int64_t table_width, uintptr_t first, uintptr_t last, uintptr_t moments) {
  kernels.run(&KernelTable::key_moments, KeyMomentsParams{static_cast<DType>(dtype),
                                                          seqs,
                                                          kv_heads,
                                                          dim,
                                                          page,
                                                          pages,
                                                          block,
                                                          slots,
                                                          kind,
                                                          entry_rows,
                                                          spread,
                                                          sinks,
                                                          {page_step, head_step},
                                                          pointer<const void>(k_pages),
                                                          pointer<const int32_t>(table),
                                                          table_row,
                                                          table_width,
                                                          pointer<const int64_t>(first),
                                                          pointer<const int64_t>(last),
                                                          pointer<float>(moments)});
}

void far_mass(Kernels& kernels, int dtype, int entry_dtype, int64_t seqs, int64_t rows,
              int64_t heads, int64_t kv_heads, int64_t dim, int64_t page, int64_t pages,
              int64_t block, int64_t slots, int64_t kind, int64_t entry_rows, int64_t spread,
              int64_t window, int64_t sinks, uintptr_t q, int64_t q_row, int64_t q_head,
              uintptr_t entries, uintptr_t table, int64_t table_row, int64_t table_width,
              uintptr_t cu_rows, uintptr_t positions, float scale, uintptr_t mass) {
  kernels.run(&KernelTable::far_mass, FarMassParams{static_cast<DType>(dtype),
                                                    static_cast<DType>(entry_dtype),
                                                    seqs,
                                                    rows,
                                                    heads,
                                                    kv_heads,
                                                    dim,
                                                    page,
                                                    pages,
                                                    block,
                                                    slots,
                                                    kind,
                                                    entry_rows,
                                                    spread,
                                                    window,
                                                    sinks,
                                                    pointer<const void>(q),
                                                    q_row,
                                                    q_head,
                                                    pointer<const void>(entries),
                                                    pointer<const int32_t>(table),
                                                    table_row,
                                                    table_width,
                                                    pointer<const int32_t>(cu_rows),
                                                    pointer<const int64_t>(positions),
                                                    scale,
                                                    pointer<float>(mass)});
}

void select_keys(Kernels& kernels, int dtype, int64_t seqs, int64_t rows, int64_t heads,
                 int64_t kv_heads, int64_t dim, int64_t page, int64_t pages, int64_t block,
                 int64_t listed, int64_t first, int64_t recent, int64_t unite, uintptr_t q,
                 int64_t q_row, int64_t q_head, int64_t page_step, int64_t head_step,
                 uintptr_t k_pages, uintptr_t table, int64_t table_row, int64_t table_width,
                 uintptr_t cu_rows, uintptr_t positions, float scale, uintptr_t lse,
                 uintptr_t ids) {
  kernels.run(&KernelTable::select_keys, SelectKeysParams{static_cast<DType>(dtype),
                                                          seqs,
                                                          rows,
                                                          heads,
                                                          kv_heads,
                                                          dim,
                                                          page,
                                                          pages,
                                                          block,
                                                          listed,
                                                          first,
                                                          recent,
                                                          unite,
                                                          pointer<const void>(q),
                                                          q_row,
                                                          q_head,
                                                          {page_step, head_step},
                                                          pointer<const void>(k_pages),
                                                          pointer<const int32_t>(table),
                                                          table_row,
                                                          table_width,
                                                          pointer<const int32_t>(cu_rows),
                                                          pointer<const int64_t>(positions),
                                                          scale,
                                                          pointer<const float>(lse),
                                                          pointer<int32_t>(ids)});
}

void select_pooled(Kernels& kernels, int dtype, int64_t seqs, int64_t rows, int64_t heads,
                   int64_t owners, int64_t dim, int64_t page, int64_t pages, int64_t block,
                   int64_t listed, int64_t first, int64_t recent, int64_t probabilities,
                   uintptr_t q, int64_t q_row, int64_t q_head, uintptr_t fine, int64_t fine_slots,
                   int64_t fine_size, int64_t fine_stride, uintptr_t coarse, int64_t coarse_slots,
                   int64_t coarse_size, int64_t coarse_stride, uintptr_t table, int64_t table_row,
                   int64_t table_width, uintptr_t cu_rows, uintptr_t positions, float scale,
                   uintptr_t ids) {
  kernels.run(
      &KernelTable::select_pooled,
      SelectPooledParams{static_cast<DType>(dtype),
                         seqs,
                         rows,
                         heads,
                         owners,
                         dim,
                         page,
                         pages,
                         block,
                         listed,
                         first,
                         recent,
                         probabilities,
                         pointer<const void>(q),
                         q_row,
                         q_head,
                         {pointer<const void>(fine), fine_slots, fine_size, fine_stride},
                         {pointer<const void>(coarse), coarse_slots, coarse_size, coarse_stride},
                         pointer<const int32_t>(table),
                         table_row,
                         table_width,
                         pointer<const int32_t>(cu_rows),
                         pointer<const int64_t>(positions),
                         scale,
                         pointer<int32_t>(ids)});
}

void gated_sum(Kernels& kernels, int dtype, int64_t rows, int64_t dim, int64_t count, uintptr_t a,
               uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t gates, int64_t gate_row,
               uintptr_t out) {
  kernels.run(&KernelTable::gated_sum,
              GatedSumParams{static_cast<DType>(dtype),
                             rows,
                             dim,
                             count,
                             {pointer<const void>(a), pointer<const void>(b),
                              pointer<const void>(c), pointer<const void>(d)},
                             pointer<const float>(gates),
                             gate_row,
                             pointer<void>(out)});
}

void scale_first(Kernels& kernels, int dtype, int64_t seqs, int64_t rows, int64_t heads,
                 int64_t kv_heads, int64_t dim, int64_t v_dim, uintptr_t q, int64_t q_row,
                 int64_t q_head, uintptr_t k, uintptr_t v, uintptr_t cu_rows, uintptr_t out,
                 uintptr_t lse, uintptr_t gains, uintptr_t seen, float scale, float softcap,
                 uintptr_t result, uintptr_t mass) {
  kernels.run(&KernelTable::scale_first, ScaleFirstParams{static_cast<DType>(dtype),
                                                          seqs,
                                                          rows,
                                                          heads,
                                                          kv_heads,
                                                          dim,
                                                          v_dim,
                                                          pointer<const void>(q),
                                                          q_row,
                                                          q_head,
                                                          pointer<const void>(k),
                                                          pointer<const void>(v),
                                                          pointer<const int32_t>(cu_rows),
                                                          pointer<const float>(out),
                                                          pointer<const float>(lse),
                                                          pointer<const float>(gains),
                                                          pointer<const uint8_t>(seen),
                                                          scale,
                                                          softcap,
                                                          pointer<void>(result),
                                                          pointer<float>(mass)});
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled CPU kernels of Saccade; saccade.kernels.native is its only caller.";
  m.attr("sources") = source_digest();
  m.def("refusal", [](const std::string& isa) {
    const char* reason = nullptr;
    return std::string(kernel_table(isa.c_str(), &reason) == nullptr ? reason : "");
  });
  py::class_<Kernels>(m, "Kernels")
      .def(py::init<const std::string&, int>())
      .def_property_readonly("isa", &Kernels::isa)
      .def_property_readonly("threads", &Kernels::threads)
      .def("attend", &attend)
      .def("attend_turns", &attend_turns)
      .def("linear", &linear)
      .def("linear_heads", &linear_heads)
      .def("rms_norm", &rms_norm)
      .def("rope", &rope)
      .def("silu_mul", &silu_mul)
      .def("sigmoid_mul", &sigmoid_mul)
      .def("key_conv", &key_conv)
      .def("gated_delta", &gated_delta)
      .def("merge", &merge)
      .def("write_pages", &write_pages)
      .def("keep_above", &keep_above)
      .def("keep_best", &keep_best)
      .def("keep_top", &keep_top)
      .def("block_means", &block_means)
      .def("window_means", &window_means)
      .def("select_blocks", &select_blocks)
      .def("compressed", &compressed)
      .def("key_bounds", &key_bounds)
      .def("select_bounded", &select_bounded)
      .def("select_keys", &select_keys)
      .def("select_pooled", &select_pooled)
      .def("gated_sum", &gated_sum)
      .def("scale_first", &scale_first)
      .def("key_moments", &key_moments)
      .def("far_mass", &far_mass)
      .def("stream_read", &Kernels::stream_read);
}
