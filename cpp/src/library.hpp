// The code of a bundle, loaded without a file that others could see or change.
#pragma once

#include <string>
#include <tvm/ffi/extra/module.h>

namespace whet::internal {

// A file in memory, or in a folder of its own that is closed to other users.
class LibraryFile {
 public:
  // Throws Failure(WHET_CANNOT_LOAD) where neither can be made.
  LibraryFile(const std::string& library, const std::string& source);
  ~LibraryFile();
  LibraryFile(const LibraryFile&) = delete;
  LibraryFile& operator=(const LibraryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  bool in_memory(const std::string& library);
  void in_folder(const std::string& library, const std::string& source);

  int descriptor_ = -1;
  std::string folder_, path_;
};

// Loads the module; the file must live as long. Throws Failure(WHET_CANNOT_LOAD) with what the system's loader said.
tvm::ffi::Module load_library(const LibraryFile& file, const std::string& source);

}  // namespace whet::internal
