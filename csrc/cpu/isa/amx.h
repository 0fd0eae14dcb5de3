// Tile products on AMX-BF16, or on an emulation of its tile instructions for tests on machines
// without it.
//
// Tiles 0..3 accumulate, 4..5 hold A (16 rows x 32 bf16), 6..7 hold B (16 pair rows x 16 lanes x 2
// bf16).
#pragma once
#include "simd.h"

#if defined(__AMX_BF16__) || defined(SACCADE_AMX_EMULATE)
#define SACCADE_AMX 1
#else
#define SACCADE_AMX 0
#endif

namespace saccade {
namespace SACCADE_ISA {

constexpr bool kTiles = SACCADE_AMX;  // products by tile instructions, wherever there are any

#if SACCADE_AMX
namespace amx {

#if defined(SACCADE_AMX_EMULATE)
struct Tile {
  unsigned char bytes[16][64];
};
inline Tile* tiles() {
  static thread_local Tile all[8];
  return all;
}
SACCADE_INLINE void tile_zero(int t) {
  std::memset(&tiles()[t], 0, sizeof(Tile));
}
SACCADE_INLINE void tile_load(int t, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r)
    std::memcpy(tiles()[t].bytes[r], static_cast<const char*>(from) + r * stride, 64);
}
SACCADE_INLINE void tile_store(int t, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tiles()[t].bytes[r], 64);
}
SACCADE_INLINE void tile_pass(int t, const void* from, int64_t stride) {
  tile_load(t, from, stride);
}
inline void tile_dp(int c, int a, int b) {
  Tile &tc = tiles()[c], &ta = tiles()[a], &tb = tiles()[b];
  for (int m = 0; m < 16; ++m) {
    float* row = reinterpret_cast<float*>(tc.bytes[m]);
    const uint16_t* x = reinterpret_cast<const uint16_t*>(ta.bytes[m]);
    for (int k = 0; k < 16; ++k) {
      const uint16_t* y = reinterpret_cast<const uint16_t*>(tb.bytes[k]);
      for (int n = 0; n < 16; ++n) {
        row[n] += widen_bf16(x[2 * k]) * widen_bf16(y[2 * n]);
        row[n] += widen_bf16(x[2 * k + 1]) * widen_bf16(y[2 * n + 1]);
      }
    }
  }
}
inline void configure(int64_t) {}
inline void release() {}
#define SACCADE_TILE(name, ...) name(__VA_ARGS__)
#else
inline void configure(int64_t rows) {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.column_bytes[t] = 64;
    config.rows[t] = t < 5 ? static_cast<uint8_t>(rows) : 16;
  }
  _tile_loadconfig(&config);
}
inline void release() {
  _tile_release();
}
// The tile number is part of the instruction, so these must be macros over literals.
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, from, stride) _tile_loadd(t, from, stride)
#define tile_pass(t, from, stride) _tile_stream_loadd(t, from, stride)
#define tile_store(t, to, stride) _tile_stored(t, to, stride)
#define tile_dp(c, a, b) _tile_dpbf16ps(c, a, b)
#endif

// One step of k (32 elements) of a product with R x C tiles: A rows `lda` elements apart, B pair
// rows `ldb` elements apart. R and C are 1 or 2; the accumulators are tiles 0 (row 0), 1 (row 0,
// right), 2 (row 1), 3 (row 1, right). kOnce: B goes past the first-level cache, in which A and C
// are to stay.
template <int R, int C, bool kOnce = false>
SACCADE_INLINE void step(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb) {
  if constexpr (kOnce) {
    tile_pass(6, b, ldb * 2);
    if constexpr (C == 2) tile_pass(7, b + 32, ldb * 2);
  } else {
    tile_load(6, b, ldb * 2);
    if constexpr (C == 2) tile_load(7, b + 32, ldb * 2);
  }
  tile_load(4, a, lda * 2);
  tile_dp(0, 4, 6);
  if constexpr (C == 2) tile_dp(1, 4, 7);
  if constexpr (R == 2) {
    tile_load(5, a + 16 * lda, lda * 2);
    tile_dp(2, 5, 6);
    if constexpr (C == 2) tile_dp(3, 5, 7);
  }
}

template <int R, int C>
SACCADE_INLINE void clear() {
  tile_zero(0);
  if constexpr (C == 2) tile_zero(1);
  if constexpr (R == 2) tile_zero(2);
  if constexpr (R == 2 && C == 2) tile_zero(3);
}

