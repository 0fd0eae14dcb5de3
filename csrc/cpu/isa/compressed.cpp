// Attention over entries (summaries of windows of tokens), and the blocks whose entries weigh most.
// The attention is that of attend.cpp over panels that are gathered pass by pass. It goes over the
// entries once: the exponentials are kept, each relative to its row's maximum of the time, and
// become probabilities when the sums are known. An entry's weight is then summed over the heads of
// a KV head, and a block's over its entries, in ascending order: a list depends on its row alone.
#include "best.h"
#include "tables.h"
#include "unit_ops.h"

namespace saccade {
namespace SACCADE_ISA {
namespace {

// Units of a head that go over the same entries, from which on these are gathered once for all of
// them; and no more than so many bytes.
constexpr int64_t kSharing = 4, kMostPanels = 64 << 20;
// What is kept of a unit should stay in the second-level cache.
constexpr int64_t kUnitRows = 64;

// A call as one of attention over panels of a pass each. kept, factors: what all rows keep, by KV
// head, token and head, where threads share a unit; null: a unit keeps its own in its scratch.
struct EntryCall : AttendParams {
  const CompressedParams* c;
  int64_t most = 0;  // entries that a row may see, in whole passes
  float* kept = nullptr;
  float* factors = nullptr;
  float* planes = nullptr;  // of every thread
  const float* shares =
      nullptr;  // of the entries that overlap a block: tokens they share with it / stride
  // Panels gathered once for all units (see make_panels), and which are a sequence's; null: none.
  char* panels = nullptr;
  struct Shared {
    int64_t first, passes, entries;  // passes 0: its units gather for themselves
  }* shared = nullptr;               // [S]
  int64_t panel_bytes = 0;

  explicit EntryCall(const CompressedParams& call) : AttendParams{}, c(&call) {}
  int64_t passes() const { return most / kPass; }
  bool shares_panels(int64_t seq) const { return shared != nullptr && shared[seq].passes > 0; }
  char* panel(int64_t seq, int64_t kv_head, int64_t pass) const {
    const Shared& of = shared[seq];
    return panels + (of.first + kv_head * of.passes + pass) * panel_bytes;
  }
};

// No entry lies beyond the page table.
int64_t complete_entries(const CompressedParams& c, int64_t position) {
  const int64_t known = c.table_width * c.slots;
  if (position + 1 < c.length) return 0;
  const int64_t complete = (position + 1 - c.length) / c.stride + 1;
  return complete < known ? complete : known;
}

// ---- lists ----

// Where the weights of entries lie while a list is made of them: entry i at place i / per of plane
// i % per, per entries a block, so that those of neighbouring blocks are neighbours.
struct Planes {
  int64_t per, over;       // entries of a block, and that an entry overlaps
  int64_t before, stride;  // zeros in front of a plane; from one to the next
  float *at, *weights;

  Planes(const CompressedParams& c, int64_t most, float* floats)
      : per(c.block / c.stride), over(c.length / c.stride) {
    constexpr int64_t W = kWidth;
    const int64_t blocks = (most + over + per - 1) / per + 1;
    before = (over / per + W) / W * W;
    stride = before + (blocks + W - 1) / W * W + W;
    at = floats + before;
    weights = floats + per * stride;
  }
  static int64_t floats(const CompressedParams& c, int64_t most) {
    const Planes planes(c, most, nullptr);
    return (planes.per + 1) * planes.stride;
  }
  float* plane(int64_t index) const { return at + index * stride; }
};

// What the heads of a group kept of a row, next to each other, becomes the list of the row.
struct Chooser {
  const EntryCall& call;
  const CompressedParams& c;
  float* mass;  // [group][most]
  const float* factors;
  int64_t row, kv_head;
  Planes planes;

  // The weights of W entries from i on, over all heads.
  SACCADE_INLINE F<kWidth> weights_of(int64_t i) const {
    F<kWidth> sum{};
    for (int64_t h = 0; h < c.heads / c.kv_heads; ++h) {
      const float factor = factors[h * call.passes() + i / kPass];
      sum = fma<kWidth>(load<F<kWidth>>(mass + h * call.most + i), splat<kWidth>(factor), sum);
    }
    return sum;
  }

