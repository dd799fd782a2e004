// Features of ARM processors: the auxiliary vector of Linux. /proc/cpuinfo would be the host's under emulation.
#include "processor.hpp"

#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))

#include <sys/auxv.h>

namespace whet::internal {
namespace {

struct Bit {
  unsigned long word;
  int number;
  const char* feature;
};

#if defined(__aarch64__)
// arch/arm64/include/uapi/asm/hwcap.h
constexpr Bit kBits[] = {
    {AT_HWCAP, 0, "fp-armv8"},     {AT_HWCAP, 1, "neon"},      {AT_HWCAP, 3, "aes"},
    {AT_HWCAP, 6, "sha2"},         {AT_HWCAP, 7, "crc"},       {AT_HWCAP, 8, "lse"},
    {AT_HWCAP, 10, "fullfp16"},    {AT_HWCAP, 12, "rdm"},      {AT_HWCAP, 13, "jsconv"},
    {AT_HWCAP, 14, "complxnum"},   {AT_HWCAP, 15, "rcpc"},     {AT_HWCAP, 17, "sha3"},
    {AT_HWCAP, 19, "sm4"},         {AT_HWCAP, 20, "dotprod"},  {AT_HWCAP, 22, "sve"},
    {AT_HWCAP, 23, "fp16fml"},     {AT_HWCAP2, 1, "sve2"},     {AT_HWCAP2, 2, "sve2-aes"},
    {AT_HWCAP2, 4, "sve2-bitperm"}, {AT_HWCAP2, 5, "sve2-sha3"}, {AT_HWCAP2, 6, "sve2-sm4"},
    {AT_HWCAP2, 10, "f32mm"},      {AT_HWCAP2, 11, "f64mm"},   {AT_HWCAP2, 13, "i8mm"},
    {AT_HWCAP2, 14, "bf16"},       {AT_HWCAP2, 23, "sme"},     {AT_HWCAP2, 37, "sme2"},
};
#else
// arch/arm/include/uapi/asm/hwcap.h
constexpr Bit kBits[] = {
    {AT_HWCAP, 6, "vfp2"},      {AT_HWCAP, 12, "neon"},  {AT_HWCAP, 13, "vfp3"},    {AT_HWCAP, 16, "vfp4"},
    {AT_HWCAP, 17, "hwdiv-arm"}, {AT_HWCAP, 18, "hwdiv"}, {AT_HWCAP, 22, "fullfp16"}, {AT_HWCAP, 24, "dotprod"},
    {AT_HWCAP, 26, "bf16"},     {AT_HWCAP, 27, "i8mm"},  {AT_HWCAP2, 0, "aes"},     {AT_HWCAP2, 3, "sha2"},
    {AT_HWCAP2, 4, "crc"},
};
#endif

std::set<std::string> read_features() {
  std::set<std::string> features;
  for (const Bit& bit : kBits)
    if ((getauxval(bit.word) >> bit.number & 1) != 0) features.insert(bit.feature);
  return features;
}

}  // namespace

const std::set<std::string>& host_features() {
  static const std::set<std::string> features = read_features();
  return features;
}

}  // namespace whet::internal

#endif
