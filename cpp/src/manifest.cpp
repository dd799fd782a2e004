#include "manifest.hpp"

#include <algorithm>
#include <set>
#include <tuple>

#include "failure.hpp"
#include "structure.hpp"

namespace whet::internal {
namespace {

const std::set<std::string> kDevices = {"cpu", "cuda"};
constexpr std::size_t kHexDigits = 64;

bool is_feature(const std::string& name) {
  const auto fits = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  };
  const bool begins = !name.empty() && fits(name[0]) && name[0] != '.' && name[0] != '_' && name[0] != '-';
  return begins && std::all_of(name.begin(), name.end(), fits);
}

const Element* read_element(const Reader& reader) {
  const std::string name = reader.text("dtype");
  const Element* found = element_named(name);
  if (found == nullptr) throw Malformed(text_of("unknown element type ", in_quotes(name)));
  return found;
}

TensorSpec read_tensor(const Reader& reader) {
  TensorSpec tensor;
  tensor.name = reader.text("name");
  std::string shape;
  for (const Json& item : reader.list("shape")) {
    if (item.is(Json::kText)) {
      const Expression expression = Expression::parse(item.text);
      shape += (shape.empty() ? "" : ", ") + expression.text();
      tensor.shape.emplace_back(expression);
      tensor.sizes.push_back(-1);
      continue;
    }
    if (!item.is(Json::kSize)) throw Malformed(text_of(in_quotes(tensor.name), " has the dimension ", item.shown()));
    shape += (shape.empty() ? "" : ", ") + std::to_string(item.size);
    tensor.sizes.push_back(static_cast<std::int64_t>(item.size));
    tensor.shape.emplace_back(tensor.sizes.back());
  }
  tensor.element = read_element(reader);
  tensor.type = text_of(tensor.element->longname, "[", shape, "]");
  tensor.text = text_of(printable(tensor.name), ": ", tensor.type);
  return tensor;
}

StateSpec read_state(const Reader& reader) {
  StateSpec state;
  state.shape = reader.numbers("shape");
  state.name = reader.text("name");
  state.element = read_element(reader);
  state.weight = reader.text("weight");
  return state;
}

Range read_range(const Reader& reader) {
  const Range range = {reader.integer("min"), reader.optional_integer("max"), reader.integer("multiple_of")};
  if (range.multiple_of < 1 || (range.max && *range.max < range.min))
    throw Malformed(text_of("impossible range of a dimension: ", range.text()));
  return range;
}

// The structures of the pair (positional arguments, keyword arguments) and of the outputs.
void check_structures(const Reader& top, const Manifest& manifest) {
  const Json& inputs = top.object("input_structure").json();
  check_structure(inputs, manifest.inputs.size());
  check_structure(top.object("output_structure").json(), manifest.outputs.size());
  const std::vector<Json>& items = inputs["items"].items;
  const bool pair = items.size() == 2 && items[0]["kind"].text == "tuple" && items[1]["kind"].text == "dict";
  if (!pair)
    throw Malformed("input_structure is not the structure of (tuple of arguments, dict of keyword arguments)");
  const std::size_t named = top.texts("parameters").size(), positional = items[0]["items"].items.size();
  if (named != 0 && named != positional)
    throw Malformed(text_of("parameters names ", named, " of ", positional, " positional arguments"));
}

void check_symbols(const Manifest& manifest) {
  for (const TensorSpec& input : manifest.inputs)
    for (const Dim& dim : input.shape) {
      if (!std::holds_alternative<Expression>(dim)) continue;
      for (const std::string& symbol : std::get<Expression>(dim).symbols())
        if (manifest.dimensions.count(symbol) == 0) throw Malformed(text_of("dimensions says nothing of ", symbol));
    }
}

// The calls of kernels are there to be shown, and nothing here shows them. But a file that the Python runtime calls
// damaged is damaged here, too.
void check_kernels(const Reader& top) {
  // Bundles of before have none.
  if (top.json().fields.count("kernels") == 0) return;
  std::int64_t index = 0;
  for (const Reader& call : top.objects("kernels")) {
    for (const char* name : {"name", "module", "precision", "schedule"}) call.text(name);
    call.texts("operations");
    for (const std::int64_t number : call.numbers("reads"))
      if (number >= index) throw Malformed(text_of("kernels[", index, "] reads what no earlier kernel makes: ", number));
    ++index;
  }
}

// The format version comes first: a newer format may change every other field.
Manifest read(const Reader& top, const std::string& source) {
  const std::int64_t version = top.integer("format_version");
  if (version > WHET_FORMAT_VERSION)
    throw Failure(WHET_NEWER_FORMAT,
                  text_of(source, " has format version ", version, "; this whet reads up to ", WHET_FORMAT_VERSION,
                          ". Upgrade whet on this device, or save the bundle with an older one"));
  Manifest manifest;
  manifest.target = read_target(top.object("target"));
  for (const Reader& item : top.objects("inputs")) manifest.inputs.push_back(read_tensor(item));
  for (const Reader& item : top.objects("outputs")) manifest.outputs.push_back(read_tensor(item));
  for (const Reader& item : top.objects("state")) manifest.state.push_back(read_state(item));
  for (const auto& [name, item] : top.table("dimensions")) manifest.dimensions.emplace(name, read_range(item));
  manifest.weights = top.texts("weights");
  top.object("versions");
  for (const auto& [name, item] : top.table("members")) manifest.members.emplace(name, read_member(item));
  check_kernels(top);
  check_structures(top, manifest);
  check_symbols(manifest);
  return manifest;
}

}  // namespace

