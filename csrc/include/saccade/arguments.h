// How the parameters of a kernel are read from Python's arguments: one number after the other, in
// the order given here. Validation lives at each op's door in Python.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "saccade/params.h"

namespace saccade {

// The arguments of a call, read from the first to the last. Raises TypeError for one that is no
// number, and for too few or too many.
class Arguments {
 public:
  Arguments(const char* call, const pybind11::args& values) : call_(call), values_(values.ptr()) {}

  template <class... T>
  void operator()(T&... to) {
    (read(to), ...);
    if (next_ != PyTuple_GET_SIZE(values_))
      throw pybind11::type_error(std::string(call_) + " takes " + std::to_string(next_) +
                                 " arguments, not " + std::to_string(PyTuple_GET_SIZE(values_)));
  }

 private:
  PyObject* value() {
    if (next_ >= PyTuple_GET_SIZE(values_))
      throw pybind11::type_error(std::string(call_) + " takes more than " + std::to_string(next_) +
                                 " arguments");
    return PyTuple_GET_ITEM(values_, next_++);
  }

  template <class T>
  static T checked(T value) {
    if (value == static_cast<T>(-1) && PyErr_Occurred()) throw pybind11::error_already_set();
    return value;
  }

  void read(int64_t& to) { to = checked(PyLong_AsLongLong(value())); }
  void read(float& to) { to = static_cast<float>(checked(PyFloat_AsDouble(value()))); }
  void read(bool& to) { to = checked(PyObject_IsTrue(value())) != 0; }
  void read(DType& to) { to = static_cast<DType>(checked(PyLong_AsLong(value()))); }

  // An address, 0 for none.
  template <class T>
  void read(T*& to) {
    to = reinterpret_cast<T*>(checked(PyLong_AsUnsignedLongLong(value())));
  }

  void read(PageSteps& to) {
    read(to.page);
    read(to.head);
  }

  void read(FieldSteps& to) {
    read(to.slot);
    read(to.head);
  }

  void read(EntryPages& to) {
    read(to.data);
    read(to.slots);
    read(to.size);
    read(to.stride);
  }

