// Attention over entries (summaries of windows of tokens), and the blocks whose entries weigh most.
// The attention is that of attend.cpp over panels that are gathered pass by pass. It goes over the
// entries once: the exponentials are kept, each relative to its row's maximum of the time, and
// become probabilities when the sums are known. An entry's weight is then summed over the heads of
// a KV head, and a block's over its entries, in ascending order: a list depends on its row alone.
#include "entry_keys.h"
#include "tables.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

// Units of a head that go over the same entries, from which on these are gathered once for all of
// them; and no more than so many bytes.
constexpr int64_t kSharing = 4, kMostPanels = 64 << 20;
// What is kept of a unit should stay in the second-level cache.
constexpr int64_t kUnitRows = 64;

// The arguments of attention that stand for the call; how many entries each row sees goes to `hi`.
void describe(EntryCall& call, int32_t* hi) {
  const CompressedParams& c = *call.c;
  int64_t most = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    hi[row] = static_cast<int32_t>(complete_entries(c, c.positions[row]));
    most = hi[row] > most ? hi[row] : most;
  }
  call.most = (most + kPass - 1) / kPass * kPass;
  call.dtype = call.out_dtype = c.dtype;
  call.seqs = c.seqs;
  call.rows = c.rows;
  call.heads = c.heads;
  call.kv_heads = c.kv_heads;
  call.steps = {c.kv_heads, 1};
  call.dim = c.dim;
  call.v_dim = c.v_dim;
  call.page = kPass;
  call.q = c.q;
  call.q_row = c.q_row;
  call.q_head = c.q_head;
  call.k_pages = call.v_pages = c.entries;
  call.table_width = call.passes();
  call.cu_rows = c.cu_rows;
  call.positions = c.positions;
  call.hi = hi;
  call.scale = c.scale;
  call.out = c.out;
  call.lse = c.lse;
  const int64_t group = c.heads / c.kv_heads;
  call.unit_rows = group > kUnitRows ? group : kUnitRows;  // a unit has all heads of its tokens
}

Room<float> shares_of(const CompressedParams& c) {
  const int64_t per = c.block / c.stride, over = c.length / c.stride, count = per + over - 1;
  Room<float> shares(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t most = per < over ? per : over, near = i + 1 < count - i ? i + 1 : count - i;
    shares[i] = static_cast<float>(near < most ? near : most);
  }
  return shares;
}

// Which sequences have units enough to share panels; answers how many panels they need.
int64_t share(EntryCall& call, const int32_t* hi) {
  const CompressedParams& c = *call.c;
  call.shared = Room<EntryCall::Shared>(c.seqs);
  int64_t count = 0;
  for (int64_t s = 0; s < c.seqs; ++s) {
    EntryCall::Shared& of = call.shared[s] = {count, 0, 0};
    for (int64_t row = c.cu_rows[s]; row < c.cu_rows[s + 1]; ++row)
      of.entries = hi[row] > of.entries ? hi[row] : of.entries;
    const int64_t rows = (c.cu_rows[s + 1] - c.cu_rows[s]) * (c.heads / c.kv_heads);
    const int64_t passes = (of.entries + kPass - 1) / kPass, panels = passes * c.kv_heads;
    if (rows < kSharing * call.unit_rows || (count + panels) * call.panel_bytes > kMostPanels)
      continue;
    of.passes = passes;
    count += panels;
  }
  return count;
}

// Entries as panels, once for all units that go over them.
template <class S>
void make_panels(EntryCall& call, const int32_t* hi, ThreadPool& pool) {
  using B = typename S::B;
  struct Job {
    const EntryCall& call;
    B* zeros;
  };
  Carver measure{nullptr};
  EntryKeys<S>().carve_panel(measure, call);
  call.panel_bytes = measure.at - static_cast<char*>(nullptr);
  const int64_t count = share(call, hi);
  if (count == 0) return;
  const int64_t width = (call.c->width * static_cast<int64_t>(sizeof(B)) + 63) / 64 * 64;
  call.panels = Room<char>(count * call.panel_bytes + width);
  Job job{call, reinterpret_cast<B*>(call.panels.get() + count * call.panel_bytes)};
  std::memset(static_cast<void*>(job.zeros), 0, static_cast<size_t>(width));
  pool.run(
      count,
      [](void* context, int64_t item, int) {
        const Job& j = *static_cast<Job*>(context);
        const EntryCall::Shared* of = j.call.shared.get();
        while (item >= of->first + of->passes * j.call.kv_heads) ++of;
        Unit u{};
        u.seq = of - j.call.shared.get();
        u.kv_head = (item - of->first) / of->passes;
        u.hi = of->entries;
        EntryKeys<S>().make_panel(j.call, u, (item - of->first) % of->passes, j.zeros);
      },
      &job);
}

void choose_item(void* context, int64_t item, int thread) {
  const EntryCall& call = *static_cast<const EntryCall*>(context);
  const CompressedParams& c = *call.c;
  const int64_t row = item / c.kv_heads, kv_head = item % c.kv_heads;
  const int64_t first = (kv_head * c.rows + row) * (c.heads / c.kv_heads);
  const Planes planes(c, call.most, call.planes + thread * Planes::floats(c, call.most));
  Chooser{call,    c,     call.kept + first * call.most, call.factors + first * call.passes(), row,
          kv_head, planes}
      .choose();
}

}  // namespace

void compressed(const CompressedParams& p, ThreadPool& pool) {
  if (p.rows == 0) return;
  EntryCall call(p);
  const Room<int32_t> hi(p.rows);
  describe(call, hi.get());
  const Room<float> shares = shares_of(p);
  call.shares = shares.get();
  const UnitPlan plan(call, pool);
  Room<float> kept;
  if (splits_units(plan, pool)) {
    const int64_t rows = p.rows * p.heads;
    const int64_t planes = p.ids == nullptr ? 0 : pool.size() * Planes::floats(p, call.most);
    kept = Room<float>(rows * (call.most + call.passes()) + planes);
    call.kept = kept.get();
    call.factors = call.kept + rows * call.most;
    call.planes = call.factors + rows * call.passes();
  } else {
    with_step(call.dtype, [&](auto step) { make_panels<decltype(step)>(call, hi.get(), pool); });
  }
  run_units(call, plan, unit_ops<EntryKeys>(call), pool);
  if (call.kept != nullptr && p.ids != nullptr) pool.run(p.rows * p.kv_heads, choose_item, &call);
}

}  // namespace SACCADE_ISA
}  // namespace saccade