  // Entries go to their planes; beyond the last, up to block `end`, are zeros.
  void spread(int64_t entries, int64_t end) const {
    constexpr int64_t W = kWidth;
    const int64_t per = planes.per, last = (entries + W - 1) / W * W;
    for (int64_t plane = 0; plane < per; ++plane) {
      float* of = planes.plane(plane);
      const int64_t begin = last / per < end ? last / per : end;
      for (int64_t j = -planes.before; j < 0; ++j) of[j] = 0.0f;
      for (int64_t j = begin; j < end; ++j) of[j] = 0.0f;
    }
    if (per == 4) return deal<4>(last);
    if (per == 2) return deal<2>(last);
    float* to = planes.at;
    for (int64_t i = 0, plane = 0; i < last; i += W) {
      float lanes[W];
      store(lanes, weights_of(i));
      for (int64_t lane = 0; lane < W; ++lane) {
        to[plane * planes.stride] = lanes[lane];
        if (++plane == per) plane = 0, ++to;
      }
    }
  }

  // The same with kPer planes, all of a vector's at once.
  template <int kPer>
  SACCADE_INLINE void deal(int64_t last) const {
    constexpr int W = kWidth, kEach = W / kPer;
    I<W> order{};
    for (int i = 0; i < W; ++i) order[i] = i % kEach * kPer + i / kEach;
    float* to = planes.at;
    for (int64_t i = 0; i < last; i += W, to += kEach) {
      float lanes[W];
      store(lanes, __builtin_shuffle(weights_of(i), order));
      for (int plane = 0; plane < kPer; ++plane)
        std::memcpy(to + plane * planes.stride, lanes + plane * kEach, kEach * sizeof(float));
    }
  }

  // Weights of the blocks [begin, end), whole vectors of them: over their entries, in their order.
  void weigh(int64_t begin, int64_t end) const {
    constexpr int64_t W = kWidth;
    const int64_t per = planes.per, over = planes.over;
    for (int64_t j = begin; j < end; j += W) {
      F<W> weight{};
      for (int64_t i = 0; i < per + over - 1; ++i) {
        const int64_t from = i - over + 1, back = from < 0 ? (per - 1 - from) / per : 0;
        const F<W> x = load<F<W>>(planes.plane(from + back * per) + j - back);
        if (c.largest != 0) {
          weight = ((x > weight) | (x != x)) ? x : weight;  // NaN stays, and is never chosen
        } else {
          weight += x * splat<W>(call.shares[i]);
        }
      }
      store(planes.weights + j, weight);
    }
  }

  void choose() const {
    int32_t* to = c.ids + (row * c.kv_heads + kv_head) * c.listed;
    const int64_t position = c.positions[row], entries = complete_entries(c, position);
    if (position % c.every != 0) {
      for (int64_t i = 0; i < c.listed; ++i) to[i] = -1;
      return;
    }
    const ListEnds ends = list_ends(position / c.block, c.first, c.recent);
    Best best;
    best.count = 0;
    best.k = c.listed - ends.forced();
    if (best.k > 0 && ends.head < ends.tail) {
      spread(entries, (ends.tail + kWidth - 1) / kWidth * kWidth);
      weigh(ends.head / kWidth * kWidth, ends.tail);
      offer_scores(best, planes.weights + ends.head, ends.head, ends.tail - ends.head);
    }
    write_list(best, ends, to, c.listed);
  }
};

// ---- entries as the keys of attention ----

template <class S>
struct EntryKeys final : Source<S> {
  using B = typename S::B;
  static constexpr int W = kWidth;
  static constexpr int kU = S::kUnit;
  static constexpr int64_t kGroup = 32;  // as many as a step of tiles takes

  B* k;                 // [dim / unit][kPass][unit], or [kPass][dim] (see key_rows)
  B* v;                 // [kPass / unit][v_dim][unit]
  B* nothing;           // [width]: an entry that is not there
  float* absent;        // [kPass]: -inf for those that have no page; then whether there are any
  float* exponentials;  // [rows][most]
  float* factors;  // [rows][passes]: the maxima that they are relative to, then what makes them
                   // probabilities
  float* planes = nullptr;  // see Planes
  bool is_whole;            // no entry of the pass is absent
  bool ready = false;

