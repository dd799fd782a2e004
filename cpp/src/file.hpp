// A file that is read at given places, or a part of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace whet::internal {

class File {
 public:
  // Throws Failure(WHET_CANNOT_READ): no such file, no permission, no regular file.
  explicit File(const std::string& path);

  std::uint64_t size() const { return size_; }
  // Fill `place` from file[offset : offset + count]. Throws Malformed where the file ends before.
  void read(std::uint64_t offset, void* place, std::size_t count) const;
  std::string read(std::uint64_t offset, std::size_t count) const;
  // file[offset : offset + size] as a file of its own, over the same open file. Throws Malformed where it ends before.
  File part(std::uint64_t offset, std::uint64_t size) const;

 private:
  class Descriptor;

  void check(std::uint64_t offset, std::uint64_t count) const;

  std::shared_ptr<const Descriptor> descriptor_;
  std::uint64_t begin_ = 0;
  std::uint64_t size_ = 0;
};

}  // namespace whet::internal
