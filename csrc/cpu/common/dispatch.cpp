// Which instruction sets were compiled, which of them this processor and its system can run, and
// why not.
#include <cstring>

#include "saccade/kernel_table.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace saccade {

#define SACCADE_DECLARE(name) \
  namespace name {            \
  const KernelTable& table(); \
  }
SACCADE_DECLARE(portable)
#if defined(SACCADE_HAVE_AVX2)
SACCADE_DECLARE(avx2)
#endif
#if defined(SACCADE_HAVE_AVX512)
SACCADE_DECLARE(avx512)
#endif
#if defined(SACCADE_HAVE_AVX512BF16)
SACCADE_DECLARE(avx512bf16)
#endif
#if defined(SACCADE_HAVE_AMX)
SACCADE_DECLARE(amx)
#endif
#if defined(SACCADE_HAVE_AMX_EMULATED)
SACCADE_DECLARE(amx_emulated)
#endif

namespace {

constexpr const char* kNotCompiled = "the compiler that built this install does not know it";

#if defined(__x86_64__)
const char* lacks_avx2() {
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("f16c");
  return has ? nullptr : "this processor lacks AVX2, FMA or F16C";
}

const char* lacks_avx512() {
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has ? nullptr : "this processor lacks AVX-512 F, BW, VL or DQ";
}

const char* lacks_avx512bf16() {
  if (lacks_avx512() != nullptr) return lacks_avx512();
  return __builtin_cpu_supports("avx512bf16") ? nullptr : "this processor lacks AVX512-BF16";
}

const char* lacks_amx() {
  if (lacks_avx512bf16() != nullptr) return lacks_avx512bf16();
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
  const bool tile = (d >> 24) & 1u, bf16 = (d >> 22) & 1u;
  if (!tile || !bf16) return "this processor lacks AMX-TILE or AMX-BF16";
#if defined(__linux__)
  // Tile registers are large, so Linux hands them out on request: ARCH_REQ_XCOMP_PERM for
  // XTILEDATA.
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0)
    return "the operating system does not grant the AMX tile state";
  return nullptr;
#else
  return "asking for the AMX tile state is implemented for Linux only";
#endif
}
#endif

}  // namespace

const KernelTable* kernel_table(const char* isa, const char** reason) {
  *reason = nullptr;
  if (std::strcmp(isa, "portable") == 0) return &portable::table();
#if defined(__x86_64__)
#define SACCADE_OFFER(name, why)               \
  if (std::strcmp(isa, #name) == 0) {          \
    *reason = why;                             \
    return *reason ? nullptr : &name::table(); \
  }
#if defined(SACCADE_HAVE_AVX2)
  SACCADE_OFFER(avx2, lacks_avx2())
#endif
#if defined(SACCADE_HAVE_AVX512)
  SACCADE_OFFER(avx512, lacks_avx512())
#endif
#if defined(SACCADE_HAVE_AVX512BF16)
  SACCADE_OFFER(avx512bf16, lacks_avx512bf16())
#endif
#if defined(SACCADE_HAVE_AMX)
  SACCADE_OFFER(amx, lacks_amx())
#endif
#if defined(SACCADE_HAVE_AMX_EMULATED)
  SACCADE_OFFER(amx_emulated, lacks_avx512bf16())
#endif
#endif
  *reason = kNotCompiled;
  return nullptr;
}

}  // namespace saccade
