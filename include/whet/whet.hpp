// Run a Whet bundle from C++: the C API of whet.h with ownership and exceptions.
//
//     whet::Module model("model.whet");
//     std::vector<float> pixels(3 * 224 * 224);
//     whet::Result outputs = model({whet::Tensor::of(pixels, {1, 3, 224, 224})});
//     const float* scores = outputs[0].data<float>();
#ifndef WHET_WHET_HPP_
#define WHET_WHET_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "whet/whet.h"

namespace whet {

// What went wrong, in words, and its code.
class Error : public std::runtime_error {
 public:
  explicit Error(whet_status status) : std::runtime_error(whet_last_error()), status_(status) {}
  whet_status status() const { return status_; }

 private:
  whet_status status_;
};

inline void check(whet_status status) {
  if (status != WHET_OK) throw Error(status);
}

using Shape = std::vector<std::int64_t>;

// The element type of a C++ type. float16 and bfloat16 have none: give their bits and name the type.
template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<double> { static constexpr whet_dtype value = WHET_F64; };
template <>
struct DTypeOf<float> { static constexpr whet_dtype value = WHET_F32; };
template <>
struct DTypeOf<std::int64_t> { static constexpr whet_dtype value = WHET_I64; };
template <>
struct DTypeOf<std::int32_t> { static constexpr whet_dtype value = WHET_I32; };
template <>
struct DTypeOf<std::int16_t> { static constexpr whet_dtype value = WHET_I16; };
template <>
struct DTypeOf<std::int8_t> { static constexpr whet_dtype value = WHET_I8; };
template <>
struct DTypeOf<std::uint64_t> { static constexpr whet_dtype value = WHET_U64; };
template <>
struct DTypeOf<std::uint32_t> { static constexpr whet_dtype value = WHET_U32; };
template <>
struct DTypeOf<std::uint16_t> { static constexpr whet_dtype value = WHET_U16; };
template <>
struct DTypeOf<std::uint8_t> { static constexpr whet_dtype value = WHET_U8; };
template <>
struct DTypeOf<bool> { static constexpr whet_dtype value = WHET_BOOL; };

// A view of a tensor in memory that somebody else keeps, row-major without gaps.
class Tensor {
 public:
  Tensor(const void* data, whet_dtype dtype, Shape shape) : data_(data), dtype_(dtype), shape_(std::move(shape)) {}

  // Over the elements of a vector. Throws std::invalid_argument where it has not as many as the shape.
  template <typename T>
  static Tensor of(const std::vector<T>& elements, Shape shape) {
    Tensor tensor(elements.data(), DTypeOf<T>::value, std::move(shape));
    if (tensor.size() != elements.size()) throw std::invalid_argument("the vector has not as many elements as the shape");
    return tensor;
  }

  const void* raw() const { return data_; }
  whet_dtype dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  // Number of elements.
  std::size_t size() const {
    std::size_t count = 1;
    for (const std::int64_t extent : shape_) count *= static_cast<std::size_t>(extent);
    return count;
  }
  std::size_t bytes() const { return size() * whet_dtype_size(dtype_); }

  // Throws std::invalid_argument for another type than the tensor's.
  template <typename T>
  const T* data() const {
    if (DTypeOf<T>::value != dtype_)
      throw std::invalid_argument(std::string("the tensor is ") + whet_dtype_name(dtype_));
    return static_cast<const T*>(data_);
  }

  whet_tensor view() const { return {data_, dtype_, shape_.size(), shape_.data()}; }

 private:
  const void* data_;
  whet_dtype dtype_;
  Shape shape_;
};

// Name, type and shape of an input or output; -1 for a size that differs from call to call.
struct Spec {
  std::string name;
  whet_dtype dtype;
  Shape shape;
  // All of it in words: "x: float32[s0, 8]".
  std::string text;
};

// The outputs of one call; views of it live as long as it does.
class Result {
 public:
  explicit Result(whet_result* result) : result_(result, whet_result_free) {}

  std::size_t size() const { return whet_result_count(result_.get()); }
  Tensor operator[](std::size_t index) const {
    whet_tensor found{};
    check(whet_result_get(result_.get(), index, &found));
    return {found.data, found.dtype, Shape(found.shape, found.shape + found.rank)};
  }

