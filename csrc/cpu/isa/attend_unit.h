// One unit of attention: rows x segments of keys, pass by pass. See attend.cpp for the whole
// picture. Here is what a unit holds; unit_passes.h, unit_products.h and unit_softmax.h compute,
// and are compiled once, with attend.cpp.
#pragma once
#include "attend_rows.h"
#include "results.h"

namespace saccade {
namespace SACCADE_ISA {

// Where the keys of a unit come from if they are not panels in pages, as they are: what gathers
// them into panels, and may hide keys, keep the exponentials and conclude something from them. It
// is asked once for a pass, a row or a tile, never in a loop over keys, so that the arithmetic
// below is compiled once for all sources.
template <class S>
struct Source {
  using B = typename S::B;
  virtual void carve(Carver&, const AttendParams&, const Unit&) = 0;
  virtual void locate(Pass<B>&, const AttendParams&, const Unit&, int64_t first) = 0;
  // Memory to ask for while `columns` scores from column `at` on, or the sums of `channels` from
  // `channel` on, take `steps` steps.
  virtual Ahead ahead_of_scores(int64_t at, int64_t columns, int64_t steps) const = 0;
  virtual Ahead ahead_of_values(int64_t channel, int64_t channels, int64_t steps) const = 0;
  virtual void hide(float* scores, const Span&) const = 0;
  virtual bool hides() const = 0;  // any key of the pass
  // The keys of the pass as rows [kPass][dim], which few query rows take as they are with tiles, or
  // null: they are a panel.
  virtual const B* key_rows() const { return nullptr; }
  // Where a row's exponentials of the pass are kept, or null, and the maximum they are relative to.
  virtual float* kept(int64_t row, int64_t first, float top) = 0;
  // The sums of all rows are known.
  virtual void conclude(const Results& run, const float* total) = 0;

 protected:
  ~Source() = default;
};

// What a unit does with one arithmetic S.
template <class S>
struct UnitRun : Results {
  using A = typename S::A;
  using B = typename S::B;
  static constexpr int W = kWidth;
  static constexpr int kU = S::kUnit;
  // Rows of a unit that go through scores, softmax and values together, in whole register tiles:
  // their scores stay in the first-level cache.
  static constexpr int64_t kSub = 32 / S::kRows * S::kRows;
  // As few rows are not worth products of their own (with tiles, which take 16).
  static constexpr int64_t kFew = 8;

  const float to_log2;   // raw score -> log2 units
  const int64_t v_tile;  // channels of V that lie together (see value_tile); of gathered V, all
  Row* info;
  int64_t short_rows = 0;                      // with short lists
  int64_t all_begin = 0, all_end = INT64_MAX;  // keys that no range or window hides from any row
  SegmentRows segment;
  Active* by_kind;         // [rows]: those of one pass, in another order
  A* q;                    // [rows][dim]
  A* q_sub;                // [kSub][dim]: the rows at work, where they do not lie side by side in q
  float* scores;           // [kSub][kPass]; a row's probabilities take their place, once it is done
  float* shrink;           // [kSub]: by how much earlier sums and outputs shrink in this pass
  float* o_sub;            // [kSub][v_dim]: outputs of the rows at work, for tiles
  A* q_turned;             // [dim / 32][16 pairs][16 rows][2]: what scores rows of keys, for tiles
  B* turned;               // V panels of one pass, where the values are channels of the keys
  uint32_t is_turned = 0;  // which groups of keys they hold already
  // Bit r: the r-th row at work had seen nothing, and what lies in its place is no number of ours.
  uint32_t fresh = 0;
  float* own_partial;
  float* own_total;
  float* folds_to = nullptr;  // where rows with long lists add up what their parts gave
  int64_t used;
  Pass<B> pass, next;       // next: the pages to fetch ahead while this pass computes
  Source<S>* const source;  // null: pages
  // Without tiles: where V of the last pass ended in memory; whether V of this pass and K of the
  // next must be asked for. What lies in the order of memory, from one pass to the next, the
  // processor reads ahead by itself, and faster than when it is asked.
  const B* v_end = nullptr;
  bool asks_values = true, asks_keys = true;
  // Lines of a page of the next pass that units of many rows have asked for, with tiles, and of
  // which page; how many they ask for at a time; how many K and V of a page have.
  int64_t asked = 0, asked_chunk = 0, ask_at_once = 0, asked_k = 0, asked_v = 0;
  static constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(B));  // elements
  // With tiles: the keys at work go by the first-level cache, which has room for the rows at work.
  // (More of them, or wider ones, leave it anyway, and go through it faster than past it.)
  static constexpr int64_t kPassingBy = 192 * kPass;  // elements
  bool passes_by = false;
  // Bit i: some row's list holds keys 16 i .. 16 i + 15 of the pass. kAll: no lists, or all of it.
  static constexpr uint32_t kAll = ~0u;
  uint32_t listed = kAll, listed_next = kAll;

