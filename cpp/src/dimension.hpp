// Symbolic dimensions: integer expressions such as "2*s0 + 1", parsed and evaluated.
//
//     sum     := product (("+" | "-") product)*
//     product := unary (("*" | "//" | "%") unary)*
//     unary   := "-" unary | integer | symbol | ("max" | "min") "(" sum ("," sum)* ")" | "(" sum ")"
//
// `//` and `%` round towards minus infinity.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace whet::internal {

using Bindings = std::map<std::string, std::int64_t>;

struct DimensionNode;

class Expression {
 public:
  // Throws Malformed that shows the text and the place of the mistake.
  static Expression parse(const std::string& text);

  const std::string& text() const { return text_; }
  const std::set<std::string>& symbols() const { return symbols_; }
  // Whether it is one symbol and nothing else.
  bool is_symbol() const { return symbols_.size() == 1 && *symbols_.begin() == text_; }
  // Nothing where it divides by zero or leaves 64 bits. All symbols must be bound.
  std::optional<std::int64_t> evaluate(const Bindings& bindings) const;
  // The one unbound symbol and what it must be for the expression to be `value`; nothing where no size does that, or
  // the expression is not linear in it.
  std::optional<std::pair<std::string, std::int64_t>> solve(std::int64_t value, const Bindings& bindings) const;

 private:
  std::string text_;
  std::set<std::string> symbols_;
  std::shared_ptr<const DimensionNode> root_;
};

}  // namespace whet::internal