  const char* call_;
  PyObject* values_;
  Py_ssize_t next_ = 0;
};

inline void fields(Arguments& in, AttendParams& p) {
  in(p.dtype, p.out_dtype, p.seqs, p.rows, p.heads, p.kv_heads, p.dim, p.v_dim, p.page, p.pages,
     p.q, p.q_row, p.q_head, p.steps, p.k_pages, p.v_pages, p.table, p.table_row, p.table_width,
     p.cu_rows, p.positions, p.lo, p.hi, p.window, p.sinks, p.scale, p.softcap, p.sink_logits,
     p.blocks, p.list_of_row, p.owners, p.list_width, p.block, p.scattered, p.out, p.lse);
}

inline void fields(Arguments& in, AttendTurnsParams& p) {
  AttendParams& a = p.attend;
  a.heads = a.kv_heads = 1;
  in(a.dtype, a.out_dtype, a.seqs, a.rows, a.dim, a.v_dim, a.page, a.pages, a.q, a.q_row, a.steps,
     a.k_pages, a.v_pages, a.table, a.table_row, a.table_width, a.cu_rows, a.positions, a.hi,
     a.scale, a.out, a.lse, p.k, p.k_row, p.v, p.v_row, p.slots, p.replaces);
}

inline void fields(Arguments& in, LinearParams& p) {
  in(p.dtype, p.out_dtype, p.rows, p.in, p.outs, p.x, p.x_row, p.weight, p.bias, p.y, p.y_row,
     p.heads, p.x_head, p.y_head);
}

inline void fields(Arguments& in, RmsNormParams& p) {
  in(p.dtype, p.rows, p.width, p.x, p.x_row, p.weight, p.eps, p.offset, p.residual, p.residual_row,
     p.out);
}

inline void fields(Arguments& in, RopeParams& p) {
  in(p.dtype, p.rows, p.heads, p.half, p.x, p.x_row, p.x_head, p.cos, p.sin);
}

inline void fields(Arguments& in, SiluMulParams& p) {
  in(p.dtype, p.rows, p.width, p.x, p.x_row, p.alpha, p.limit, p.shift, p.out);
}

inline void fields(Arguments& in, SigmoidMulParams& p) {
  in(p.dtype, p.rows, p.width, p.span, p.x, p.x_row, p.gate, p.gate_row, p.out);
}

inline void fields(Arguments& in, KeyConvParams& p) {
  in(p.dtype, p.rows, p.width, p.taps, p.residual, p.k, p.k_row, p.history, p.before, p.weight,
     p.out);
}

inline void fields(Arguments& in, GatedDeltaParams& p) {
  in(p.dtype, p.seqs, p.heads, p.key_heads, p.key_dim, p.value_dim, p.cu, p.rows, p.load, p.store,
     p.q, p.q_row, p.k, p.k_row, p.v, p.v_row, p.decay, p.beta, p.states, p.out);
}

inline void fields(Arguments& in, MergeParams& p) {
  in(p.dtype, p.rows, p.dim, p.out_a, p.lse_a, p.out_b, p.lse_b, p.out, p.lse);
}

inline void fields(Arguments& in, CorrectParams& p) {
  in(p.dtype, p.rows, p.heads, p.dim, p.known, p.out, p.lse, p.table, p.weights, p.source,
     p.answer);
}

inline void fields(Arguments& in, WritePagesParams& p) {
  in(p.dtype, p.rows, p.kv_heads, p.dim, p.v_dim, p.page, p.pages, p.steps, p.k_pages, p.v_pages,
     p.k, p.k_row, p.k_head, p.v, p.v_row, p.v_head, p.slots, p.clear);
}

inline void fields(Arguments& in, KeepAboveParams& p) {
  in(p.seqs, p.rows, p.heads, p.page, p.pages, p.scores, p.thresholds, p.flags, p.lengths, p.table,
     p.table_row, p.table_width, p.cu_rows, p.positions, p.after, p.first, p.slots);
}

inline void fields(Arguments& in, KeepBestParams& p) {
  in(p.seqs, p.rows, p.heads, p.page, p.pages, p.scores, p.scores_kept, p.positions_kept, p.table,
     p.table_row, p.table_width, p.cu_rows, p.positions, p.before, p.after, p.first, p.slots);
}

inline void fields(Arguments& in, KeepTopParams& p) {
  in(p.seqs, p.rows, p.heads, p.scores, p.cu_rows, p.after, p.first, p.slots);
}

inline void fields(Arguments& in, BlockMeansParams& p) {
  in(p.dtype, p.count, p.kv_heads, p.dim, p.page, p.pages, p.block, p.slots, p.spread, p.steps,
     p.k_pages, p.members, p.home, p.begin, p.means);
}

inline void fields(Arguments& in, WindowMeansParams& p) {
  in(p.dtype, p.count, p.kv_heads, p.dim, p.v_dim, p.page, p.pages, p.length, p.slots, p.spread,
     p.steps, p.k_pages, p.v_pages, p.members, p.home, p.begin, p.means, p.field);
}

inline void fields(Arguments& in, SelectBlocksParams& p) {
  in(p.dtype, p.seqs, p.rows, p.heads, p.kv_heads, p.dim, p.page, p.pages, p.block, p.slots, p.topk,
     p.q, p.q_row, p.q_head, p.means, p.table, p.table_row, p.table_width, p.cu_rows, p.positions,
     p.ids);
}

inline void fields(Arguments& in, CompressedParams& p) {
  in(p.dtype, p.seqs, p.rows, p.heads, p.kv_heads, p.dim, p.v_dim, p.page, p.pages, p.slots,
     p.length, p.stride, p.width, p.value_first, p.block, p.largest, p.listed, p.first, p.recent,
     p.every, p.q, p.q_row, p.q_head, p.entries, p.field, p.table, p.table_row, p.table_width,
     p.cu_rows, p.positions, p.scale, p.out, p.lse, p.ids);
}

inline void fields(Arguments& in, KeyBoundsParams& p) {
  in(p.dtype, p.count, p.kv_heads, p.dim, p.page, p.pages, p.block, p.slots, p.steps, p.k_pages,
     p.members, p.home, p.bounds);
}

inline void fields(Arguments& in, SelectBoundedParams& p) {
  in(p.dtype, p.seqs, p.rows, p.heads, p.kv_heads, p.dim, p.page, p.pages, p.block, p.slots,
     p.listed, p.first, p.recent, p.sums, p.q, p.q_row, p.q_head, p.bounds, p.table, p.table_row,
     p.table_width, p.cu_rows, p.positions, p.ids);
}

inline void fields(Arguments& in, SelectKeysParams& p) {
  in(p.dtype, p.seqs, p.rows, p.heads, p.kv_heads, p.dim, p.page, p.pages, p.block, p.listed,
     p.first, p.recent, p.unite, p.q, p.q_row, p.q_head, p.steps, p.k_pages, p.table, p.table_row,
     p.table_width, p.cu_rows, p.positions, p.scale, p.lse, p.ids);
}

inline void fields(Arguments& in, SelectPooledParams& p) {
  in(p.dtype, p.seqs, p.rows, p.heads, p.owners, p.dim, p.page, p.pages, p.block, p.listed, p.first,
     p.recent, p.probabilities, p.q, p.q_row, p.q_head, p.fine, p.coarse, p.table, p.table_row,
     p.table_width, p.cu_rows, p.positions, p.scale, p.ids);
}

inline void fields(Arguments& in, GatedSumParams& p) {
  in(p.dtype, p.rows, p.dim, p.count, p.parts[0], p.parts[1], p.parts[2], p.parts[3], p.gates,
     p.gate_row, p.out);
}

inline void fields(Arguments& in, ScaleFirstParams& p) {
  in(p.dtype, p.seqs, p.rows, p.heads, p.kv_heads, p.dim, p.v_dim, p.q, p.q_row, p.q_head, p.k, p.v,
     p.cu_rows, p.out, p.lse, p.gains, p.seen, p.scale, p.softcap, p.result, p.mass);
}

inline void fields(Arguments& in, KeyMomentsParams& p) {
  in(p.dtype, p.seqs, p.kv_heads, p.dim, p.page, p.pages, p.block, p.slots, p.kind, p.entry_rows,
     p.spread, p.sinks, p.steps, p.k_pages, p.table, p.table_row, p.table_width, p.first, p.last,
     p.moments);
}

inline void fields(Arguments& in, FarMassParams& p) {
  in(p.dtype, p.entry_dtype, p.seqs, p.rows, p.heads, p.kv_heads, p.dim, p.page, p.pages, p.block,
     p.slots, p.kind, p.entry_rows, p.spread, p.window, p.sinks, p.q, p.q_row, p.q_head, p.entries,
     p.table, p.table_row, p.table_width, p.cu_rows, p.positions, p.scale, p.mass);
}

}  // namespace saccade