  UnitRun(const AttendParams& params, const Unit& unit, char* scratch, Source<S>* keys)
      : Results(params, unit),
        to_log2(params.softcap > 0 ? 1.0f : params.scale * kLog2E),
        v_tile(keys != nullptr || params.v_pages == nullptr ? params.v_dim
                                                            : saccade::value_tile(params.v_dim)),
        source(keys) {
    Carver carve{scratch};
    info = carve.take<Row>(rows);
    segment.together = p.blocks != nullptr && p.owners == p.kv_heads ? u.heads : 1;
    segment.capacity = rows / segment.together;
    segment.rows = carve.take<Active>(kPasses * segment.capacity);
    segment.next =
        carve.take<int32_t>(p.blocks == nullptr ? 0 : (segment.capacity + W - 1) / W * W);
    by_kind = carve.take<Active>(p.blocks == nullptr ? 0 : rows);
    q = carve.take<A>(rows * p.dim);
    q_sub = carve.take<A>(kSub * p.dim);
    scores = carve.take<float>(kSub * kPass);
    shrink = carve.take<float>((kSub + W - 1) / W * W);
    o_sub = carve.take<float>(kTiles ? kSub * p.v_dim : 0);
    q_turned = carve.take<A>(turns_queries() ? 16 * p.dim : 0);
    turned = carve.take<B>(p.v_pages == nullptr ? kPass * p.v_dim : 0);
    own_partial = carve.take<float>(floats());
    own_total = carve.take<float>(floats());
    if (source != nullptr) source->carve(carve, p, u);
    used = carve.at - scratch;
  }

  void prepare() {
    for (int64_t r = 0; r < rows; ++r) {
      const Row& row = info[r] = make_row(p, u, row_of(r), head_of(r));
      if (row.lo > all_begin) all_begin = row.lo;
      if (row.past >= all_begin) all_begin = row.past + 1;
      if (row.hi < all_end) all_end = row.hi;
      short_rows += row.is_short;
      if (row.list != nullptr) segment.next[r / segment.together] = 0;
      copy_q(r);
    }
    if (turns_queries()) turn_queries();
    asks_ahead = sees_whole_pages();
  }

  // Few rows whose keys are gathered: to gather them as rows takes a fraction of the time.
  bool turns_queries() const { return kTiles && source != nullptr && rows <= kStreamRows; }
  void turn_queries() {
    std::memset(static_cast<void*>(q_turned), 0, static_cast<size_t>(16 * p.dim) * sizeof(A));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < p.dim; ++c) q_turned[c / 2 * 32 + r * 2 + c % 2] = q[r * p.dim + c];
  }

  // The probabilities of the r-th row at work, kWeights from row to row.
  static constexpr int64_t kWeights = kPass * 4 / static_cast<int64_t>(sizeof(A));
  A* weights_of(int64_t r) const { return reinterpret_cast<A*>(scores) + r * kWeights; }

  void copy_q(int64_t r) {
    const int64_t offset = row_of(r) * p.q_row + head_of(r) * p.q_head;
    A* to = q + r * p.dim;
    if (sizeof(A) == static_cast<size_t>(size_of(p.dtype))) {
      std::memcpy(to, static_cast<const A*>(p.q) + offset, static_cast<size_t>(p.dim) * sizeof(A));
      return;
    }
    const uint16_t* from = static_cast<const uint16_t*>(p.q) + offset;
    for (int64_t c = 0; c < p.dim; ++c) {
      const float x = p.dtype == DType::kBF16 ? widen_bf16(from[c]) : get_one<ElementF16>(from + c);
      to[c] = static_cast<A>(x);
    }
  }

  // A decode step is a stream of pages: while K is scored, V of the same keys is asked for, and
  // while V is summed, K of the next pass. (Units of many rows compute longer than memory takes.)
  SACCADE_INLINE Ahead ahead_of(const B* from, int64_t elements, int64_t steps) const {
    if (from == nullptr || rows > kStreamRows) return {};
    return Ahead::over(from, elements * static_cast<int64_t>(sizeof(B)), steps);
  }

  // Where asks_ahead: which panels are asked for while others are read, as much at a time.
  struct Pieces {
    static constexpr int64_t kPiece = 2048 / static_cast<int64_t>(sizeof(B));
    const B* const* panels;
    int64_t count, elements;  // panels, and of each
    int64_t panel = 0, at = 0;

    // After what is read now, and before what is read then: the compiler would move it.
    SACCADE_INLINE void ask() {
      while (panel < count && (panels[panel] == nullptr || at >= elements)) ++panel, at = 0;
      if (panel >= count) return;
      __asm__ volatile("" ::: "memory");
      for (int64_t i = 0; i < kPiece; i += kLine) __builtin_prefetch(panels[panel] + at + i, 0, 2);
      __asm__ volatile("" ::: "memory");
      at += kPiece;
    }
  } pieces{nullptr, 0, 0};
  bool asks_ahead = false;       // see sees_whole_pages
  int64_t keys_end = INT64_MAX;  // of the part at work

