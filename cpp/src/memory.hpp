// Memory whose beginning is a multiple of 64 bytes: compiled code may load whole vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "element.hpp"

namespace whet::internal {

constexpr std::size_t kAlignment = 64;

constexpr std::uint64_t padded(std::uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

inline bool is_aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0; }

using Bytes = std::shared_ptr<std::uint8_t>;

// Uninitialized. Throws std::bad_alloc.
inline Bytes aligned_bytes(std::uint64_t size) {
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  if (size > most) throw std::bad_alloc();
  void* const data = std::aligned_alloc(kAlignment, static_cast<std::size_t>(padded(size == 0 ? 1 : size)));
  if (data == nullptr) throw std::bad_alloc();
  return {static_cast<std::uint8_t*>(data), [](std::uint8_t* bytes) { std::free(bytes); }};
}

// A weight: its bits in a block of memory that it may share with others.
struct RawTensor {
  const Element* element = nullptr;
  std::vector<std::int64_t> shape;
  Bytes data;
};

// The product of sizes and the size of an element; false where it is 2^62 or more.
inline bool bytes_of(const std::vector<std::uint64_t>& shape, std::uint64_t itemsize, std::uint64_t& bytes) {
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  for (const std::uint64_t size : shape)
    if (size == 0) {
      bytes = 0;
      return true;
    }
  bytes = itemsize;
  for (const std::uint64_t size : shape)
    if (__builtin_mul_overflow(bytes, size, &bytes) || bytes >= most) return false;
  return true;
}

}  // namespace whet::internal