// Accumulators from and to memory: rows `ldc` floats apart.
template <int R, int C>
SACCADE_INLINE void fetch(const float* c, int64_t ldc) {
  tile_load(0, c, ldc * 4);
  if constexpr (C == 2) tile_load(1, c + 16, ldc * 4);
  if constexpr (R == 2) tile_load(2, c + 16 * ldc, ldc * 4);
  if constexpr (R == 2 && C == 2) tile_load(3, c + 16 * ldc + 16, ldc * 4);
}
template <int R, int C>
SACCADE_INLINE void put(float* c, int64_t ldc) {
  tile_store(0, c, ldc * 4);
  if constexpr (C == 2) tile_store(1, c + 16, ldc * 4);
  if constexpr (R == 2) tile_store(2, c + 16 * ldc, ldc * 4);
  if constexpr (R == 2 && C == 2) tile_store(3, c + 16 * ldc + 16, ldc * 4);
}

// Up to 16 rows of A and 64 lanes of B, whose rows are then read whole, in the order of memory:
// tiles 0..3 accumulate the lanes from left to right.
SACCADE_INLINE void wide_step(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb) {
  tile_load(4, a, lda * 2);
  tile_load(5, b, ldb * 2);
  tile_dp(0, 4, 5);
  tile_load(6, b + 32, ldb * 2);
  tile_dp(1, 4, 6);
  tile_load(7, b + 64, ldb * 2);
  tile_dp(2, 4, 7);
  tile_load(5, b + 96, ldb * 2);
  tile_dp(3, 4, 5);
}
SACCADE_INLINE void wide_clear() {
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
}
SACCADE_INLINE void wide_fetch(const float* c, int64_t ldc) {
  tile_load(0, c, ldc * 4);
  tile_load(1, c + 16, ldc * 4);
  tile_load(2, c + 32, ldc * 4);
  tile_load(3, c + 48, ldc * 4);
}
SACCADE_INLINE void wide_put(float* c, int64_t ldc) {
  tile_store(0, c, ldc * 4);
  tile_store(1, c + 16, ldc * 4);
  tile_store(2, c + 32, ldc * 4);
  tile_store(3, c + 48, ldc * 4);
}

// C[16 R][16 C] = A[16 R][32 steps] * B[16 steps pairs][16 C lanes][2].
template <int R, int C, bool kOnce = false>
SACCADE_INLINE void product(float* c, int64_t ldc, const uint16_t* a, int64_t lda,
                            const uint16_t* b, int64_t ldb, int64_t steps) {
  clear<R, C>();
  for (int64_t k = 0; k < steps; ++k) step<R, C, kOnce>(a + k * 32, lda, b + k * 16 * ldb, ldb);
  put<R, C>(c, ldc);
}

// The same with 32 lanes for `left` rows of A, of which no more than 32 are computed.
template <bool kOnce = false>
SACCADE_INLINE void rows_product(int64_t left, float* c, int64_t ldc, const uint16_t* a,
                                 int64_t lda, const uint16_t* b, int64_t ldb, int64_t steps) {
  if (left > 16) {
    product<2, 2, kOnce>(c, ldc, a, lda, b, ldb, steps);
  } else {
    product<1, 2, kOnce>(c, ldc, a, lda, b, ldb, steps);
  }
}

// Any number of rows of A, and whole pairs of tiles of B's lanes; A, C and what lies behind them up
// to whole tiles may be read and written.
template <bool kOnce = false>
SACCADE_INLINE void rows_by_lanes(int64_t rows, int64_t lanes, float* c, int64_t ldc,
                                  const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb,
                                  int64_t steps) {
  for (int64_t at = 0; at < lanes; at += 32)
    for (int64_t r = 0; r < rows; r += 32)
      rows_product<kOnce>(rows - r, c + r * ldc + at, ldc, a + r * lda, lda, b + at * 2, ldb,
                          steps);
}

// C[16][16] = 16 rows of A * B[16 steps pairs][16 lanes][2], whatever number of rows other tiles
// have.
SACCADE_INLINE void rows_by_columns(float* c, const uint16_t* a, int64_t lda, const uint16_t* b,
                                    int64_t steps) {
  tile_zero(7);
  for (int64_t k = 0; k < steps; ++k) {
    tile_load(5, a + k * 32, lda * 2);
    tile_load(6, b + k * 16 * 32, 64);
    tile_dp(7, 5, 6);
  }
  tile_store(7, c, 64);
}

}  // namespace amx
#endif

// While it lives, this thread's tiles have the shape that the products want. rows: of A and C;
// fewer than 16 are quicker.
struct TileScope {
#if SACCADE_AMX
  explicit TileScope(int64_t rows = 16) { amx::configure(rows < 16 ? rows : 16); }
  ~TileScope() { amx::release(); }
#else
  explicit TileScope(int64_t = 16) {}
#endif
};

}  // namespace SACCADE_ISA
}  // namespace saccade