  // The next stretch of keys, in chunk c from `at` on and before `end`, that some row's list holds.
  SACCADE_INLINE bool next_run(int64_t c, int64_t end, int64_t& at, Span& run) const {
    const uint32_t bits = listed >> c * (pass.chunk / 16);
    if (listed != kAll)
      while (at < end && (bits >> at / 16 & 1) == 0) at = at / 16 * 16 + 16;
    if (at >= end) return false;
    run = {at, end};
    if (listed != kAll) {
      run.end = at / 16 * 16 + 16;
      while (run.end < end && (bits >> run.end / 16 & 1) != 0) run.end += 16;
      if (run.end > end) run.end = end;
    }
    at = run.end;
    return true;
  }

  // Channel `channel` of the key `at`, a multiple of the unit, from which the panel goes on by
  // keys.
  SACCADE_INLINE const B* value_at(const B* v, int64_t at, int64_t channel) const {
    return v + channel / v_tile * v_tile * p.page + at * v_tile + channel % v_tile * kU;
  }

  // The part of `span` in chunk c of the pass, as offsets in the chunk.
  SACCADE_INLINE Span in_chunk(const Span& span, int64_t c) const {
    const int64_t base = c * pass.chunk;
    const int64_t begin = span.begin > base ? span.begin - base : 0;
    const int64_t end = span.end < base + pass.chunk ? span.end - base : pass.chunk;
    return {begin, end};
  }

  // Where the values are channels of the keys, V panels are made of K panels, a group of keys at
  // a time, when the first rows need them.
  static constexpr int64_t kTurn = kTiles ? 32 : 16;

  // Products, in unit_products.h.
  struct ScoreBlock;
  struct ValueBlock;
  void score(const Active* active, int64_t count, const Span& span);
  void values(const Active* active, int64_t count, const Span& span, float* o);
  void value_rest(const Active* active, int64_t count, const Span& span, float* o, int64_t channel);
#if SACCADE_AMX
  // Few rows, which wait for pages to come from memory.
  bool streams() const { return rows <= kStreamRows && source == nullptr; }
  void expect_lines(int64_t count);
  void ask_lines();
  void score_tiles(const A* queries, int64_t count, const Span& keys, const B* k, float* to);
  void score_key_rows(const Active* active, int64_t count, const Span& keys, const B* k);
  void wide_scores(const A* queries, const B* k, float* to);
  void wide_values(float* o, int64_t channel, const Span& keys, int64_t chunk);
  void all_values(const Span& span, float* o);
  template <int R, int C, bool kOnce = false, bool kAsks = false>
  void value_tile(float* o, int64_t r, int64_t channel, const Span& span);
  void value_tiles(const Active* active, int64_t count, const Span& span, float* o);
  void add_outputs(const Active* active, int64_t count, float* o) const;
  void begin_outputs(const Active* active, int64_t count, float* all, const float* o) const;
  void pad_probabilities(int64_t count, const Span& span);
#endif

  // Scores and probabilities, in unit_softmax.h.
  SACCADE_INLINE F<W> capped(F<W> s) const;
  SACCADE_INLINE F<W> highest(const Active& active, const Span& own, int64_t first, float* s) const;
  template <bool kKeeps>
  SACCADE_INLINE F<W> weigh(int64_t r, const Span& own, float base, bool huge, float* kept);
  SACCADE_INLINE F<W> weigh_own(int64_t r, int64_t row, const Span& own, int64_t first,
                                const Span& span, float now);
  template <bool kPlain>
  SACCADE_INLINE bool soften(const Active* active, int64_t r, int64_t some, int64_t first,
                             const Span& span, float* partial);
  SACCADE_INLINE void softmax(const Active* active, int64_t count, int64_t first, const Span& span,
                              bool plain, float* partial);

  // Passes and segments, in unit_passes.h.
  bool is_plain(const Active* active, int64_t count, int64_t first, Span& span) const;
  const A* queries(const Active* active, int64_t count);
  void expect_turned();
  void turn_keys(int64_t first, const Span& span);
  void turn_group(const B* k, B* v, int64_t known) const;
  void attend_rows(const Active* active, int64_t count, int64_t first, float* partial);
  void attend_pass(int64_t index, int64_t first, float* partial);
  uint32_t listed_of(int64_t index) const;
  static void forget_unlisted(Pass<B>& of, uint32_t bits);
  bool sees_whole_pages() const;
  void foresee_block();
  const B* end_of(const B* const* panels, int64_t dim) const;
  void follow_memory();
  // Adds what rows see of one segment of keys, which begins at `begin`: those with short lists, or
  // all others.
  void attend_segment(int64_t begin, bool shorts, float* partial);
  // The segments that hold keys of [begin, end).
  void attend_segments(int64_t begin, int64_t end, bool shorts, float* partial);
  // All that rows with short lists see.
  void attend_shorts(float* total);
  // All that rows with long lists see: the parts of each summed by themselves, and added in order.
  void attend_longs(float* total);
  void fold_parts(int64_t index, int64_t first, float* partial);
  // What they see of this part of their lists.
  void attend_part(int64_t number, float* partial);
};

}  // namespace SACCADE_ISA
}  // namespace saccade