 private:
  std::unique_ptr<whet_result, decltype(&whet_result_free)> result_;
};

namespace detail {

template <typename Run>
Result run(const std::vector<Tensor>& inputs, Run function) {
  std::vector<whet_tensor> views;
  views.reserve(inputs.size());
  for (const Tensor& input : inputs) views.push_back(input.view());
  whet_result* result = nullptr;
  check(function(views.data(), views.size(), &result));
  return Result(result);
}

template <typename Get>
std::vector<Spec> specs(std::size_t count, Get get) {
  std::vector<Spec> found;
  for (std::size_t i = 0; i < count; ++i) {
    whet_spec spec{};
    check(get(i, &spec));
    found.push_back({spec.name, spec.dtype, Shape(spec.shape, spec.shape + spec.rank), spec.text});
  }
  return found;
}

}  // namespace detail

// Calls that share one state (caches, running statistics).
class Session {
 public:
  explicit Session(whet_session* session) : session_(session, whet_session_close) {}

  Result operator()(const std::vector<Tensor>& inputs) {
    return detail::run(inputs, [this](const whet_tensor* views, std::size_t count, whet_result** result) {
      return whet_session_run(session_.get(), views, count, result);
    });
  }
  void reset() { check(whet_session_reset(session_.get())); }
  // Another session that goes on from the present state of this one.
  Session copy() {
    whet_session* other = nullptr;
    check(whet_session_copy(session_.get(), &other));
    return Session(other);
  }

 private:
  std::unique_ptr<whet_session, decltype(&whet_session_close)> session_;
};

// Keys that bundles are opened with: files, or bytes that come from elsewhere (a secure element).
class Keys {
 public:
  using Bytes = std::array<std::uint8_t, WHET_KEY_BYTES>;

  // One of the trusted keys must have signed the bundle: a PEM file with an Ed25519 public key, or its 32 bytes.
  Keys& trust(const std::string& path) {
    Bytes key{};
    check(whet_read_public_key(path.c_str(), key.data()));
    return trust(key);
  }
  Keys& trust(const Bytes& key) {
    trusted_.insert(trusted_.end(), key.begin(), key.end());
    return *this;
  }
  // What the bundle is encrypted with: a file of 32 bytes, raw or hexadecimal, or these bytes.
  Keys& decrypt_with(const std::string& path) {
    check(whet_read_key(path.c_str(), key_.data()));
    has_key_ = true;
    return *this;
  }
  Keys& decrypt_with(const Bytes& key) {
    key_ = key;
    has_key_ = true;
    return *this;
  }

  whet_keys view() const {
    return {trusted_.empty() ? nullptr : trusted_.data(), trusted_.size() / WHET_KEY_BYTES,
            has_key_ ? key_.data() : nullptr};
  }

 private:
  std::vector<std::uint8_t> trusted_;
  Bytes key_{};
  bool has_key_ = false;
};

// A loaded model. Calls of the module itself share one session; `session()` makes independent ones.
class Module {
 public:
  // `threads`: cores that all compiled code of this process uses; 0: those it has, at first the physical ones.
  explicit Module(const std::string& path, int threads = 0, const Keys& keys = {}) : module_(nullptr, whet_close) {
    const whet_keys given = keys.view();
    whet_module* opened = nullptr;
    check(whet_open_with(path.c_str(), threads, &given, &opened));
    module_.reset(opened);
  }

  std::string target() const { return whet_target_name(module_.get()); }
  std::vector<Spec> inputs() const {
    return detail::specs(whet_input_count(module_.get()),
                         [this](std::size_t i, whet_spec* spec) { return whet_input(module_.get(), i, spec); });
  }
  std::vector<Spec> outputs() const {
    return detail::specs(whet_output_count(module_.get()),
                         [this](std::size_t i, whet_spec* spec) { return whet_output(module_.get(), i, spec); });
  }

  Result operator()(const std::vector<Tensor>& inputs) {
    return detail::run(inputs, [this](const whet_tensor* views, std::size_t count, whet_result** result) {
      return whet_run(module_.get(), views, count, result);
    });
  }
  void reset() { check(whet_reset(module_.get())); }
  Session session() {
    whet_session* made = nullptr;
    check(whet_session_open(module_.get(), &made));
    return Session(made);
  }

 private:
  std::unique_ptr<whet_module, decltype(&whet_close)> module_;
};

}  // namespace whet

#endif  // WHET_WHET_HPP_