  // K, V and `absent`, in one piece.
  void carve_panel(Carver& carve, const AttendParams& p) {
    k = carve.take<B>(kPass * p.dim);
    v = carve.take<B>(kPass * p.v_dim);
    absent = carve.take<float>(kPass + 1);
  }

  void carve(Carver& carve, const AttendParams& p, const Unit& u) override {
    const EntryCall& call = static_cast<const EntryCall&>(p);
    const int64_t rows = u.tokens * u.heads;
    carve_panel(carve, p);
    nothing = carve.take<B>(call.c->width);
    if (call.kept == nullptr) {
      exponentials = carve.take<float>(rows * call.most);
      factors = carve.take<float>(rows * call.passes());
      if (call.c->ids != nullptr) planes = carve.take<float>(Planes::floats(*call.c, call.most));
    } else {
      const int64_t first = (u.kv_head * p.rows + u.row) * u.heads;
      exponentials = call.kept + first * call.most;
      factors = call.factors + first * call.passes();
    }
    most_ = call.most;
    passes_ = call.passes();
  }

  // Panels of the entries first .. first + kPass - 1; those that nobody sees are zeros.
  void locate(Pass<B>& pass, const AttendParams& p, const Unit& u, int64_t first) override {
    const EntryCall& call = static_cast<const EntryCall&>(p);
    if (call.shares_panels(u.seq)) {
      begin(call, false);
      Carver carve{call.panel(u.seq, u.kv_head, first / kPass)};
      carve_panel(carve, p);
      is_whole = absent[kPass] == 0.0f;
    } else {
      if (!ready) {
        begin(call, u.tokens * u.heads <= kStreamRows);
        std::memset(static_cast<void*>(nothing), 0, static_cast<size_t>(bytes_));
      }
      gather(call, u, first);
    }
    pass.chunk = kPass;
    pass.chunks = 1;
    pass.k[0] = k;
    pass.v[0] = v;
  }

  // One of the panels that units share, of entries before `end`.
  void make_panel(const EntryCall& call, const Unit& u, int64_t pass, B* zeros) {
    Carver carve{call.panel(u.seq, u.kv_head, pass)};
    carve_panel(carve, call);
    nothing = zeros;
    begin(call, false);
    gather(call, u, pass * kPass);
    absent[kPass] = is_whole ? 0.0f : 1.0f;
  }

  // Where memory is slower than arithmetic, the next pass is asked for evenly: half of it while
  // this one is gathered, a quarter while scores are computed, a quarter while values are summed.
  Ahead ahead_of_scores(int64_t at, int64_t columns, int64_t steps) const override {
    const int64_t part = v_dim_ > 0 ? 4 : 2;
    return ahead(kPass / 2 + at / part, columns / part, steps);
  }
  Ahead ahead_of_values(int64_t channel, int64_t channels, int64_t steps) const override {
    const int64_t part = kPass / 4;
    return ahead(3 * part + channel * part / v_dim_, channels * part / v_dim_, steps);
  }

  void hide(float* scores, const Span& span) const override {
    if (is_whole) return;
    for (int64_t i = span.begin; i < span.end; i += W)
      store(scores + i, load<F<W>>(scores + i) + load<F<W>>(absent + i));
  }
  bool hides() const override { return !is_whole; }
  const B* key_rows() const override { return takes_rows_ ? k : nullptr; }
  float* kept(int64_t row, int64_t first, float top) override {
    factors[row * passes_ + first / kPass] = top;
    return exponentials + row * most_ + first;
  }

  // The sums are known: lists at once, or later where threads share the unit.
  void conclude(const Results& run, const float* total) override {
    const EntryCall& call = static_cast<const EntryCall&>(run.p);
    if (call.c->ids == nullptr) return;
    for (int64_t r = 0; r < run.rows; ++r) {
      const float top = run.tops(total)[r];
      const float sum = top == -INFINITY ? 0.0f : sum_lanes<W>(load<F<W>>(run.sums(total) + r * W));
      float* of = factors + r * passes_;
      for (int64_t i = 0; i < passes_; ++i) of[i] = sum == 0.0f ? 0.0f : exp2f(of[i] - top) / sum;
    }
    for (int64_t t = 0; call.kept == nullptr && t < run.u.tokens; ++t) {
      const int64_t r = t * run.u.heads;
      Chooser{
          call,          *call.c,       exponentials + r * most_,          factors + r * passes_,
          run.u.row + t, run.u.kv_head, Planes(*call.c, call.most, planes)}
          .choose();
    }
  }

