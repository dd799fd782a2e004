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

File::File(const std::string& path)
    // Not to wait for the other end of a pipe; without effect on regular files.
    : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) throw Failure(WHET_CANNOT_READ, text_of("cannot read ", path, ": ", reason(errno)));
  struct stat status {};
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(descriptor_);
    throw Failure(WHET_CANNOT_READ, text_of("cannot read ", path, ": it is no regular file"));
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

File::~File() { close(descriptor_); }

void File::read(std::uint64_t offset, void* place, std::size_t count) const {
  auto* next = static_cast<char*>(place);
  while (count > 0) {
    const ssize_t done = pread(descriptor_, next, count, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) throw Malformed(text_of("cannot be read: ", std::strerror(errno)));
    if (done == 0) throw Malformed("ends too early");
    next += done;
    offset += static_cast<std::uint64_t>(done);
    count -= static_cast<std::size_t>(done);
  }
}

void MemoryFile::read(std::uint64_t offset, void* place, std::size_t count) const {
  if (offset > data_.size() || count > data_.size() - offset) throw Malformed("ends too early");
  if (count != 0) std::memcpy(place, data_.data() + offset, count);
}

std::string Readable::read(std::uint64_t offset, std::size_t count) const {
  std::string data(count, '\0');
  read(offset, data.data(), count);
  return data;
}

}  // namespace whet::internal
