#include "file.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failure.hpp"

namespace whet::internal {
namespace {

std::string reason(int code) {
  switch (code) {
    case ENOENT:
      return "there is no such file";
    case EACCES:
    case EPERM:
      return "no permission: choose a file that this user may read";
    case ENOTDIR:
      return "a part of the path is a file, not a folder: choose another path";
    default:
      return std::strerror(code);
  }
}

}  // namespace

// An open file that is closed with the last of its parts.
class File::Descriptor {
 public:
  // Not to wait for the other end of a pipe; without effect on regular files.
  explicit Descriptor(const std::string& path) : number_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (number_ < 0) throw Failure(WHET_CANNOT_READ, text_of("cannot read ", path, ": ", reason(errno)));
  }
  ~Descriptor() { close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }

 private:
  int number_;
};

File::File(const std::string& path) : descriptor_(std::make_shared<const Descriptor>(path)) {
  struct stat status {};
  if (fstat(descriptor_->number(), &status) != 0 || !S_ISREG(status.st_mode))
    throw Failure(WHET_CANNOT_READ, text_of("cannot read ", path, ": it is no regular file"));
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void Readable::check(std::uint64_t offset, std::uint64_t count) const {
  if (offset > size() || count > size() - offset) throw Malformed("ends too early");
}

void File::read(std::uint64_t offset, void* place, std::size_t count) const {
  check(offset, count);
  auto* next = static_cast<char*>(place);
  std::uint64_t at = begin_ + offset;
  while (count > 0) {
    const ssize_t done = pread(descriptor_->number(), next, count, static_cast<off_t>(at));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) throw Malformed(text_of("cannot be read: ", std::strerror(errno)));
    // Another process has cut it off since.
    if (done == 0) throw Malformed("ends too early");
    next += done;
    at += static_cast<std::uint64_t>(done);
    count -= static_cast<std::size_t>(done);
  }
}

void MemoryFile::read(std::uint64_t offset, void* place, std::size_t count) const {
  check(offset, count);
  if (count != 0) std::memcpy(place, data_.data() + offset, count);
}

std::string Readable::read(std::uint64_t offset, std::size_t count) const {
  // Before the memory is there: a size that the file cannot have asks for none.
  check(offset, count);
  std::string data(count, '\0');
  read(offset, data.data(), count);
  return data;
}

File File::part(std::uint64_t offset, std::uint64_t size) const {
  check(offset, size);
  File made(*this);
  made.begin_ += offset;
  made.size_ = size;
  return made;
}

}  // namespace whet::internal