 private:
  int64_t most_, passes_, v_dim_, bytes_, next_first_, next_count_;
  bool streams_, takes_rows_;
  const B* next_[kPass];  // the entries of the next pass

  void begin(const EntryCall& call, bool streams) {
    v_dim_ = call.v_dim;
    streams_ = streams;
    takes_rows_ = kTiles && streams;
    bytes_ = call.c->width * int64_t{sizeof(B)};
  }

  void gather(const EntryCall& call, const Unit& u, int64_t first) {
    const CompressedParams& c = *call.c;
    if (!ready || next_first_ != first) find(c, u, first);
    const B* now[kPass];
    std::memcpy(now, next_, sizeof(now));
    find(c, u, first + kPass);
    ready = is_whole = true;
    for (int64_t at = 0; at < u.hi - first && at < kPass; at += kGroup) {
      for (int64_t i = at; i < at + kGroup; ++i) {
        const bool gone = now[i] == nothing && first + i < u.hi;
        absent[i] = gone ? -INFINITY : 0.0f;
        is_whole = is_whole && !gone;
      }
      takes_rows_ ? copy_group(now, call, c.value_first, at)
                  : gather_group(now, call, c.value_first, at);
    }
  }

  void find(const CompressedParams& c, const Unit& u, int64_t first) {
    next_first_ = first;
    next_count_ = 0;
    for (int64_t i = 0; i < kPass; ++i) {
      const B* from = first + i < u.hi ? entry(c, u, first + i) : nullptr;
      if (first + i < u.hi) next_count_ = i + 1;
      next_[i] = from == nullptr ? nothing : from;
    }
  }

  SACCADE_INLINE void ask_for(int64_t first, int64_t count) const {
    for (int64_t i = first; streams_ && i < first + count && i < next_count_; ++i)
      for (int64_t at = 0; at < bytes_; at += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(next_[i]) + at, 0, 2);
  }

  SACCADE_INLINE Ahead ahead(int64_t first, int64_t count, int64_t steps) const {
    if (!streams_ || first >= next_count_ || steps == 0) return {};
    Ahead found;
    found.rows = reinterpret_cast<const char* const*>(next_ + first);
    found.count = first + count < next_count_ ? count : next_count_ - first;
    found.bytes = bytes_;
    found.lines = (found.count * ((bytes_ + 63) / 64) + steps - 1) / steps;
    return found;
  }

  // Where an entry lies, null: nowhere. Lengths of pages and strides are powers of two.
  SACCADE_INLINE static const B* entry(const CompressedParams& c, const Unit& u, int64_t index) {
    const int stride = __builtin_ctzll(static_cast<uint64_t>(c.stride));
    const int page = __builtin_ctzll(static_cast<uint64_t>(c.page));
    const int64_t last = (index << stride) + c.length - 1, in_table = last >> page;
    if (in_table >= c.table_width) return nullptr;
    const int64_t id = c.table[u.seq * c.table_row + in_table];
    if (id < 0 || id >= c.pages) return nullptr;
    const int64_t slot = stride < page ? (last & (c.page - 1)) >> stride : 0;
    return static_cast<const B*>(c.entries) + (id * c.slots + slot) * c.field.slot +
           u.kv_head * c.field.head;
  }

  // kGroup entries from `at` on: their keys as columns of the panel.
  void gather_group(const B* const* from, const AttendParams& p, int64_t value, int64_t at) {
    for (int64_t i = at; i < at + kGroup; i += W) {
      if (kTiles) {  // they ask for nothing while they compute
        ask_for(i, W);
      } else {
        ask_for(i / 2, W / 2);
      }
      gather_keys(from + i, p.dim, i);
    }
    for (int64_t i = at; i < at + kGroup; i += kU)
      gather_value(from + i, value, p.v_dim, v + i * p.v_dim);
  }

