#include "json.hpp"

#include <nlohmann/json.hpp>
#include <string_view>

#include "failure.hpp"

namespace whet::internal {
namespace {

constexpr std::size_t kDeepest = 500;
constexpr std::size_t kMostSizes = 64;
constexpr std::uint64_t kSizeLimit = std::uint64_t{1} << 62;
constexpr std::size_t kLongestShown = 60;

// Python writes numbers that JSON has no words for (a model may be compiled for the constant infinity). Their values
// mean nothing here, so each becomes another number that is no size, of the same length.
std::string plain_json(std::string text) {
  constexpr std::string_view words[] = {"Infinity", "NaN"};
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    in_string = c == '"';
    if (c != 'I' && c != 'N') continue;
    for (const std::string_view word : words)
      if (text.compare(i, word.size(), word) == 0)
        text.replace(i, word.size(), "0.5" + std::string(word.size() - 3, ' '));
  }
  return text;
}

// Builds values out of the parser's events.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Json root;
  std::string problem;

  bool null() override { return add({}); }
  bool boolean(bool value) override {
    Json made;
    made.kind = Json::kBool;
    made.size = value ? 1 : 0;
    return add(std::move(made));
  }
  bool number_integer(number_integer_t value) override {
    return value >= 0 ? number_unsigned(static_cast<number_unsigned_t>(value)) : number(std::to_string(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value >= kSizeLimit) return number(std::to_string(value));
    Json made;
    made.kind = Json::kSize;
    made.size = value;
    return add(std::move(made));
  }
  bool number_float(number_float_t, const string_t& text) override { return number(text); }
  bool string(string_t& text) override {
    Json made;
    made.kind = Json::kText;
    made.text = std::move(text);
    return add(std::move(made));
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::kTable); }
  bool key(string_t& name) override {
    key_ = std::move(name);
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json::kList); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    problem = error.what();
    return false;
  }

 private:
  bool number(const std::string& text) {
    Json made;
    made.kind = Json::kNumber;
    made.text = text;
    return add(std::move(made));
  }

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  // The value where it belongs; of two fields of one name the last counts.
  Json& place(Json value) {
    if (open_.empty()) return root = std::move(value);
    Json& parent = *open_.back();
    if (parent.is(Json::kTable)) return parent.fields[key_] = std::move(value);
    parent.items.push_back(std::move(value));
    return parent.items.back();
  }

  bool open(Json::Kind kind) {
    if (open_.size() == kDeepest) {
      problem = "nested too deeply";
      return false;
    }
    Json made;
    made.kind = kind;
    // A list does not grow while something in it is open, so the pointer stays good.
    open_.push_back(&place(std::move(made)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  std::vector<Json*> open_;
  std::string key_;
};

void show(const Json& value, std::string& out) {
  if (out.size() >= kLongestShown) return;
  switch (value.kind) {
    case Json::kNull:
      out += "null";
      return;
    case Json::kBool:
      out += value.size != 0 ? "true" : "false";
      return;
    case Json::kSize:
      out += std::to_string(value.size);
      return;
    case Json::kNumber:
      out += value.text;
      return;
    case Json::kText:
      out += in_quotes(value.text);
      return;
    case Json::kList:
      out += '[';
      for (const Json& item : value.items) {
        if (out.back() != '[') out += ", ";
        show(item, out);
      }
      out += ']';
      return;
    case Json::kTable:
      out += '{';
      for (const auto& [name, item] : value.fields) {
        if (out.back() != '{') out += ", ";
        out += in_quotes(name) + ": ";
        show(item, out);
      }
      out += '}';
      return;
  }
}

}  // namespace

const Json& Json::operator[](const std::string& name) const {
  static const Json missing;
  const auto found = fields.find(name);
  return found == fields.end() ? missing : found->second;
}

std::optional<std::vector<std::uint64_t>> Json::sizes() const {
  if (!is(kList) || items.size() > kMostSizes) return std::nullopt;
  std::vector<std::uint64_t> found;
  for (const Json& item : items) {
    if (!item.is(kSize)) return std::nullopt;
    found.push_back(item.size);
  }
  return found;
}

std::string Json::shown() const {
  std::string out;
  show(*this, out);
  return printable(std::string_view(out).substr(0, kLongestShown));
}

Json parse_json(const std::string& text) {
  // The parser takes this byte for the end of the text.
  if (text.find('\0') != std::string::npos) throw Malformed("is not JSON (it has a zero byte)");
  Builder builder;
  if (!nlohmann::json::sax_parse(plain_json(text), &builder))
    throw Malformed(text_of("is not JSON (", printable(builder.problem), ")"));
  return std::move(builder.root);
}

}  // namespace whet::internal
