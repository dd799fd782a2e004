// Files and parts of them, and what is read like one, at given places.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace whet::internal {

class Readable {
 public:
  virtual ~Readable() = default;

  virtual std::uint64_t size() const = 0;
  // Fill `place` from file[offset : offset + count]. Throws Malformed where the file ends before.
  virtual void read(std::uint64_t offset, void* place, std::size_t count) const = 0;
  std::string read(std::uint64_t offset, std::size_t count) const;

 protected:
  Readable() = default;
  Readable(const Readable&) = default;
  Readable& operator=(const Readable&) = default;

  // Throws Malformed where the file ends before.
  void check(std::uint64_t offset, std::uint64_t count) const;
};

class File : public Readable {
 public:
  using Readable::read;
  // Throws Failure(WHET_CANNOT_READ): no such file, no permission, no regular file.
  explicit File(const std::string& path);

  std::uint64_t size() const override { return size_; }
  void read(std::uint64_t offset, void* place, std::size_t count) const override;
  // file[offset : offset + size] as a file of its own, over the same open file. Throws Malformed where it ends before.
  File part(std::uint64_t offset, std::uint64_t size) const;

 private:
  class Descriptor;

  std::shared_ptr<const Descriptor> descriptor_;
  std::uint64_t begin_ = 0;
  std::uint64_t size_ = 0;
};

// Bytes that somebody else keeps.
class MemoryFile : public Readable {
 public:
  using Readable::read;
  explicit MemoryFile(const std::string& data) : data_(data) {}

  std::uint64_t size() const override { return data_.size(); }
  void read(std::uint64_t offset, void* place, std::size_t count) const override;

 private:
  const std::string& data_;
};

}  // namespace whet::internal
