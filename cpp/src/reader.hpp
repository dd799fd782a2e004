// The fields of a JSON object by name and type: what comes out of files may be damaged or hostile.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "failure.hpp"
#include "json.hpp"

namespace whet::internal {

// A JSON object whose fields are taken out by name and type; Malformed names the path of a wrong one.
class Reader {
 public:
  Reader(const Json& value, std::string path) : value_(value), path_(std::move(path)) {
    if (!value.is(Json::kTable)) throw Malformed(text_of(path_.empty() ? "the manifest" : path_, " is not an object"));
  }

  const std::string& path() const { return path_; }

  std::int64_t integer(const char* name) const {
    const Json& found = get(name);
    if (!found.is(Json::kSize)) throw wrong(name);
    return static_cast<std::int64_t>(found.size);
  }

  std::optional<std::int64_t> optional_integer(const char* name) const {
    return get(name).is(Json::kNull) ? std::nullopt : std::optional(integer(name));
  }

  std::string text(const char* name) const {
    const Json& found = get(name);
    if (!found.is(Json::kText)) throw wrong(name);
    return found.text;
  }

  std::optional<std::string> optional_text(const char* name) const {
    return get(name).is(Json::kNull) ? std::nullopt : std::optional(text(name));
  }

  const std::vector<Json>& list(const char* name) const {
    const Json& found = get(name);
    if (!found.is(Json::kList)) throw wrong(name);
    return found.items;
  }

  std::vector<std::string> texts(const char* name) const {
    std::vector<std::string> found;
    for (const Json& item : list(name)) {
      if (!item.is(Json::kText)) throw Malformed(text_of(path_, name, " has an item of another type"));
      found.push_back(item.text);
    }
    return found;
  }

  std::vector<std::int64_t> numbers(const char* name) const {
    std::vector<std::int64_t> found;
    for (const Json& item : list(name)) {
      if (!item.is(Json::kSize)) throw Malformed(text_of(path_, name, " has an item of another type"));
      found.push_back(static_cast<std::int64_t>(item.size));
    }
    return found;
  }

  Reader object(const char* name) const {
    const Json& found = get(name);
    if (!found.is(Json::kTable)) throw wrong(name);
    return {found, text_of(path_, name, ".")};
  }

  std::vector<Reader> objects(const char* name) const {
    std::vector<Reader> found;
    for (const Json& item : list(name)) {
      if (!item.is(Json::kTable)) throw Malformed(text_of(path_, name, " has an item of another type"));
      found.emplace_back(item, text_of(path_, name, "[", found.size(), "]."));
    }
    return found;
  }

  std::map<std::string, Reader> table(const char* name) const {
    const Reader inside = object(name);
    std::map<std::string, Reader> found;
    for (const auto& [key, item] : inside.value_.fields)
      found.emplace(key, Reader(item, text_of(inside.path_, printable(key), ".")));
    return found;
  }

  const Json& json() const { return value_; }

 private:
  const Json& get(const char* name) const { return value_[name]; }

  Malformed wrong(const char* name) const { return Malformed(text_of(path_, name, " is ", get(name).shown())); }

  const Json& value_;
  std::string path_;
};

}  // namespace whet::internal
