// Arguments of the CUDA kernels: raw pointers, sizes and strides in elements unless said. Every
// field has eight bytes; kernels/cuda_params.py packs the same structs. Pages of K are [pages, >=
// Hkv, P, dim], pages of V [pages, >= Hkv, P, v_dim], a page `*_page` elements apart.
#pragma once
#include "device.cuh"

namespace saccade {

// New tokens into pages; bytes are copied as they are. Grid: (rows), 128 threads.
struct WriteParams {
  i64 rows, kv_heads, page, pages;
  i64 k_bytes, v_bytes;  // of one head of a token
  const u8* k;           // [rows, Hkv, dim], strides in bytes
  i64 k_row, k_head;
  const u8* v;  // [rows, Hkv, v_dim], strides in bytes
  i64 v_row, v_head;
  const i64* slots;  // [rows]: page id * P + offset; -1: none
  u8* k_pages;       // a page k_page bytes apart
  u8* v_pages;
  i64 k_page, v_page;
  i64 clear;  // a row at offset 0 clears what the call does not write of its V page
};

// Means of blocks or windows of keys, or of values. Grid: (count, Hkv), 256 threads.
struct MeansParams {
  i64 count, kv_heads, dim, page, pages, block, spread;
  const void* source;  // pages of K or of V
  i64 source_page;
  const i64* members;  // [count, spread] page ids by position
  const i64* home;     // [count]: places in `means`, which has `homes`
  const i64* begin;    // [count]: where the first token lies in the first page
  i64 homes;
  void* means;  // [homes, Hkv, width]: channels offset .. offset + dim are written
  i64 width, offset;
};

// The best complete blocks of each row and head by <q, mean>, and the row's own block. Grid:
// (tiles, Hkv, splits), 128 threads; a tile holds `tokens` rows of one sequence with all heads of
// the KV head. tiles >= sum over sequences of ceil(their rows / tokens).
struct SelectParams {
  i64 rows, seqs, heads, kv_heads, dim, page, pages, block, slots, topk;
  const void* q;  // [rows, H, dim]
  i64 q_row, q_head;
  const void* means;  // [pages, slots, Hkv, dim]
  const i32* table;   // [S, table_width], row stride table_row
  i64 table_row, table_width;
  const i32* cu_rows;          // [S + 1]
  const i64* positions;        // [rows]
  i32* ids;                    // [rows, H, topk + 1] ascending, -1 padded
  i64 tokens, splits, listed;  // listed: topk rounded up to whole warps
  u64* partial;                // [tiles, Hkv, splits, tokens * G, listed]; unused with one split
  i32* arrived;                // [tiles, Hkv] zeros, and zeros again afterwards
};

// The entries (row, owner, place in the list) of each block that precedes the row's own one, for
// kernels that walk over blocks and gather rows. An owner is a query head or a KV head.
struct IndexParams {
  i64 rows, sequences, owners, kv_heads, list_width, blocks;  // blocks: the most of a sequence
  const i32* ids;       // [rows, owners, list_width] block ids, -1: none
  const i64* sequence;  // [rows], ascending
  const i64* own;       // [rows]: the row's own block
  i64 chunks, bins;     // chunks of 256 / (owners / Hkv) rows; sequences * blocks * Hkv bins
  i32* before;          // [bins, chunks]: entries of the bin in this chunk, then in earlier ones
  i32* starts;          // [bins + 1]: where a bin begins in `order`
  i32* tile_starts;     // [bins + 1]: the same in the tiles
  i32* order;           // (row * owners + owner) * list_width + place
  i32 *group, *first, *count;  // [most_tiles]: bin, and where in `order` its entries are; count 0
                               // behind the last tile
  i64 most_tiles, tile;        // tile: the most entries of one
};

// Attention of single rows over paged keys. Grid: (splits, H / group, rows), 128 threads.
struct DecodeParams {
  i64 rows, seqs, heads, kv_heads, dim, v_dim, page, pages;
  const void* q;  // [rows, H, dim]
  i64 q_row, q_head;
  const void* k_pages;
  i64 k_page;
  const void* v_pages;  // null: the first v_dim channels of the keys
  i64 v_page;
  const i32* table;  // [S, table_width], row stride table_row
  i64 table_row, table_width;
  const i32* cu_rows;        // [S + 1]
  const i64* positions;      // [rows]
  const i32* lo;             // [rows] or null: 0
  const i32* hi;             // [rows] or null: position + 1
  i64 window, sinks;         // window 0: none
  const float* sink_logits;  // [H] or null
  const i32* blocks;         // [lists, owners, list_width], -1: none, or null
  const i32* list_of_row;    // [rows], or null: row t has list t
  i64 lists, owners, list_width, block;
  void* out;  // [rows, H, v_dim], of q's type or (out_f32) fp32
  i64 out_f32;
  float* lse;               // [rows, H]
  i64 group;                // query heads of a program, all of one KV head
  i64 splits, tile, least;  // tile: keys at a time; least: tiles of a split
  float* partial;           // [rows, H / group, splits, group, v_dim + 2]
  i32* arrived;             // [rows, H / group] zeros, and zeros again afterwards
  double scale, softcap;    // softcap 0: none
};

}  // namespace saccade
