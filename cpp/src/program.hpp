// Compiled code with its weights; sessions share it, and each keeps a state of its own.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <vector>

#include "keys.hpp"
#include "library.hpp"
#include "manifest.hpp"

namespace whet::internal {

using Tensor = tvm::ffi::Tensor;
using Tensors = std::vector<Tensor>;

class Program {
 public:
  // Read, check and load a bundle. Throws Failure.
  static std::shared_ptr<Program> load(const std::string& path, int threads, const Access& access);
  ~Program();

  const Manifest& manifest() const { return manifest_; }
  const Tensors& initial_state() const { return initial_state_; }
  // Outputs of one call; `state` becomes the new state. Calls from several threads take turns.
  Tensors run(const whet_tensor* inputs, std::size_t count, Tensors& state);

 private:
  Program(const std::string& path, int threads, const Access& access);
  Tensors call(const Tensors& inputs, const Tensors& state);

  Manifest manifest_;
  // In the order in which they need each other: the file must live longest.
  std::unique_ptr<LibraryFile> file_;
  std::optional<tvm::ffi::Module> library_, machine_;
  tvm::ffi::Function main_;
  Tensors weights_, initial_state_;
};

class Session {
 public:
  Session(std::shared_ptr<Program> program, Tensors state)
      : program_(std::move(program)), state_(std::move(state)) {}

  const std::shared_ptr<Program>& program() const { return program_; }
  Tensors run(const whet_tensor* inputs, std::size_t count);
  void reset();
  Tensors state();

 private:
  std::shared_ptr<Program> program_;
  std::mutex mutex_;
  Tensors state_;
};

}  // namespace whet::internal
