// A file that is read at given places.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace whet::internal {

class File {
 public:
  // Throws Failure(WHET_CANNOT_READ): no such file, no permission, no regular file.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  std::uint64_t size() const { return size_; }
  // Fill `place` from file[offset : offset + count]. Throws Malformed where the file ends before.
  void read(std::uint64_t offset, void* place, std::size_t count) const;
  std::string read(std::uint64_t offset, std::size_t count) const;

 private:
  int descriptor_;
  std::uint64_t size_ = 0;
};

}  // namespace whet::internal
