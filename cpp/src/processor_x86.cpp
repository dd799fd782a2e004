// Features of x86 processors: CPUID, and XGETBV for what the operating system keeps at a switch of tasks.
#include "processor.hpp"

#if defined(__x86_64__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>

namespace whet::internal {
namespace {

enum Register { kA, kB, kC, kD };
// What the operating system must save for it.
enum class Saved { kNothing, kAvx, kAvx512, kAmx };

struct Bit {
  std::uint32_t leaf, subleaf;
  Register place;
  int number;
  const char* feature;
  Saved saved = Saved::kNothing;
};

// Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
constexpr Bit kBits[] = {
    {1, 0, kD, 0, "x87"},
    {1, 0, kD, 8, "cx8"},
    {1, 0, kD, 15, "cmov"},
    {1, 0, kD, 23, "mmx"},
    {1, 0, kD, 24, "fxsr"},
    {1, 0, kD, 25, "sse"},
    {1, 0, kD, 26, "sse2"},
    {1, 0, kC, 0, "sse3"},
    {1, 0, kC, 1, "pclmul"},
    {1, 0, kC, 9, "ssse3"},
    {1, 0, kC, 12, "fma", Saved::kAvx},
    {1, 0, kC, 13, "cx16"},
    {1, 0, kC, 19, "sse4.1"},
    {1, 0, kC, 20, "sse4.2"},
    {1, 0, kC, 22, "movbe"},
    {1, 0, kC, 23, "popcnt"},
    {1, 0, kC, 25, "aes"},
    {1, 0, kC, 26, "xsave"},
    {1, 0, kC, 28, "avx", Saved::kAvx},
    {1, 0, kC, 29, "f16c", Saved::kAvx},
    {1, 0, kC, 30, "rdrnd"},
    {7, 0, kB, 0, "fsgsbase"},
    {7, 0, kB, 3, "bmi"},
    {7, 0, kB, 5, "avx2", Saved::kAvx},
    {7, 0, kB, 8, "bmi2"},
    {7, 0, kB, 10, "invpcid"},
    {7, 0, kB, 16, "avx512f", Saved::kAvx512},
    {7, 0, kB, 17, "avx512dq", Saved::kAvx512},
    {7, 0, kB, 18, "rdseed"},
    {7, 0, kB, 19, "adx"},
    {7, 0, kB, 21, "avx512ifma", Saved::kAvx512},
    {7, 0, kB, 23, "clflushopt"},
    {7, 0, kB, 24, "clwb"},
    {7, 0, kB, 28, "avx512cd", Saved::kAvx512},
    {7, 0, kB, 29, "sha"},
    {7, 0, kB, 30, "avx512bw", Saved::kAvx512},
    {7, 0, kB, 31, "avx512vl", Saved::kAvx512},
    {7, 0, kC, 1, "avx512vbmi", Saved::kAvx512},
    {7, 0, kC, 6, "avx512vbmi2", Saved::kAvx512},
    {7, 0, kC, 8, "gfni"},
    {7, 0, kC, 9, "vaes", Saved::kAvx},
    {7, 0, kC, 10, "vpclmulqdq", Saved::kAvx},
    {7, 0, kC, 11, "avx512vnni", Saved::kAvx512},
    {7, 0, kC, 12, "avx512bitalg", Saved::kAvx512},
    {7, 0, kC, 14, "avx512vpopcntdq", Saved::kAvx512},
    {7, 0, kC, 22, "rdpid"},
    {7, 0, kD, 8, "avx512vp2intersect", Saved::kAvx512},
    {7, 0, kD, 22, "amx-bf16", Saved::kAmx},
    {7, 0, kD, 23, "avx512fp16", Saved::kAvx512},
    {7, 0, kD, 24, "amx-tile", Saved::kAmx},
    {7, 0, kD, 25, "amx-int8", Saved::kAmx},
    {7, 1, kA, 4, "avxvnni", Saved::kAvx},
    {7, 1, kA, 5, "avx512bf16", Saved::kAvx512},
    {7, 1, kA, 21, "amx-fp16", Saved::kAmx},
    {7, 1, kA, 23, "avxifma", Saved::kAvx},
    {7, 1, kD, 4, "avxvnniint8", Saved::kAvx},
    {7, 1, kD, 5, "avxneconvert", Saved::kAvx},
    {7, 1, kD, 10, "avxvnniint16", Saved::kAvx},
    {0xd, 1, kA, 0, "xsaveopt"},
    {0xd, 1, kA, 1, "xsavec"},
    {0xd, 1, kA, 3, "xsaves"},
    {0x80000001, 0, kC, 0, "sahf"},
    {0x80000001, 0, kC, 5, "lzcnt"},
    {0x80000001, 0, kC, 6, "sse4a"},
    {0x80000001, 0, kC, 8, "prfchw"},
    {0x80000001, 0, kC, 11, "xop", Saved::kAvx},
    {0x80000001, 0, kC, 16, "fma4", Saved::kAvx},
    {0x80000008, 0, kB, 0, "clzero"},
    {0x80000008, 0, kB, 9, "wbnoinvd"},
};

std::array<std::uint32_t, 4> cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  std::array<std::uint32_t, 4> found{};
  if (__get_cpuid_count(leaf, subleaf, &found[kA], &found[kB], &found[kC], &found[kD]) == 0) return {};
  // A subleaf that does not exist repeats none of its neighbours on any known processor, but the limit is stated.
  if (leaf == 7 && subleaf != 0) {
    std::array<std::uint32_t, 4> first{};
    __get_cpuid_count(leaf, 0, &first[kA], &first[kB], &first[kC], &first[kD]);
    if (subleaf > first[kA]) return {};
  }
  return found;
}

// The parts of the state that the operating system saves: XCR0.
std::uint64_t saved_state() {
  constexpr std::uint32_t osxsave = 1U << 27;
  if ((cpuid(1, 0)[kC] & osxsave) == 0) return 0;
  std::uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

std::uint64_t needed_state(Saved saved) {
  switch (saved) {
    case Saved::kAvx:
      return 0x6;
    case Saved::kAvx512:
      return 0xe6;
    case Saved::kAmx:
      return 0x60000;
    case Saved::kNothing:
      break;
  }
  return 0;
}

// Asks Linux for the registers of the matrix unit, for all threads of this process; the answer. Their first use without
// that is an illegal instruction (Linux, Documentation/arch/x86/xstate.rst).
bool may_use_tiles() {
  constexpr long request_permission = 0x1023;
  constexpr long tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

std::set<std::string> read_features() {
  const std::uint64_t saved = saved_state();
  std::set<std::string> features;
  for (const Bit& bit : kBits) {
    const std::uint64_t needed = needed_state(bit.saved);
    if ((cpuid(bit.leaf, bit.subleaf)[bit.place] >> bit.number & 1) != 0 && (saved & needed) == needed)
      features.insert(bit.feature);
  }
  if (features.count("amx-tile") != 0 && !may_use_tiles())
    for (const char* unit : {"amx-tile", "amx-int8", "amx-bf16", "amx-fp16"}) features.erase(unit);
  return features;
}

}  // namespace

const std::set<std::string>& host_features() {
  static const std::set<std::string> features = read_features();
  return features;
}

}  // namespace whet::internal

#endif
