// What the kernels use of CUDA, in terms that nvcc, NVRTC and (with SACCADE_SHIM) g++ compile: no
// header of CUDA or of a framework is needed.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#ifdef SACCADE_SHIM
#include "shim/shim.h"
#define SACCADE_DEVICE inline
#define SACCADE_UNROLL
#define SACCADE_UNROLL_4
// The entry point of a kernel that takes a params struct by value; here a function that runs it.
#define SACCADE_KERNEL(name, Params, threads, body)                                   \
  extern "C" void name(const Params* p, u32 x, u32 y, u32 z, u32 width, u64 shared) { \
    saccade_shim::launch({x, y, z}, {width, 1, 1}, shared, [p] { body(*p); });        \
  }
#else
#define SACCADE_DEVICE __device__ __forceinline__
#define SACCADE_UNROLL _Pragma("unroll")
#define SACCADE_UNROLL_4 _Pragma("unroll 4")
#define SACCADE_KERNEL(name, Params, threads, body)        \
  extern "C" __global__ void __launch_bounds__(threads, 1) \
      name(const __grid_constant__ Params p) {             \
    body(p);                                               \
  }
#endif

namespace saccade {

constexpr u32 kAll = 0xffffffffu;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct alignas(16) Bytes16 {
  u32 part[4];
};

#ifdef SACCADE_SHIM
SACCADE_DEVICE u8* dynamic_shared() {
  return saccade_shim::shared_memory;
}
SACCADE_DEVICE void sync_block() {
  saccade_shim::block_barrier->wait();
}
SACCADE_DEVICE void sync_warp() {
  saccade_shim::lane->warp->barrier.wait();
}
template <class T>
SACCADE_DEVICE T from_lane(T value, u32 lane) {
  return saccade_shim::exchange(value, lane);
}
SACCADE_DEVICE u32 ballot(bool set) {
  return saccade_shim::ballot(set);
}
SACCADE_DEVICE u32 bits_set(u32 x) {
  return __builtin_popcount(x);
}
SACCADE_DEVICE u32 count_leading_zeros(u32 x) {
  return __builtin_clz(x);
}
SACCADE_DEVICE u32 bits_of(float x) {
  u32 u;
  memcpy(&u, &x, 4);
  return u;
}
SACCADE_DEVICE float float_of(u32 u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
SACCADE_DEVICE void atomic_or(u32* at, u32 bits) {
  __atomic_fetch_or(at, bits, __ATOMIC_RELAXED);
}
// What this block wrote before is visible to the block that sees the sum, and the other way round.
SACCADE_DEVICE i32 add_acquire_release(i32* at, i32 x) {
  return __atomic_fetch_add(at, x, __ATOMIC_ACQ_REL);
}
SACCADE_DEVICE float half_to_float(u16 raw) {
  _Float16 x;
  memcpy(&x, &raw, 2);
  return x;
}
SACCADE_DEVICE u16 float_to_half(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  u16 raw;
  memcpy(&raw, &half, 2);
  return raw;
}
SACCADE_DEVICE u16 float_to_bfloat(float x) {
  const u32 u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<u16>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
// 16 bytes from global to shared memory, or zeros; `wait_copies<n>` leaves the last n groups.
SACCADE_DEVICE void copy_async(void* to, const void* from, bool valid) {
  if (valid)
    memcpy(to, from, 16);
  else
    memset(to, 0, 16);
}
SACCADE_DEVICE void commit_copies() {}
template <int kLeft>
SACCADE_DEVICE void wait_copies() {}
#else
SACCADE_DEVICE u8* dynamic_shared() {
  extern __shared__ __align__(16) u8 memory[];
  return memory;
}
SACCADE_DEVICE void sync_block() {
  __syncthreads();
}
SACCADE_DEVICE void sync_warp() {
  __syncwarp();
}
template <class T>
SACCADE_DEVICE T from_lane(T value, u32 lane) {
  return __shfl_sync(kAll, value, lane);
}
SACCADE_DEVICE u32 ballot(bool set) {
  return __ballot_sync(kAll, set);
}
SACCADE_DEVICE u32 bits_set(u32 x) {
  return __popc(x);
}
SACCADE_DEVICE u32 count_leading_zeros(u32 x) {
  return __clz(static_cast<int>(x));
}
SACCADE_DEVICE u32 bits_of(float x) {
  return __float_as_uint(x);
}
SACCADE_DEVICE float float_of(u32 u) {
  return __uint_as_float(u);
}
SACCADE_DEVICE void atomic_or(u32* at, u32 bits) {
  atomicOr(at, bits);
}
// What this block wrote before is visible to the block that sees the sum, and the other way round.
SACCADE_DEVICE i32 add_acquire_release(i32* at, i32 x) {
  i32 before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(at)), "r"(x)
               : "memory");
  return before;
}
SACCADE_DEVICE float half_to_float(u16 raw) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(raw));
  return x;
}
SACCADE_DEVICE u16 float_to_half(float x) {
  u16 raw;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(raw) : "f"(x));
  return raw;
}
SACCADE_DEVICE u16 float_to_bfloat(float x) {
  u16 raw;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(raw) : "f"(x));
  return raw;
}
// 16 bytes from global to shared memory, or zeros; `wait_copies<n>` leaves the last n groups.
SACCADE_DEVICE void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<u32>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
               : "memory");
}
SACCADE_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kLeft>
SACCADE_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
#endif

