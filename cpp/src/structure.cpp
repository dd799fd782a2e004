#include "structure.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "failure.hpp"

namespace whet::internal {
namespace {

constexpr int kDeepest = 100;

// Fields of each kind of structure beside "kind".
const std::map<std::string, std::set<std::string>>& fields_of_kinds() {
  static const std::map<std::string, std::set<std::string>> table = {
      {"leaf", {"index"}},
      {"none", {}},
      {"constant", {"value"}},
      {"tuple", {"items"}},
      {"list", {"items"}},
      {"dict", {"keys", "items"}},
      {"namedtuple", {"name", "fields", "items"}},
      {"dataclass", {"name", "fields", "items"}},
  };
  return table;
}

// Python's, which cannot be names of fields.
const std::set<std::string>& keywords() {
  static const std::set<std::string> table = {
      "False", "None",   "True",  "and",    "as",   "assert", "async",  "await",    "break",  "class", "continue", "def",
      "del",   "elif",   "else",  "except", "finally", "for", "from",   "global",   "if",     "import", "in",      "is",
      "lambda", "nonlocal", "not", "or",    "pass", "raise",  "return", "try",      "while",  "with",  "yield"};
  return table;
}

bool is_name(const Json& value) {
  if (!value.is(Json::kText)) return false;
  const std::string& name = value.text;
  if (name.empty() || name[0] == '_' || (name[0] >= '0' && name[0] <= '9') || keywords().count(name) != 0) return false;
  return std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return c >= 128 || c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  });
}

void check_names(const Json& spec, const std::string& kind) {
  const bool keyed = spec.fields.count("keys") != 0;
  if (!keyed && spec.fields.count("fields") == 0) return;
  const Json& names = spec[keyed ? "keys" : "fields"];
  const std::size_t count = spec["items"].items.size();
  if (!names.is(Json::kList)) throw Malformed(text_of("the items of a ", kind, " structure are not a list"));
  if (names.items.size() != count)
    throw Malformed(text_of("a ", kind, " structure has ", names.items.size(), " names for ", count, " items"));
  const auto begin = names.items.begin(), end = names.items.end();
  if (keyed && !std::all_of(begin, end, [](const Json& name) { return name.is_scalar(); }))
    throw Malformed(text_of("a dict structure has the keys ", names.shown()));
  if (!keyed && !(is_name(spec["name"]) && std::all_of(begin, end, is_name)))
    throw Malformed(text_of("a ", kind, " structure has the names ", spec["name"].shown(), ", ", names.shown()));
}

void check(const Json& spec, std::vector<std::uint64_t>& indices, int depth) {
  if (depth > kDeepest) throw Malformed("a structure is nested too deeply");
  if (!spec.is(Json::kTable)) throw Malformed(text_of("a structure must be an object, not ", spec.shown()));
  const std::string& kind = spec["kind"].text;
  if (!spec["kind"].is(Json::kText) || fields_of_kinds().count(kind) == 0)
    throw Malformed(text_of("unknown kind of structure ", spec["kind"].shown()));
  std::set<std::string> fields;
  for (const auto& [name, value] : spec.fields) fields.insert(name);
  fields.erase("kind");
  if (fields != fields_of_kinds().at(kind)) throw Malformed(text_of("a ", kind, " structure has other fields"));
  if (kind == "leaf") {
    const Json& index = spec["index"];
    if (!index.is(Json::kSize)) throw Malformed(text_of("a leaf has the index ", index.shown()));
    indices.push_back(index.size);
  }
  if (kind == "constant" && !spec["value"].is_scalar())
    throw Malformed(text_of("a constant of a structure is ", spec["value"].shown()));
  if (fields.count("items") == 0) return;
  if (!spec["items"].is(Json::kList)) throw Malformed(text_of("the items of a ", kind, " structure are not a list"));
  check_names(spec, kind);
  for (const Json& item : spec["items"].items) check(item, indices, depth + 1);
}

}  // namespace

void check_structure(const Json& spec, std::size_t leaves) {
  std::vector<std::uint64_t> indices;
  check(spec, indices, 0);
  std::sort(indices.begin(), indices.end());
  bool whole = indices.size() == leaves;
  for (std::size_t i = 0; whole && i < leaves; ++i) whole = indices[i] == i;
  if (!whole) throw Malformed(text_of("a structure of ", leaves, " leaves has other leaf indices"));
}

}  // namespace whet::internal
