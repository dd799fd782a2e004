// Files, and what is read like one, at given places.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace whet::internal {

class Readable {
 public:
  Readable() = default;
  virtual ~Readable() = default;
  Readable(const Readable&) = delete;
  Readable& operator=(const Readable&) = delete;

  // Fill `place` from file[offset : offset + count]. Throws Malformed where the file ends before.
  virtual void read(std::uint64_t offset, void* place, std::size_t count) const = 0;
  std::string read(std::uint64_t offset, std::size_t count) const;
};

class File : public Readable {
 public:
  using Readable::read;
  // Throws Failure(WHET_CANNOT_READ): no such file, no permission, no regular file.
  explicit File(const std::string& path);
  ~File() override;

  std::uint64_t size() const { return size_; }
  void read(std::uint64_t offset, void* place, std::size_t count) const override;

 private:
  int descriptor_;
  std::uint64_t size_ = 0;
};

// Bytes that somebody else keeps.
class MemoryFile : public Readable {
 public:
  using Readable::read;
  explicit MemoryFile(const std::string& data) : data_(data) {}

  void read(std::uint64_t offset, void* place, std::size_t count) const override;

 private:
  const std::string& data_;
};

}  // namespace whet::internal
