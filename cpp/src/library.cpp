#include "library.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <tvm/ffi/error.h>

#include "failure.hpp"

namespace whet::internal {
namespace {

bool write_all(int descriptor, const std::string& data) {
  for (std::size_t done = 0; done < data.size();) {
    const ssize_t count = write(descriptor, data.data() + done, data.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<std::size_t>(count);
  }
  return true;
}

std::string path_of(int descriptor) { return "/proc/self/fd/" + std::to_string(descriptor); }

// The system's loader takes two files of one name for one library, and a library may stay loaded after it is closed.
bool is_taken(const std::string& path) {
  void* const handle = dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (handle != nullptr) dlclose(handle);
  return handle != nullptr;
}

}  // namespace

LibraryFile::LibraryFile(const std::string& library, const std::string& source) {
  if (!in_memory(library)) in_folder(library, source);
}

LibraryFile::~LibraryFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (folder_.empty()) return;
  unlink(path_.c_str());
  rmdir(folder_.c_str());
}

// Memory that is sealed: what was verified is what runs. False where this system has no such files (before Linux 3.17,
// without /proc) or runs no code in them.
bool LibraryFile::in_memory(const std::string& library) {
  descriptor_ = memfd_create("whet", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor_ < 0) return false;
  const bool whole = write_all(descriptor_, library);
  const int seals = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
  const bool sealed = whole && fcntl(descriptor_, F_ADD_SEALS, seals) == 0;
  while (sealed && is_taken(path_of(descriptor_))) {
    const int another = fcntl(descriptor_, F_DUPFD_CLOEXEC, descriptor_ + 1);
    if (another < 0) break;
    close(descriptor_);
    descriptor_ = another;
  }
  path_ = path_of(descriptor_);
  void* const page = sealed ? mmap(nullptr, 1, PROT_READ | PROT_EXEC, MAP_PRIVATE, descriptor_, 0) : MAP_FAILED;
  const bool usable = page != MAP_FAILED && access(path_.c_str(), R_OK) == 0;
  if (page != MAP_FAILED) munmap(page, 1);
  if (usable) return true;
  close(descriptor_);
  descriptor_ = -1;
  return false;
}

void LibraryFile::in_folder(const std::string& library, const std::string& source) {
  const char* given = std::getenv("TMPDIR");
  const std::string parent = given != nullptr && *given != '\0' ? given : "/tmp";
  std::string folder = parent + "/whet-XXXXXX";
  const bool made = mkdtemp(folder.data()) != nullptr;
  if (made) {
    folder_ = folder;
    path_ = folder + "/lib.so";
    const int file = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    const bool whole = file >= 0 && write_all(file, library);
    if (file >= 0 && close(file) == 0 && whole) return;
  }
  const std::string reason = std::strerror(errno);
  if (made) {
    unlink(path_.c_str());
    rmdir(folder_.c_str());
  }
  throw Failure(WHET_CANNOT_LOAD, text_of("cannot load ", source, ": its library could not be unpacked in ", parent,
                                          " (", reason, "). Name a folder with more space in TMPDIR"));
}

tvm::ffi::Module load_library(const LibraryFile& file, const std::string& source) {
  try {
    // By the name of the loader: a file in memory has no extension to tell it by.
    const auto loader = tvm::ffi::Function::GetGlobalRequired("ffi.Module.load_from_file.so");
    return loader(file.path(), "so").cast<tvm::ffi::Module>();
  } catch (const tvm::ffi::Error& error) {
    throw Failure(WHET_CANNOT_LOAD,
                  text_of("cannot load the code of ", source, ": ", std::string(error.message()),
                          ". If a library is missing or too old, compile the model for this system; if the folder "
                          "may not hold programs (noexec), name another one in TMPDIR"));
  }
}

}  // namespace whet::internal
