// What a bundle says of itself. The manifest comes out of files that may be damaged or hostile: every field is checked
// here, once, and the rest of the runtime works with typed values.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "dimension.hpp"
#include "element.hpp"
#include "reader.hpp"

namespace whet::internal {

// The device that a bundle was compiled for; features by LLVM's names.
struct TargetSpec {
  std::string name, triple, arch, os, device;
  std::vector<std::string> features;
  std::optional<std::string> device_arch;

  bool operator==(const TargetSpec& other) const;
};

using Dim = std::variant<std::int64_t, Expression>;

struct TensorSpec {
  std::string name;
  std::vector<Dim> shape;
  const Element* element = nullptr;
  // -1 where a size is an expression.
  std::vector<std::int64_t> sizes;
  // "float32[s0, 8]", and the same with the name before it.
  std::string type, text;
};

// A state that is kept between calls; `weight` is the key of its initial value in the weights.
struct StateSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  const Element* element = nullptr;
  std::string weight;
};

// What sizes a symbol may take: min..max in multiples of `multiple_of`.
struct Range {
  std::int64_t min = 1;
  std::optional<std::int64_t> max;
  std::int64_t multiple_of = 1;

  bool holds(std::int64_t size) const;
  std::string text() const;
};

struct Member {
  std::string sha256;
  std::uint64_t size = 0;
  std::optional<std::uint64_t> expanded;
};

struct Manifest {
  TargetSpec target;
  std::vector<TensorSpec> inputs, outputs;
  std::vector<StateSpec> state;
  std::map<std::string, Range> dimensions;
  // Keys of the tensors that `main` takes after inputs and state, in that order.
  std::vector<std::string> weights;
  std::map<std::string, Member> members;
};

// `source` is the file that the text comes out of. Throws Malformed where it is no JSON, Failure(WHET_NEWER_FORMAT)
// for a newer format, Failure(WHET_DAMAGED) that names the field for everything else.
Manifest parse_manifest(const std::string& text, const std::string& source);

// Parts of it that other manifests have too. Throw Malformed.
TargetSpec read_target(const Reader& reader);
Member read_member(const Reader& reader);

// Used wherever a shape is shown: "[2, 8]".
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace whet::internal