bool TargetSpec::operator==(const TargetSpec& other) const {
  const auto fields = [](const TargetSpec& target) {
    return std::tie(target.name, target.triple, target.arch, target.os, target.features, target.device,
                    target.device_arch);
  };
  return fields(*this) == fields(other);
}

TargetSpec read_target(const Reader& reader) {
  TargetSpec target;
  target.name = reader.text("name");
  target.triple = reader.text("triple");
  target.arch = reader.text("arch");
  target.os = reader.text("os");
  target.features = reader.texts("features");
  target.device = reader.text("device");
  target.device_arch = reader.optional_text("device_arch");
  if (kDevices.count(target.device) == 0)
    throw Malformed(text_of("target.device is ", in_quotes(target.device), "; known are cpu, cuda"));
  for (const std::string& feature : target.features)
    if (!is_feature(feature))
      throw Malformed(
          text_of("target.features has ", in_quotes(feature), "; a feature is LLVM's name without + or -"));
  return target;
}

Member read_member(const Reader& reader) {
  Member member;
  member.sha256 = reader.text("sha256");
  const bool hex = member.sha256.size() == kHexDigits &&
                   member.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!hex) throw Malformed(text_of(reader.path(), "sha256 is ", in_quotes(member.sha256)));
  member.size = static_cast<std::uint64_t>(reader.integer("size"));
  const auto expanded = reader.optional_integer("expanded");
  if (expanded) member.expanded = static_cast<std::uint64_t>(*expanded);
  return member;
}

bool Range::holds(std::int64_t size) const {
  return min <= size && (!max || size <= *max) && size % multiple_of == 0;
}

std::string Range::text() const {
  const std::string limit = max ? text_of(min, "..", *max) : text_of("at least ", min);
  return multiple_of == 1 ? limit : text_of(limit, ", a multiple of ", multiple_of);
}

Manifest parse_manifest(const std::string& text, const std::string& source) {
  const Json value = parse_json(text);
  try {
    return read(Reader(value, ""), source);
  } catch (const Malformed& error) {
    throw Failure(WHET_DAMAGED, text_of(source, " is not a manifest that whet wrote: ", error.what(),
                                        ". Save the bundle again"));
  }
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() == 1 ? "" : ", ") + std::to_string(size);
  return text + "]";
}

}  // namespace whet::internal