// ---- element types: how each is stored, and as fp32 ----

struct F32 {
  using Raw = float;
  static SACCADE_DEVICE float get(float raw) { return raw; }
  static SACCADE_DEVICE float put(float x) { return x; }
};

struct BF16 {
  using Raw = u16;
  static SACCADE_DEVICE float get(u16 raw) { return float_of(static_cast<u32>(raw) << 16); }
  static SACCADE_DEVICE u16 put(float x) { return float_to_bfloat(x); }
};

struct F16 {
  using Raw = u16;
  static SACCADE_DEVICE float get(u16 raw) { return half_to_float(raw); }
  static SACCADE_DEVICE u16 put(float x) { return float_to_half(x); }
};

// Eight consecutive elements, 16-byte aligned.
template <class E>
SACCADE_DEVICE void load8(const typename E::Raw* from, float* to) {
  constexpr int kParts = sizeof(typename E::Raw) / 2;
  SACCADE_UNROLL
  for (int part = 0; part < kParts; ++part) {
    const Bytes16 raw = reinterpret_cast<const Bytes16*>(from)[part];
    SACCADE_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (kParts == 2) {
        to[4 * part + i] = float_of(raw.part[i]);
      } else {
        to[2 * i] = E::get(static_cast<u16>(raw.part[i]));
        to[2 * i + 1] = E::get(static_cast<u16>(raw.part[i] >> 16));
      }
    }
  }
}

// ---- small things ----

SACCADE_DEVICE float infinity() {
  return float_of(0x7f800000u);
}

template <class T>
SACCADE_DEVICE T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
SACCADE_DEVICE T most(T a, T b) {
  return a < b ? b : a;
}
SACCADE_DEVICE i64 ceil_div(i64 a, i64 b) {
  return (a + b - 1) / b;
}

SACCADE_DEVICE float warp_max(float x) {
  for (u32 step = 16; step; step >>= 1) x = fmaxf(x, from_lane(x, (threadIdx.x & 31) ^ step));
  return x;
}

SACCADE_DEVICE float warp_sum(float x) {
  for (u32 step = 16; step; step >>= 1) x += from_lane(x, (threadIdx.x & 31) ^ step);
  return x;
}

// The sequence that holds this row: the last s with cu_rows[s] <= row.
SACCADE_DEVICE i64 sequence_of(const i32* cu_rows, i64 seqs, i64 row) {
  i64 low = 0, high = seqs - 1;
  while (low < high) {
    const i64 middle = (low + high + 1) / 2;
    if (cu_rows[middle] <= row)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The page that holds this position, or -1 where the table names none.
SACCADE_DEVICE i64 page_at(const i32* table, i64 width, i64 pages, i64 index) {
  if (index < 0 || index >= width) return -1;
  const i64 page = table[index];
  return page < pages ? page : -1;
}

}  // namespace saccade
