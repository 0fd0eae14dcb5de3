// Arguments of the CPU kernels: raw pointers, sizes and strides in elements. No framework header
// anywhere.
#pragma once
#include <cstdint>

namespace saccade {

enum class DType : int { kF32 = 0, kBF16 = 1, kF16 = 2 };

inline int64_t size_of(DType type) {
  return type == DType::kF32 ? 4 : 2;
}

// How pages follow one another, in panels (what one page holds of one KV head): a page's heads lie
// side by side (page = heads, head = 1), or a head's pages do (page = 1, head = pages).
struct PageSteps {
  int64_t page, head;
  int64_t panel(int64_t id, int64_t kv_head) const { return id * page + kv_head * head; }
};

// How what pages keep beside K and V lies in memory, in elements: from slot to slot, also from the
// last of a page to the first of the next, and from KV head to KV head.
struct FieldSteps {
  int64_t slot, head;
};

// Channels of V that lie together in a panel: as many as a tile of products takes at a time, so
// that a panel is read in the order of memory. V panels are [v_dim / tile, P / unit, tile, unit].
inline int64_t value_tile(int64_t v_dim) {
  return v_dim % 64 == 0 ? 64 : v_dim;
}

// Paged attention. Shapes: T rows over S sequences, H query heads, Hkv KV heads, P tokens a page.
struct AttendParams {
  DType dtype, out_dtype;
  int64_t seqs, rows, heads, kv_heads, dim, v_dim, page, pages;
  const void* q;  // [T, H, dim], strides below, last dimension contiguous
  int64_t q_row, q_head;
  PageSteps steps;
  const void* k_pages;   // panels [dim / unit, P, unit]: unit is 2 for bf16, else 1
  const void* v_pages;   // panels of V (see value_tile), with the same steps; null: channels of the
                         // keys, the first v_dim of them
  const int32_t* table;  // [S, table_width], row stride table_row
  int64_t table_row, table_width;
  const int32_t* cu_rows;    // [S + 1]
  const int64_t* positions;  // [T]
  const int32_t* lo;         // [T] or null: 0
  const int32_t* hi;         // [T] or null: position + 1; see hi_owners
  int64_t window;            // 0: none
  int64_t sinks;
  float scale, softcap;        // softcap 0: none
  const float* sink_logits;    // [H] or null
  const int32_t* blocks;       // [lists, owners, list_width], ascending, -1 padded, or null
  const int32_t* list_of_row;  // [T], or null: row t has list t
  int64_t owners, list_width, block;
  bool scattered = false;  // rows share little of what their lists hold
  void* out;               // [T, H, v_dim] contiguous
  float* lse;              // [T, H]
  int64_t unit_rows = 0;   // the most rows that share a pass over the keys; 0: as it suits
  int64_t hi_owners = 1;   // `hi` is [T, hi_owners]: one for all heads, or one for each KV head
  int64_t segment = 0;     // keys that are summed by themselves; 0: as many as usual
  int64_t table_head = 0;  // a table for each KV head of a sequence: how far apart; 0: one for all
  const int32_t* row_ends = nullptr;  // [S]: where the rows of a sequence end that this call
                                      // computes; null: where those of the next begin

