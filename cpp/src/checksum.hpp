// The checksums of a bundle: SHA-256 (FIPS 180-4) of its members, CRC-32 (zip) of its manifest.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace whet::internal {

class Sha256 {
 public:
  void update(const void* data, std::size_t size);
  // Lower-case hexadecimal; call it once, at the end.
  std::string hex();

 private:
  void block(const std::uint8_t* data);

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> rest_{};
  std::size_t held_ = 0;
  std::uint64_t total_ = 0;
};

// In hexadecimal.
std::string hex_sha256(const std::string& data);

std::uint32_t crc32(const void* data, std::size_t size);

}  // namespace whet::internal
