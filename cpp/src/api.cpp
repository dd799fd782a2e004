// The C API: exceptions become codes and messages here.
#include "whet/whet.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "executor.hpp"
#include "failure.hpp"
#include "processor.hpp"
#include "program.hpp"

using whet::internal::Access;
using whet::internal::Element;
using whet::internal::Failure;
using whet::internal::Program;
using whet::internal::Session;
using whet::internal::Tensors;
using whet::internal::TensorSpec;
using whet::internal::text_of;

struct whet_session {
  Session session;
};

struct whet_module {
  Session own;
};

struct whet_result {
  // Longer than its tensors, whose memory may be the program's.
  std::shared_ptr<Program> program;
  Tensors tensors;
};

namespace {

std::string& last_error() {
  static thread_local std::string message;
  return message;
}

whet_status failed(whet_status status, const char* message) {
  try {
    last_error() = message;
  } catch (const std::bad_alloc&) {
    // A shorter message needs no memory.
    last_error().clear();
  }
  return status;
}

// The status of `body`: no exception passes through C.
template <typename Body>
whet_status guarded(Body body) noexcept {
  try {
    body();
    return WHET_OK;
  } catch (const Failure& failure) {
    return failed(failure.status, failure.what());
  } catch (const std::bad_alloc&) {
    return failed(WHET_NO_MEMORY, "there is not enough memory");
  } catch (const std::exception& error) {
    return failed(WHET_RUN_FAILED, error.what());
  }
}

void require(const void* pointer, const char* name) {
  if (pointer == nullptr) throw Failure(WHET_BAD_INPUT, text_of(name, " is NULL"));
}

void describe(const std::vector<TensorSpec>& specs, std::size_t index, whet_spec* spec) {
  require(spec, "spec");
  if (index >= specs.size()) throw Failure(WHET_BAD_INPUT, text_of("index ", index, " of ", specs.size()));
  const TensorSpec& found = specs[index];
  *spec = {found.name.c_str(), found.element->dtype, found.sizes.size(), found.sizes.data(), found.text.c_str()};
}

void run(Session& session, const whet_tensor* inputs, std::size_t count, whet_result** result) {
  require(result, "result");
  auto made = std::make_unique<whet_result>();
  made->program = session.program();
  made->tensors = session.run(inputs, count);
  *result = made.release();
}

const char* const kStatusNames[] = {"ok",        "cannot read", "damaged",   "newer format", "other device",
                                    "cannot load", "bad input",   "no memory", "run failed",   "not trusted",
                                    "wrong key",   "no cryptography"};

}  // namespace

const char* whet_last_error(void) { return last_error().c_str(); }

const char* whet_status_name(whet_status status) {
  const auto index = static_cast<std::size_t>(status);
  return index < sizeof(kStatusNames) / sizeof(*kStatusNames) ? kStatusNames[index] : "unknown";
}

const char* whet_dtype_name(whet_dtype dtype) {
  const Element* found = whet::internal::element(dtype);
  return found == nullptr ? nullptr : found->longname;
}

size_t whet_dtype_size(whet_dtype dtype) {
  const Element* found = whet::internal::element(dtype);
  return found == nullptr ? 0 : found->bytes;
}

const char* whet_processor_features(void) {
  static const std::string text = [] {
    std::string joined;
    for (const std::string& name : whet::internal::host_features()) joined += (joined.empty() ? "" : ",") + name;
    return joined;
  }();
  return text.c_str();
}

whet_status whet_verify(const char* path) { return whet_verify_with(path, nullptr); }

whet_status whet_verify_with(const char* path, const whet_keys* keys) {
  return guarded([&] {
    require(path, "path");
    whet::internal::read_bundle(path, Access::of(keys));
  });
}

int whet_has_cryptography(void) { return whet::internal::has_crypto() ? 1 : 0; }

whet_status whet_read_public_key(const char* path, uint8_t* key) {
  return guarded([&] {
    require(path, "path");
    require(key, "key");
    const whet::internal::Key found = whet::internal::read_public_key(path);
    std::copy(found.begin(), found.end(), key);
  });
}