  int64_t end_of_row(int64_t row, int64_t kv_head) const {
    if (hi == nullptr) return positions[row] + 1;
    return hi[row * hi_owners + (hi_owners > 1 ? kv_head : 0)];
  }
  int64_t end_of_rows(int64_t seq) const {
    return row_ends != nullptr ? row_ends[seq] : cu_rows[seq + 1];
  }
};

// Attention of rows (one head, one KV head, `hi`) over lists that the rows themselves change:
// before it attends, a row's key goes to its slot, where it may replace another that rows before it
// see.
struct AttendTurnsParams {
  AttendParams attend;
  const void* k;  // [rows, dim]
  int64_t k_row;
  const void* v;  // [rows, v_dim]
  int64_t v_row;
  const int64_t* slots;     // [rows], page id * page + offset
  const uint8_t* replaces;  // [rows]
};

// y = x W^T + bias over panels of 32 outputs.
struct LinearParams {
  DType dtype, out_dtype;
  int64_t rows, in, outs;
  const void* x;  // [rows, in], row stride x_row
  int64_t x_row;
  const void*
      weight;  // bf16: [panels, in / 2, 32, 2] (in rounded up to even); else [panels, in, 32]
  const float* bias;  // [outs] or null
  void* y;            // [rows, outs], row stride y_row
  int64_t y_row;
  // Several heads: x and y have one more dimension of these strides, and the weights of the heads,
  // each of whole panels, lie one behind the other.
  int64_t heads, x_head, y_head;
};

struct RmsNormParams {
  DType dtype;
  int64_t rows, width;
  const void* x;
  int64_t x_row;
  const void* weight;
  float eps, offset;  // offset: added to every weight
  void* residual;     // [rows, width] or null: read, x added, written back
  int64_t residual_row;
  void* out;  // [rows, width] contiguous
};

struct RopeParams {
  DType dtype;
  int64_t rows, heads, half;  // half: rotary dimensions / 2
  void* x;                    // [rows, heads, >= 2 half], in place
  int64_t x_row, x_head;
  const float *cos, *sin;  // [rows, half]
};

// g * sigmoid(alpha g) * (shift + u), the gate g at most `limit` and u within +-limit.
struct SiluMulParams {
  DType dtype;
  int64_t rows, width;
  const void* x;  // [rows, 2 width]
  int64_t x_row;
  float alpha, limit, shift;
  void* out;  // [rows, width] contiguous
};

struct SigmoidMulParams {
  DType dtype;
  int64_t rows, width, span;  // span: adjacent channels that share a gate
  const void* x;              // [rows, width]
  int64_t x_row;
  const void* gate;  // [rows, width / span]
  int64_t gate_row;
  void* out;  // [rows, width] contiguous
};

// silu(sum of weight[l] * the key l tokens before), l = 0 .. taps - 1, and k itself if `residual`.
constexpr int64_t kMostTaps = 16;
struct KeyConvParams {
  DType dtype;
  int64_t rows, width, taps;
  bool residual;
  const void* k;  // [rows, width]
  int64_t k_row;
  const void* history;    // [any, width] contiguous: keys of earlier steps
  const int64_t* before;  // [rows, taps - 1]: a row of k; -1: no token; -2 - i: row i of history
  const void* weight;     // [taps, width]
  void* out;              // [rows, width] contiguous
};

// The gated delta rule: S <- decay S + k (beta (v - decay S^T k))^T, read as S^T q, for rows of
// several sequences, with q and k of length 1.
struct GatedDeltaParams {
  DType dtype;
  int64_t seqs, heads, key_heads, key_dim, value_dim;  // value_dim: a multiple of 16
  const int64_t* cu;                                   // [seqs + 1], of
  const int64_t* rows;                                 // [cu[seqs]], in the order of each sequence
  const int64_t* load;   // [seqs], the state that it begins with, -1: zeros
  const int64_t* store;  // [cu[seqs]], where the state behind a row goes, -1: nowhere
  const void* q;         // [rows, key_heads, key_dim], heads adjacent, as k and v
  int64_t q_row;
  const void* k;
  int64_t k_row;
  const void* v;  // [rows, heads, value_dim]
  int64_t v_row;
  const float *decay, *beta;  // [rows, heads]
  float* states;              // [any, heads, key_dim, value_dim]
  void* out;                  // [rows, heads, value_dim] contiguous
};

struct MergeParams {
  DType dtype;
  int64_t rows, dim;
  const void* out_a;  // [rows, dim]
  const float* lse_a;
  const void* out_b;
  const float* lse_b;
  void* out;
  float* lse;
};

// Every row with one of a table's rows: merged, or added where the table has no weights.
struct CorrectParams {
  DType dtype;  // of the answer; partial results are fp32
  int64_t rows, heads, dim, known;
  const float* out;       // [rows, heads, dim]
  const float* lse;       // [rows, heads]
  const float* table;     // [known, heads, dim]
  const float* weights;   // [known, heads], their lse, or null
  const int64_t* source;  // [rows], which of them; `known`: none
  void* answer;           // [rows, heads, dim]
};

// The first key of each sequence, its weight scaled after attention.
struct ScaleFirstParams {
  DType dtype;  // of q, k, v and the result
  int64_t seqs, rows, heads, kv_heads, dim, v_dim;
  const void* q;  // [rows, heads, dim], strides below
  int64_t q_row, q_head;
  const void* k;           // [seqs, Hkv, dim] contiguous, the first key of each sequence, and
  const void* v;           // [seqs, Hkv, v_dim] its value
  const int32_t* cu_rows;  // [seqs + 1]
  const float* out;        // [rows, heads, v_dim], what attention gave, and
  const float* lse;        // [rows, heads]
  const float* gains;      // [heads]
  const uint8_t* seen;     // [rows, heads]: 0 where the first key was not among those attended
                           // to, or null: it always was
  float scale, softcap;    // softcap 0: none
  void* result;            // [rows, heads, v_dim]
  float* mass;             // [rows, heads], the new lse
};

struct WritePagesParams {
  DType dtype;
  int64_t rows, kv_heads, dim, v_dim, page, pages;
  PageSteps steps;
  void *k_pages, *v_pages;  // as AttendParams
  const void* k;
  int64_t k_row, k_head;
  const void* v;
  int64_t v_row, v_head;
  const int64_t* slots;  // [rows], -1: skip
  bool clear;            // a page of V whose first slot is written is cleared before
};

// The best tokens so far of every head's list (E heads that choose their tokens), one row after the
// other; lists are as long as they may be. Slots count within a list.
struct KeepBestParams {
  int64_t seqs, rows, heads, page, pages;
  const float* scores;      // [rows, E]
  float* scores_kept;       // [pages, E, page], of the tokens in the lists, as
  int32_t* positions_kept;  // their positions
  const int32_t* table;     // [seqs, table_width], row stride table_row: pages of the lists
  int64_t table_row, table_width;
  const int32_t* cu_rows;         // [seqs + 1]
  const int64_t* positions;       // [rows]
  const int32_t *before, *after;  // [rows], lengths of the lists before and with a row
  bool first;                     // the token at position 0 stays
  int32_t* slots;                 // [rows, E], where a row's token is kept, or -1
};

// Tokens whose score is above their head's threshold, in lists that only grow. Pages of the text's
// tokens say which are kept, and how long lists were before each page.
struct KeepAboveParams {
  int64_t seqs, rows, heads, page, pages;
  const float* scores;      // [rows, E]
  const float* thresholds;  // [E]
  uint8_t* flags;           // [pages, page, E]
  int32_t* lengths;         // [pages, E]
  const int32_t* table;     // [seqs, table_width], row stride table_row: pages of the text
  int64_t table_row, table_width;
  const int32_t* cu_rows;    // [seqs + 1]
  const int64_t* positions;  // [rows]
  const int32_t* after;      // [rows], the most tokens of a list with a row
  bool first;                // the token at position 0 is always kept
  int32_t* slots;            // [rows, E], where a row's token is kept, or -1
};

// The best tokens of whole texts, in their order.
struct KeepTopParams {
  int64_t seqs, rows, heads;
  const float* scores;     // [rows, E]
  const int32_t* cu_rows;  // [seqs + 1]
  const int32_t* after;    // [rows], the most tokens of a list; of a text's last row it counts
  bool first;              // the first token of a text is always kept
  int32_t* slots;          // [rows, E], where a row's token is kept, or -1
};

// Means of complete blocks or windows of keys, from the pages, in fp32, rounded once.
struct BlockMeansParams {
  DType dtype;
  int64_t count, kv_heads, dim, page, pages, block, slots, spread;
  PageSteps steps;
  const void* k_pages;     // as AttendParams
  const int64_t* members;  // [count, spread], page ids of each block, by position
  const int64_t* home;     // [count], page id * slots + slot of each block's mean
  const int64_t* begin;    // [count], where its first key lies in the first of its pages
  void* means;             // [pages, slots, Hkv, dim]
};

// Means of windows of keys and values, which may begin at any token.
struct WindowMeansParams {
  DType dtype;
  int64_t count, kv_heads, dim, v_dim, page, pages, length, slots, spread;
  PageSteps steps;
  const void *k_pages, *v_pages;  // as AttendParams
  const int64_t* members;         // [count, spread], page ids of each window, by position
  const int64_t* home;            // [count], page id * slots + slot of each window's mean
  const int64_t* begin;           // [count], where its first key lies in the first of its pages
  void* means;                    // [pages, slots, Hkv, dim + v_dim]; v_dim 0: keys alone
  FieldSteps field;
};

// The best complete blocks of each row by <q, mean>, and the row's own block.
struct SelectBlocksParams {
  DType dtype;
  int64_t seqs, rows, heads, kv_heads, dim, page, pages, block, slots, topk;
  const void* q;  // [rows, heads, dim], strides below
  int64_t q_row, q_head;
  const void* means;     // [pages, slots, Hkv, dim]
  const int32_t* table;  // as AttendParams
  int64_t table_row, table_width;
  const int32_t* cu_rows;
  const int64_t* positions;
  int32_t* ids;  // [rows, heads, topk + 1], ascending, -1 padded
};

// The least and the greatest key of complete blocks, channel by channel.
struct KeyBoundsParams {
  DType dtype;
  int64_t count, kv_heads, dim, page, pages, block, slots;
  PageSteps steps;
  const void* k_pages;     // as AttendParams
  const int64_t* members;  // [count, max(1, block / page)], as BlockMeansParams
  const int64_t* home;
  void* bounds;  // [pages, slots, Hkv, 2, dim]: least, greatest
};

// The blocks whose keys can score highest with a row, for all query heads of a KV head together.
struct SelectBoundedParams {
  DType dtype;
  int64_t seqs, rows, heads, kv_heads, dim, page, pages, block, slots;
  int64_t listed, first, recent;  // blocks of a list; of these, always the first and the latest
  int64_t sums;                   // 1: sum over the query heads, 0: max
  const void* q;                  // [rows, heads, dim], strides below
  int64_t q_row, q_head;
  const void* bounds;    // as KeyBoundsParams
  const int32_t* table;  // as AttendParams
  int64_t table_row, table_width;
  const int32_t* cu_rows;
  const int64_t* positions;
  int32_t* ids;  // [rows, Hkv, listed], ascending, -1 padded
};

// The blocks that hold the best keys of a row, per query head or for all heads together.
struct SelectKeysParams {
  DType dtype;
  int64_t seqs, rows, heads, kv_heads, dim, page, pages, block;
  int64_t listed, first, recent;  // blocks of a list; of these, always the first and the latest
  int64_t unite;                  // 0: a list per head; one list: 1 by ranks, 2 by probabilities
  const void* q;                  // [rows, heads, dim], strides below
  int64_t q_row, q_head;
  PageSteps steps;
  const void* k_pages;   // as AttendParams
  const int32_t* table;  // as AttendParams
  int64_t table_row, table_width;
  const int32_t* cu_rows;
  const int64_t* positions;
  float scale;
  const float* lse;  // [rows, heads]
  int32_t* ids;      // [rows, heads or 1, listed], ascending, -1 padded
};

// Attention over entries, summaries of complete windows of tokens, and the blocks of tokens whose
// entries weigh most, summed over the query heads of a KV head.
struct CompressedParams {
  DType dtype;
  int64_t seqs, rows, heads, kv_heads, dim, v_dim, page, pages, slots;
  int64_t length, stride;  // entry i: tokens [i stride, i stride + length), in the last one's page
  int64_t width;           // channels of an entry: the first `dim` are its key
  int64_t value_first;     // and v_dim from here on its value
  int64_t block;           // tokens; a multiple of the stride
  int64_t largest;         // a block weighs as its heaviest entry; 0: as all, by shared tokens
  int64_t listed, first, recent;  // blocks of a list; of these, always the first and the latest
  int64_t every;                  // positions that are a multiple of this choose a list
  const void* q;                  // [rows, heads, dim], strides below
  int64_t q_row, q_head;
  const void* entries;  // [pages, slots, Hkv, width]
  FieldSteps field;
  const int32_t* table;  // as AttendParams
  int64_t table_row, table_width;
  const int32_t* cu_rows;
  const int64_t* positions;
  float scale;
  void* out;     // [rows, heads, v_dim]
  float* lse;    // [rows, heads]
  int32_t* ids;  // [rows, Hkv, listed], ascending, -1 padded; null: no lists
};

// Attention branches added up under gates, in fp32, rounded once.
struct GatedSumParams {
  DType dtype;
  int64_t rows, dim, count;
  const void* parts[4];  // `count` of them, [rows, dim] contiguous
  const float* gates;    // [rows, count], row stride gate_row
  int64_t gate_row;
  void* out;  // [rows, dim] contiguous
};

// Summaries of windows of keys: entry i is of tokens [i * stride, i * stride + size), and lies in
// the page of the last of them.
struct EntryPages {
  const void* data;  // [pages, slots, owners, dim], or null: there are none
  int64_t slots, size, stride;
};

// The blocks whose entries weigh most with a row: entries weighed by probability or by positive
// score, summed over the query heads of an owner; a block is as good as the best entry that
// overlaps it.
struct SelectPooledParams {
  DType dtype;
  int64_t seqs, rows, heads, owners, dim, page, pages, block;
  int64_t listed, first, recent;  // blocks of a list; of these, always the first and the latest
  int64_t probabilities;          // 1: exp(score - lse); 0: max(score, 0)
  const void* q;                  // [rows, heads, dim], strides below
  int64_t q_row, q_head;
  EntryPages fine;       // weighed and pooled
  EntryPages coarse;     // the lse is over these where a row has any, else over the fine ones
  const int32_t* table;  // as AttendParams
  int64_t table_row, table_width;
  const int32_t* cu_rows;
  const int64_t* positions;
  float scale;
  int32_t* ids;  // [rows, owners, listed], ascending, -1 padded
};

// First and second moments of keys by blocks, without those of the first `sinks` positions.
struct KeyMomentsParams {
  DType dtype;
  int64_t seqs, kv_heads, dim, page, pages, block, slots;
  int64_t kind;        // 0 of each block alone; of all keys up to its end: 1 variances, 2 a
                       // covariance, entry_rows - 1 rows of it, the rest in `spread` - 1 blocks
  int64_t entry_rows;  // the mean, and what else
  int64_t spread;
  int64_t sinks;
  PageSteps steps;
  const void* k_pages;   // as AttendParams
  const int32_t* table;  // as AttendParams
  int64_t table_row, table_width;
  const int64_t *first, *last;  // [S]: blocks [first, last) are to be written
  float* moments;               // [pages, slots, Hkv, entry_rows, dim]
};

// The logarithm of what a row's keys between sinks and window weigh, by moments or by bounds.
struct FarMassParams {
  DType dtype, entry_dtype;
  int64_t seqs, rows, heads, kv_heads, dim, page, pages, block, slots;
  int64_t kind;  // as KeyMomentsParams, or 3: from above, by bounds as KeyBoundsParams
  int64_t entry_rows, spread;
  int64_t window, sinks;  // window >= block
  const void* q;          // [rows, heads, dim], strides below
  int64_t q_row, q_head;
  const void* entries;   // [pages, slots, Hkv, entry_rows, dim]
  const int32_t* table;  // as AttendParams
  int64_t table_row, table_width;
  const int32_t* cu_rows;
  const int64_t* positions;
  float scale;
  float* mass;  // [rows, heads], natural logarithm
};

}  // namespace saccade
