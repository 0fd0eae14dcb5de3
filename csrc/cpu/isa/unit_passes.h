// A unit goes over its keys, segment by segment and pass by pass: which rows are at work, which
// pages are asked for ahead, and values that are channels of the keys.
#pragma once
#include "unit_products.h"

namespace saccade {
namespace SACCADE_ISA {

// The rows at work, side by side: straight from q, or gathered. Tiles read whole groups of 16 rows;
// what lies behind the last row gives scores that nobody reads.
template <class S>
inline const typename UnitRun<S>::A* UnitRun<S>::queries(const Active* active, int64_t count) {
  const int64_t first = active[0].row, read = kTiles ? (count + 15) / 16 * 16 : count;
  if (first + read <= rows && are_neighbours(active, count)) return q + first * p.dim;
  for (int64_t r = 0; r < count; ++r) {
    const A* from = q + active[r].row * p.dim;
    A* to = q_sub + r * p.dim;
    if (kTiles) {  // whole vectors, and no call
      for (int64_t i = 0; i < p.dim; i += 32) store(to + i, load<F<W>>(from + i));
    } else {
      std::memcpy(to, from, static_cast<size_t>(p.dim) * sizeof(A));
    }
  }
  return q_sub;
}

template <class S>
inline void UnitRun<S>::expect_turned() {
  if (p.v_pages != nullptr) return;
  is_turned = 0;
  for (int64_t c = 0; c < pass.chunks; ++c)
    pass.v[c] = pass.k[c] == nullptr ? nullptr : turned + c * pass.chunk * p.v_dim;
}

template <class S>
inline void UnitRun<S>::turn_keys(int64_t first, const Span& span) {
  if (p.v_pages != nullptr) return;
  for (int64_t at = span.begin / kTurn * kTurn; at < span.end; at += kTurn) {
    const int64_t c = at / pass.chunk;
    if (pass.k[c] == nullptr || (is_turned >> at / kTurn & 1) != 0) continue;
    is_turned |= 1u << at / kTurn;
    const int64_t in_chunk = at % pass.chunk, left = u.hi - first - at;
    turn_group(pass.k[c] + in_chunk * kU, turned + at * p.v_dim, left < kTurn ? left : kTurn);
  }
}

// The leading channels of kTurn keys. Those that no row of the unit sees weigh nothing, and
// become 0: what lies there may be a former owner's.
template <class S>
inline void UnitRun<S>::turn_group(const B* k, B* v, int64_t known) const {
  B row[kTurn * kU];
  for (int64_t i = 0; i < p.v_dim; i += kU, k += p.page * kU, v += kU * kU) {
    std::memcpy(row, k, sizeof(row));
    for (int64_t e = known * kU; e < kTurn * kU; ++e) row[e] = B{};
    const int64_t channels = p.v_dim - i < kU ? p.v_dim - i : kU;
    for (int64_t key = 0; key < kTurn; key += kU)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t e = 0; e < kU; ++e) v[key * p.v_dim + c * kU + e] = row[(key + e) * kU + c];
  }
}

// Whether the rows at work see the same stretch of a pass, `span`, and all of it, and nothing but
// their scores counts.
template <class S>
inline bool UnitRun<S>::is_plain(const Active* active, int64_t count, int64_t first,
                                 Span& span) const {
  if (p.softcap > 0 || (source != nullptr && source->hides())) return false;
  span = {0, kPass};
  if (p.blocks != nullptr) {
    if (p.block < 16) return false;
    const uint32_t bits = active[0].bits;
    for (int64_t r = 1; r < count; ++r)
      if (active[r].bits != bits) return false;
    const uint32_t run = bits >> __builtin_ctz(bits);
    if ((run & (run + 1)) != 0) return false;
    span = {__builtin_ctz(bits) * 16, (32 - __builtin_clz(bits)) * 16};
  }
  return first + span.begin >= all_begin && first + span.end <= all_end;
}

template <class S>
inline void UnitRun<S>::attend_rows(const Active* active, int64_t count, int64_t first,
                                    float* partial) {
  Span span;
  const bool plain = is_plain(active, count, first, span);
  if (!plain) span = {kPass, 0};
  for (int64_t r = 0; !plain && r < count; ++r) {
    const Span own = span_of(p, info[active[r].row], active[r], first);
    if (own.begin < span.begin) span.begin = own.begin;
    if (own.end > span.end) span.end = own.end;
  }
#if SACCADE_AMX
  passes_by = (span.end - span.begin) * (p.dim + p.v_dim) <= kPassingBy;
  if (asks_ahead) pieces = {pass.v, pass.chunks, pass.chunk * p.v_dim};
#endif
  score(active, count, span);
  softmax(active, count, first, span, plain, partial);
#if SACCADE_AMX
  if (asks_ahead) pieces = {next.k, next.chunks, next.chunk * p.dim};
  pad_probabilities(count, span);
#endif
  turn_keys(first, span);
  values(active, count, span, partial);
}

// All rows of a pass. With lists, rows that see the same quarters of it go together, so that few
// products are of keys that no row sees; a few rows of one kind wait for the next.
template <class S>
inline void UnitRun<S>::attend_pass(int64_t index, int64_t first, float* partial) {
  const Active* all = segment.of(index);
  const int64_t count = segment.counts[index], together = segment.together;
  if (p.blocks == nullptr) {
    for (int64_t at = 0; at < count; at += kSub)
      attend_rows(all + at, count - at < kSub ? count - at : kSub, first, partial);
    return;
  }
  int64_t ends[17] = {};
  for (int64_t i = 0; i < count; ++i) ends[quarters_of(all[i].bits) + 1] += together;
  for (int64_t kind = 0; kind < 16; ++kind) ends[kind + 1] += ends[kind];
  for (int64_t i = 0; i < count; ++i) {
    Active active = all[i];
    int64_t& end = ends[quarters_of(active.bits)];
    for (int64_t h = 0; h < together; ++h, ++active.row) by_kind[end++] = active;
  }
  int64_t at = 0;
  for (int64_t kind = 0; kind < 16; ++kind) {
    while (ends[kind] - at >= kSub) attend_rows(by_kind + at, kSub, first, partial), at += kSub;
    if (ends[kind] - at <= kFew) continue;
    attend_rows(by_kind + at, ends[kind] - at, first, partial);
    at = ends[kind];
  }
  const int64_t rows_at_work = count * together;
  if (at < rows_at_work) attend_rows(by_kind + at, rows_at_work - at, first, partial);
}

template <class S>
inline uint32_t UnitRun<S>::listed_of(int64_t index) const {
  if (p.blocks == nullptr || index >= kPasses) return kAll;
  uint32_t bits = 0;
  for (int64_t at = 0; at < segment.counts[index]; ++at) bits |= segment.of(index)[at].bits;
  return bits == kAll >> (32 - kPass / 16) ? kAll : bits;
}

// Pages that no row's list holds are neither read nor asked for: keys that nobody sees.
template <class S>
inline void UnitRun<S>::forget_unlisted(Pass<B>& of, uint32_t bits) {
  const int64_t groups = of.chunk / 16;
  for (int64_t c = 0; c < of.chunks; ++c)
    if ((bits >> c * groups & ((1u << groups) - 1)) == 0) of.k[c] = of.v[c] = nullptr;
}

// With tiles, a few rows that see whole pages, all of them the same.
template <class S>
inline bool UnitRun<S>::sees_whole_pages() const {
  const bool lists_them = segment.capacity == 1 && p.block % p.page == 0;
  return kTiles && source == nullptr && rows <= kStreamRows && p.page <= kPass &&
         p.v_pages != nullptr && (p.blocks == nullptr || lists_them);
}

// The next block of the list, in the place of the next pass: most segments hold none or one.
template <class S>
inline void UnitRun<S>::foresee_block() {
  const int64_t key = segment.next[0];
  if (key >= u.hi || key >= keys_end) return;
  const int64_t at = key % kPass, end = at + p.block < kPass ? at + p.block : kPass;
  next.locate(p, u, key - at);
  listed_next = static_cast<uint32_t>(segment.bits_of(at, end, 16));
}

// Where the panels of the pass end, if they lie one behind the other in memory, or null.
template <class S>
inline const typename UnitRun<S>::B* UnitRun<S>::end_of(const B* const* panels, int64_t dim) const {
  if (pass.chunk < p.page || panels[0] == nullptr) return nullptr;
  for (int64_t c = 1; c < pass.chunks; ++c)
    if (panels[c] != panels[0] + c * pass.chunk * dim) return nullptr;
  return panels[0] + pass.chunks * pass.chunk * dim;
}

template <class S>
inline void UnitRun<S>::follow_memory() {
  constexpr int64_t kTile = kTileVectors * W;  // a wider row of a panel is read in several sweeps
  const B *k = end_of(pass.k, p.dim), *v = end_of(pass.v, p.v_dim);
  asks_values = v == nullptr || v_end != pass.v[0] || kTile < v_tile;
  asks_keys = k == nullptr || k != next.k[0] || kTile < p.page;
  v_end = v;
}

template <class S>
inline void UnitRun<S>::attend_segment(int64_t begin, bool shorts, float* partial) {
  if (p.blocks != nullptr) {
    segment.collect_lists(p, info, segment.capacity, begin, shorts);
  } else {
    segment.collect(p, u, info, begin, {all_begin, all_end});
  }
  bool started = false;
  for (int64_t i = 0; i < kPasses; ++i) {
    if (segment.counts[i] == 0) continue;
    int64_t after = i + 1;
    while (after < kPasses && segment.counts[after] == 0) ++after;
    if (source != nullptr) {
      source->locate(pass, p, u, begin + i * kPass);
      next.chunk = kPass;
      next.chunks = 0;  // nothing of pages is to be fetched
    } else {
      pass.locate(p, u, begin + i * kPass);
      next.locate(p, u, after < kPasses ? begin + after * kPass : u.hi);
    }
    listed = started ? listed_next : listed_of(i);
    listed_next = listed_of(after);
    if (asks_ahead && p.blocks != nullptr && after == kPasses) foresee_block();
    forget_unlisted(pass, listed);
    forget_unlisted(next, listed_next);
    if (!kTiles) follow_memory();
    started = true;
    expect_turned();
#if SACCADE_AMX
    expect_lines(segment.counts[i] * segment.together);
#endif
    if (folds_to != nullptr) fold_parts(i, begin + i * kPass, partial);
    attend_pass(i, begin + i * kPass, partial);
  }
}

template <class S>
inline void UnitRun<S>::attend_segments(int64_t begin, int64_t end, bool shorts, float* partial) {
  keys_end = end;
  for (int64_t at = u.first_segment; at < u.last_segment; ++at)
    if (at * kSegment < end && begin < (at + 1) * kSegment && may_see(p, u, at))
      attend_segment(at * kSegment, shorts, partial);
}

template <class S>
inline void UnitRun<S>::attend_shorts(float* total) {
  if (short_rows > 0) attend_segments(0, INT64_MAX, true, total);
}

template <class S>
inline void UnitRun<S>::attend_longs(float* total) {
  if (short_rows == rows) return;
  clear(own_partial);
  folds_to = total;
  attend_segments(0, INT64_MAX, false, own_partial);
  folds_to = nullptr;
  merge_into(total, own_partial);
}

// Before a pass: what the rows that see it have summed of a part that ended.
template <class S>
inline void UnitRun<S>::fold_parts(int64_t index, int64_t first, float* partial) {
  const Active* active = segment.of(index);
  for (int64_t i = 0; i < segment.counts[index] * segment.together; ++i) {
    const int64_t r = active[i / segment.together].row + i % segment.together;
    if (first < info[r].part_end) continue;
    merge_row(folds_to, partial, r);
    tops(partial)[r] = -INFINITY;
    while (first >= info[r].part_end) next_part(p, info[r]);
  }
}

template <class S>
inline void UnitRun<S>::attend_part(int64_t number, float* partial) {
  int64_t begin = INT64_MAX, end = 0;
  for (int64_t r = 0; r < rows; ++r) {
    Row& row = info[r];
    if (row.is_short) continue;
    const Part part = part_of(p, row.list, number);
    if (row.lo < part.begin) row.lo = static_cast<int32_t>(part.begin);
    if (row.hi > part.end) row.hi = static_cast<int32_t>(part.end);
    if (row.lo >= row.hi) continue;
    if (row.lo > all_begin) all_begin = row.lo;
    if (row.hi < all_end) all_end = row.hi;
    if (row.lo < begin) begin = row.lo;
    if (row.hi > end) end = row.hi;
  }
  attend_segments(begin, end, false, partial);
}

}  // namespace SACCADE_ISA
}  // namespace saccade
