#include "program.hpp"

#include <cstring>
#include <set>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/error.h>

#include "binding.hpp"
#include "bundle.hpp"
#include "executor.hpp"
#include "failure.hpp"
#include "memory.hpp"

namespace whet::internal {
namespace {

constexpr DLDevice kCpu = {kDLCPU, 0};
// AllocatorType::kPooled: freed memory is kept for the next call.
constexpr int kPooled = 2;

// Memory that a tensor holds on to, or that its caller keeps alive during the call.
struct Memory {
  Bytes owned;
  void* data;

  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

DLDataType type_of(const Element& element) {
  return {element.dlpack_code, static_cast<std::uint8_t>(element.bytes * 8), 1};
}

Tensor over(Bytes owned, void* data, const std::int64_t* shape, std::size_t rank, DLDataType type) {
  return Tensor::FromNDAlloc(Memory{std::move(owned), data}, tvm::ffi::ShapeView(shape, rank), type, kCpu);
}

std::size_t size_of(const Tensor& tensor) {
  return tvm::ffi::GetDataSize(*tensor.GetDLTensorPtr());
}

Tensor copied(const void* data, std::size_t size, const std::int64_t* shape, std::size_t rank, DLDataType type) {
  Bytes memory = aligned_bytes(size);
  if (size != 0) std::memcpy(memory.get(), data, size);
  void* const place = memory.get();
  return over(std::move(memory), place, shape, rank, type);
}

Tensor copy_of(const Tensor& tensor) {
  const DLTensor* found = tensor.GetDLTensorPtr();
  return copied(found->data, size_of(tensor), found->shape, static_cast<std::size_t>(found->ndim), found->dtype);
}

Tensor of_weight(const RawTensor& raw) {
  return over(raw.data, raw.data.get(), raw.shape.data(), raw.shape.size(), type_of(*raw.element));
}

// Used where it lies, or copied to where compiled code can load whole vectors.
Tensor of_input(const whet_tensor& given, const Element& element) {
  std::uint64_t bytes = 0;
  if (!bytes_of({given.shape, given.shape + given.rank}, element.bytes, bytes))
    throw Failure(WHET_BAD_INPUT, "an input is larger than any memory");
  if (bytes == 0 || !is_aligned(given.data))
    return copied(given.data, static_cast<std::size_t>(bytes), given.shape, given.rank, type_of(element));
  return over({}, const_cast<void*>(given.data), given.shape, given.rank, type_of(element));
}

// Code may return an argument as it is (a reshaped weight, an input kept as state): the caller's memory must not become
// the model's, nor the model's the caller's.
class Sharing {
 public:
  void take(const Tensors& tensors) {
    for (const Tensor& tensor : tensors)
      if (size_of(tensor) != 0) taken_.insert(tensor.data_ptr());
  }

  // The tensor, or a copy where its memory is taken already; its memory is taken from then on.
  Tensor own(const Tensor& tensor) {
    if (size_of(tensor) == 0 || taken_.insert(tensor.data_ptr()).second) return tensor;
    Tensor copy = copy_of(tensor);
    taken_.insert(copy.data_ptr());
    return copy;
  }

 private:
  std::set<const void*> taken_;
};

tvm::ffi::Function function_of(const tvm::ffi::Module& module, const char* name) {
  return module->GetFunction(name).value();
}

}  // namespace

std::shared_ptr<Program> Program::load(const std::string& path, int threads, const Access& access) {
  return std::shared_ptr<Program>(new Program(path, threads, access));
}

Program::Program(const std::string& path, int threads, const Access& access) {
  Bundle bundle = read_bundle(path, access);
  manifest_ = std::move(bundle.manifest);
  if (manifest_.target.device != "cpu")
    throw Failure(WHET_OTHER_DEVICE, text_of(path, " was compiled for ", manifest_.target.device,
                                             "; the C++ runtime runs code for processors. Load it in Python, or "
                                             "compile the model for this processor"));
  start_executor(threads);
  file_ = std::make_unique<LibraryFile>(bundle.library, path);
  library_ = load_library(*file_, path);
  if (!(*library_)->GetFunction("vm_load_executable").has_value())
    throw Failure(WHET_CANNOT_LOAD,
                  text_of("cannot load the code of ", path, ": it has no vm_load_executable. Save the bundle again"));
  execute([&] {
    try {
      machine_ = function_of(*library_, "vm_load_executable")().cast<tvm::ffi::Module>();
      function_of(*machine_, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooled);
      main_ = function_of(*machine_, "main");
    } catch (const std::exception& error) {
      throw Failure(WHET_CANNOT_LOAD, text_of("cannot load the code of ", path, ": ", error.what(),
                                              ". Compile the model for this version of the runtime"));
    }
  });
  for (const std::string& key : manifest_.weights) weights_.push_back(of_weight(bundle.weights.at(key)));
  for (const StateSpec& item : manifest_.state) initial_state_.push_back(of_weight(bundle.weights.at(item.weight)));
}

Program::~Program() = default;

Tensors Program::run(const whet_tensor* inputs, std::size_t count, Tensors& state) {
  check_inputs(manifest_, inputs, count);
  Tensors given;
  for (std::size_t i = 0; i < count; ++i) given.push_back(of_input(inputs[i], *manifest_.inputs[i].element));
  Tensors results;
  execute([&] { results = call(given, state); });
  const std::size_t outputs = manifest_.outputs.size();
  if (results.size() != outputs + state.size())
    throw Failure(WHET_RUN_FAILED, text_of("the compiled code returned ", results.size(),
                                           " tensors; its manifest says ", outputs, " outputs and ", state.size(),
                                           " states"));
  Sharing sharing;
  sharing.take(given);
  Tensors next;
  for (std::size_t i = outputs; i < results.size(); ++i) next.push_back(sharing.own(results[i]));
  sharing.take(weights_);
  sharing.take(initial_state_);
  sharing.take(state);
  results.resize(outputs);
  for (Tensor& tensor : results) tensor = sharing.own(tensor);
  state = std::move(next);
  return results;
}

Tensors Program::call(const Tensors& inputs, const Tensors& state) {
  std::vector<tvm::ffi::AnyView> arguments;
  arguments.reserve(inputs.size() + state.size() + weights_.size());
  for (const Tensors* tensors : {&inputs, &state, static_cast<const Tensors*>(&weights_)})
    for (const Tensor& tensor : *tensors) arguments.emplace_back(tensor);
  tvm::ffi::Any result;
  try {
    main_.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    if (const auto single = result.as<Tensor>()) return {*single};
    Tensors found;
    for (const tvm::ffi::Any& item : result.cast<tvm::ffi::Array<tvm::ffi::Any>>()) found.push_back(item.cast<Tensor>());
    return found;
  } catch (const tvm::ffi::Error& error) {
    throw Failure(WHET_RUN_FAILED, text_of("the compiled code failed: ", std::string(error.message())));
  }
}

Tensors Session::run(const whet_tensor* inputs, std::size_t count) {
  if (program_->initial_state().empty()) {
    Tensors none;
    return program_->run(inputs, count, none);
  }
  // The next call's state is this call's result: calls of one session cannot overlap.
  const std::lock_guard lock(mutex_);
  return program_->run(inputs, count, state_);
}

void Session::reset() {
  const std::lock_guard lock(mutex_);
  state_ = program_->initial_state();
}

Tensors Session::state() {
  const std::lock_guard lock(mutex_);
  return state_;
}

}  // namespace whet::internal