whet_status whet_read_key(const char* path, uint8_t* key) {
  return guarded([&] {
    require(path, "path");
    require(key, "key");
    const whet::internal::Key found = whet::internal::read_secret_key(path);
    std::copy(found.begin(), found.end(), key);
  });
}

whet_status whet_open(const char* path, int threads, whet_module** module) {
  return whet_open_with(path, threads, nullptr, module);
}

whet_status whet_open_with(const char* path, int threads, const whet_keys* keys, whet_module** module) {
  return guarded([&] {
    require(path, "path");
    require(module, "module");
    const std::shared_ptr<Program> program = Program::load(path, threads, Access::of(keys));
    *module = new whet_module{{program, program->initial_state()}};
  });
}

void whet_close(whet_module* module) { delete module; }

whet_status whet_set_threads(int threads) {
  return guarded([&] { whet::internal::resize_executor(threads); });
}

int whet_threads(void) { return whet::internal::executor_threads(); }

const char* whet_target_name(const whet_module* module) {
  return module == nullptr ? nullptr : module->own.program()->manifest().target.name.c_str();
}

size_t whet_input_count(const whet_module* module) {
  return module == nullptr ? 0 : module->own.program()->manifest().inputs.size();
}

size_t whet_output_count(const whet_module* module) {
  return module == nullptr ? 0 : module->own.program()->manifest().outputs.size();
}

whet_status whet_input(const whet_module* module, size_t index, whet_spec* spec) {
  return guarded([&] {
    require(module, "module");
    describe(module->own.program()->manifest().inputs, index, spec);
  });
}

whet_status whet_output(const whet_module* module, size_t index, whet_spec* spec) {
  return guarded([&] {
    require(module, "module");
    describe(module->own.program()->manifest().outputs, index, spec);
  });
}

whet_status whet_run(whet_module* module, const whet_tensor* inputs, size_t count, whet_result** result) {
  return guarded([&] {
    require(module, "module");
    run(module->own, inputs, count, result);
  });
}

whet_status whet_reset(whet_module* module) {
  return guarded([&] {
    require(module, "module");
    module->own.reset();
  });
}

whet_status whet_session_open(whet_module* module, whet_session** session) {
  return guarded([&] {
    require(module, "module");
    require(session, "session");
    const auto& program = module->own.program();
    *session = new whet_session{{program, program->initial_state()}};
  });
}

whet_status whet_session_copy(whet_session* session, whet_session** copy) {
  return guarded([&] {
    require(session, "session");
    require(copy, "copy");
    *copy = new whet_session{{session->session.program(), session->session.state()}};
  });
}

whet_status whet_session_run(whet_session* session, const whet_tensor* inputs, size_t count, whet_result** result) {
  return guarded([&] {
    require(session, "session");
    run(session->session, inputs, count, result);
  });
}

whet_status whet_session_reset(whet_session* session) {
  return guarded([&] {
    require(session, "session");
    session->session.reset();
  });
}

void whet_session_close(whet_session* session) { delete session; }

size_t whet_result_count(const whet_result* result) { return result == nullptr ? 0 : result->tensors.size(); }

whet_status whet_result_get(const whet_result* result, size_t index, whet_tensor* tensor) {
  return guarded([&] {
    require(result, "result");
    require(tensor, "tensor");
    if (index >= result->tensors.size())
      throw Failure(WHET_BAD_INPUT, text_of("index ", index, " of ", result->tensors.size()));
    const DLTensor& found = *result->tensors[index].GetDLTensorPtr();
    const Element* type = whet::internal::element_of_dlpack(found.dtype.code, found.dtype.bits, found.dtype.lanes);
    if (type == nullptr) throw Failure(WHET_RUN_FAILED, text_of("output ", index, " is of an unknown type"));
    *tensor = {static_cast<const char*>(found.data) + found.byte_offset, type->dtype,
               static_cast<size_t>(found.ndim), found.shape};
  });
}

void whet_result_free(whet_result* result) { delete result; }
