// A call of attention over entries, and the lists that are made of what their rows kept.
#pragma once
#include "attend.h"
#include "best.h"
#include "room.h"

namespace saccade {
namespace SACCADE_ISA {

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
  struct Shared {
    int64_t first, passes, entries;  // passes 0: its units gather for themselves
  };
  Room<char> panels;
  Room<Shared> shared;  // [S]
  int64_t panel_bytes = 0;

  explicit EntryCall(const CompressedParams& call) : AttendParams{}, c(&call) {}
  int64_t passes() const { return most / kPass; }
  bool shares_panels(int64_t seq) const {
    return shared.get() != nullptr && shared[seq].passes > 0;
  }
  char* panel(int64_t seq, int64_t kv_head, int64_t pass) const {
    const Shared& of = shared[seq];
    return panels.get() + (of.first + kv_head * of.passes + pass) * panel_bytes;
  }
};

// No entry lies beyond the page table.
inline int64_t complete_entries(const CompressedParams& c, int64_t position) {
  const int64_t known = c.table_width * c.slots;
  if (position + 1 < c.length) return 0;
  const int64_t complete = (position + 1 - c.length) / c.stride + 1;
  return complete < known ? complete : known;
}

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

}  // namespace SACCADE_ISA
}  // namespace saccade
