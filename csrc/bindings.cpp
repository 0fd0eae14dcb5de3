// The only binding file: raw pointers, sizes and strides in (see arguments.h), nothing out.
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "saccade/arguments.h"
#include "saccade/kernel_table.h"
#include "saccade/sources.h"

namespace py = pybind11;
using namespace saccade;

namespace {

// Calls of kernels in the order in which they were made, to be made again.
using Call = std::function<void(const KernelTable&, ThreadPool&)>;
using Tape = std::vector<Call>;

thread_local Tape* recording = nullptr;  // of the calls that this thread makes, or null

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
    if (recording != nullptr) {
      recording->push_back([entry, params](const KernelTable& table, ThreadPool& pool) {
        (table.*entry)(params, pool);
      });
    }
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    (table_->*entry)(params, pool_);
  }

  // The calls [first, last) of a tape, without Python in between.
  void replay(const Tape& tape, size_t first, size_t last) {
    if (first > last || last > tape.size()) throw py::index_error("no such calls on the tape");
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = first; i < last; ++i) tape[i](*table_, pool_);
  }

  double stream_read(uintptr_t data, int64_t bytes) {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    return table_->stream_read(reinterpret_cast<const void*>(data), bytes, pool_);
  }

 private:
  ThreadPool pool_;
  std::string isa_;
  const KernelTable* table_;
  std::mutex mutex_;
};

// A method of the kernels' name that takes the fields of its parameters.
template <class Params>
void offer(py::class_<Kernels>& kernels, const char* name,
           void (*KernelTable::*entry)(const Params&, ThreadPool&)) {
  kernels.def(name, [name, entry](Kernels& self, const py::args& values) {
    Params params{};
    Arguments in(name, values);
    fields(in, params);
    self.run(entry, params);
  });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled CPU kernels of Saccade; saccade.kernels.native is its only caller.";
  m.attr("sources") = source_digest();
  m.def("refusal", [](const std::string& isa) {
    const char* reason = nullptr;
    return std::string(kernel_table(isa.c_str(), &reason) == nullptr ? reason : "");
  });
  py::class_<Tape>(m, "Tape").def(py::init<>()).def("__len__", &Tape::size);
  m.def("record", [](Tape* tape) { recording = tape; }, py::arg("tape").none(true));
  py::class_<Kernels> kernels(m, "Kernels");
  kernels.def(py::init<const std::string&, int>())
      .def_property_readonly("isa", &Kernels::isa)
      .def_property_readonly("threads", &Kernels::threads)
      .def("replay", &Kernels::replay)
      .def("stream_read", &Kernels::stream_read);
  offer(kernels, "attend", &KernelTable::attend);
  offer(kernels, "attend_turns", &KernelTable::attend_turns);
  offer(kernels, "linear", &KernelTable::linear);
  offer(kernels, "rms_norm", &KernelTable::rms_norm);
  offer(kernels, "rope", &KernelTable::rope);
  offer(kernels, "silu_mul", &KernelTable::silu_mul);
  offer(kernels, "sigmoid_mul", &KernelTable::sigmoid_mul);
  offer(kernels, "key_conv", &KernelTable::key_conv);
  offer(kernels, "gated_delta", &KernelTable::gated_delta);
  offer(kernels, "merge", &KernelTable::merge);
  offer(kernels, "correct", &KernelTable::correct);
  offer(kernels, "write_pages", &KernelTable::write_pages);
  offer(kernels, "keep_above", &KernelTable::keep_above);
  offer(kernels, "keep_best", &KernelTable::keep_best);
  offer(kernels, "keep_top", &KernelTable::keep_top);
  offer(kernels, "block_means", &KernelTable::block_means);
  offer(kernels, "window_means", &KernelTable::window_means);
  offer(kernels, "select_blocks", &KernelTable::select_blocks);
  offer(kernels, "compressed", &KernelTable::compressed);
  offer(kernels, "key_bounds", &KernelTable::key_bounds);
  offer(kernels, "select_bounded", &KernelTable::select_bounded);
  offer(kernels, "select_keys", &KernelTable::select_keys);
  offer(kernels, "select_pooled", &KernelTable::select_pooled);
  offer(kernels, "gated_sum", &KernelTable::gated_sum);
  offer(kernels, "scale_first", &KernelTable::scale_first);
  offer(kernels, "key_moments", &KernelTable::key_moments);
  offer(kernels, "far_mass", &KernelTable::far_mass);
}