  // The same with keys as rows, in the order of memory.
  void copy_group(const B* const* from, const AttendParams& p, int64_t value, int64_t at) {
    for (int64_t i = at; i < at + kGroup; i += kU) {
      ask_for(i, kU);
      for (int64_t e = i; e < i + kU; ++e)
        std::memcpy(static_cast<void*>(k + e * p.dim), from[e],
                    static_cast<size_t>(p.dim) * sizeof(B));
      gather_value(from + i, value, p.v_dim, v + i * p.v_dim);
    }
  }

  // W entries as columns of the panel, from column `at` on.
  void gather_keys(const B* const* from, int64_t dim, int64_t at) {
    int64_t c = 0;
    if constexpr (sizeof(B) * kU == 4) {  // what lies together in a column is 32 bits wide
      for (; c + W * kU <= dim; c += W * kU) {
        I<W> rows[W];
        for (int n = 0; n < W; ++n) rows[n] = load<I<W>>(from[n] + c);
        transpose<W>(rows);
        for (int n = 0; n < W; ++n) store(k + (c + n * kU) * kPass + at * kU, rows[n]);
      }
    }
    for (; c < dim; c += kU)
      for (int64_t i = 0; i < W; ++i)
        for (int e = 0; e < kU; ++e) k[c * kPass + (at + i) * kU + e] = from[i][c + e];
  }

  // The values of kU entries, their channels in turn.
  static void gather_value(const B* const* from, int64_t first, int64_t dim, B* to) {
    if constexpr (kU == 1) {
      std::memcpy(to, from[0] + first, static_cast<size_t>(dim) * sizeof(B));
    } else {
      interleave<W>(to, from[0] + first, from[1] + first, dim);
    }
  }
};

// ---- the call ----

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

float* shares_of(const CompressedParams& c) {
  const int64_t per = c.block / c.stride, over = c.length / c.stride, count = per + over - 1;
  float* shares = static_cast<float*>(malloc(static_cast<size_t>(count) * sizeof(float)));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t most = per < over ? per : over, near = i + 1 < count - i ? i + 1 : count - i;
    shares[i] = static_cast<float>(near < most ? near : most);
  }
  return shares;
}

// Which sequences have units enough to share panels; answers how many panels they need.
int64_t share(EntryCall& call, const int32_t* hi) {
  const CompressedParams& c = *call.c;
  call.shared = static_cast<EntryCall::Shared*>(
      malloc(static_cast<size_t>(c.seqs) * sizeof(EntryCall::Shared)));
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
  call.panels =
      static_cast<char*>(aligned_alloc(64, static_cast<size_t>(count * call.panel_bytes + width)));
  Job job{call, reinterpret_cast<B*>(call.panels + count * call.panel_bytes)};
  std::memset(static_cast<void*>(job.zeros), 0, static_cast<size_t>(width));
  pool.run(
      count,
      [](void* context, int64_t item, int) {
        const Job& j = *static_cast<Job*>(context);
        const EntryCall::Shared* of = j.call.shared;
        while (item >= of->first + of->passes * j.call.kv_heads) ++of;
        Unit u{};
        u.seq = of - j.call.shared;
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
  int32_t* hi = static_cast<int32_t*>(malloc(static_cast<size_t>(p.rows) * sizeof(int32_t)));
  describe(call, hi);
  float* shares = shares_of(p);
  call.shares = shares;
  const UnitPlan plan(call, pool);
  float* kept = nullptr;
  if (splits_units(plan, pool)) {
    const int64_t rows = p.rows * p.heads;
    const int64_t planes = p.ids == nullptr ? 0 : pool.size() * Planes::floats(p, call.most);
    kept = static_cast<float*>(
        malloc(static_cast<size_t>(rows * (call.most + call.passes()) + planes) * sizeof(float)));
    call.kept = kept;
    call.factors = kept + rows * call.most;
    call.planes = call.factors + rows * call.passes();
  } else {
    with_step(call.dtype, [&](auto step) { make_panels<decltype(step)>(call, hi, pool); });
  }
  run_units(call, plan, unit_ops<EntryKeys>(call), pool);
  if (kept != nullptr && p.ids != nullptr) pool.run(p.rows * p.kv_heads, choose_item, &call);
  free(kept);
  free(call.panels);
  free(call.shared);
  free(shares);
  free(hi);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
