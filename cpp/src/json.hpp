// JSON as Whet writes it: values that are looked at, and never changed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace whet::internal {

// A value. Of numbers only sizes (0 .. 2^62 - 1) are known by what they are: nothing else has a meaning in a bundle.
struct Json {
  enum Kind { kNull, kBool, kSize, kNumber, kText, kList, kTable };

  Kind kind = kNull;
  std::uint64_t size = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> fields;

  bool is(Kind wanted) const { return kind == wanted; }
  bool is_scalar() const { return kind >= kBool && kind <= kText; }
  // The field of a table; null where there is none.
  const Json& operator[](const std::string& name) const;
  // The value as a list of at most 64 sizes, or nothing where it is none.
  std::optional<std::vector<std::uint64_t>> sizes() const;
  // At most 60 bytes of it, for error messages.
  std::string shown() const;
};

// Throws Malformed: no JSON, nested too deeply.
Json parse_json(const std::string& text);

}  // namespace whet::internal
