#include "dimension.hpp"

#include <algorithm>
#include <limits>
#include <string_view>
#include <vector>

#include "failure.hpp"

namespace whet::internal {
namespace {

// An expression comes out of a file: without limits a hostile one could exhaust the stack or the clock.
constexpr std::size_t kLongest = 1000;
constexpr int kDeepest = 50;

using Value = std::optional<std::int64_t>;

Value floor_divided(std::int64_t a, std::int64_t b) {
  if (b == 0 || (b == -1 && a == std::numeric_limits<std::int64_t>::min())) return std::nullopt;
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

Value modulo(std::int64_t a, std::int64_t b) {
  if (b == 0) return std::nullopt;
  if (b == -1) return 0;
  const std::int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

template <bool (*Operation)(std::int64_t, std::int64_t, std::int64_t*)>
Value checked(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  return Operation(a, b, &result) ? std::nullopt : Value(result);
}

bool add(std::int64_t a, std::int64_t b, std::int64_t* out) { return __builtin_add_overflow(a, b, out); }
bool subtract(std::int64_t a, std::int64_t b, std::int64_t* out) { return __builtin_sub_overflow(a, b, out); }
bool multiply(std::int64_t a, std::int64_t b, std::int64_t* out) { return __builtin_mul_overflow(a, b, out); }
Value larger(std::int64_t a, std::int64_t b) { return std::max(a, b); }
Value smaller(std::int64_t a, std::int64_t b) { return std::min(a, b); }

using Combine = Value (*)(std::int64_t, std::int64_t);

const std::map<std::string_view, Combine>& sums() {
  static const std::map<std::string_view, Combine> table = {{"+", checked<add>}, {"-", checked<subtract>}};
  return table;
}
const std::map<std::string_view, Combine>& products() {
  static const std::map<std::string_view, Combine> table = {
      {"*", checked<multiply>}, {"//", floor_divided}, {"%", modulo}};
  return table;
}
const std::map<std::string_view, Combine>& calls() {
  static const std::map<std::string_view, Combine> table = {{"max", larger}, {"min", smaller}};
  return table;
}

}  // namespace

// A number, a symbol, or operations from the left over the terms: ((first op1 t1) op2 t2) ...
struct DimensionNode {
  std::int64_t number = 0;
  std::string symbol;
  std::vector<DimensionNode> terms;
  std::vector<Combine> operations;

  Value evaluate(const Bindings& bindings) const {
    if (!symbol.empty()) return bindings.at(symbol);
    if (terms.empty()) return number;
    Value value = terms.front().evaluate(bindings);
    for (std::size_t i = 1; value && i < terms.size(); ++i) {
      const Value term = terms[i].evaluate(bindings);
      value = term ? operations[i - 1](*value, *term) : std::nullopt;
    }
    return value;
  }
};

namespace {

struct Token {
  enum Kind { kNumber, kName, kSign } kind;
  std::string_view text;
  std::size_t column;
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::vector<Token> tokens_of(std::string_view text) {
  std::vector<Token> tokens;
  for (std::size_t i = 0; i < text.size();) {
    if (is_space(text[i])) {
      ++i;
      continue;
    }
    std::size_t end = i;
    Token::Kind kind = Token::kSign;
    if (is_digit(text[i])) {
      kind = Token::kNumber;
      while (end < text.size() && is_digit(text[end])) ++end;
    } else if (is_letter(text[i])) {
      kind = Token::kName;
      while (end < text.size() && (is_letter(text[end]) || is_digit(text[end]))) ++end;
    } else if (text.substr(i, 2) == "//") {
      end = i + 2;
    } else if (std::string_view("-+*%(),").find(text[i]) != std::string_view::npos) {
      end = i + 1;
    } else {
      throw Malformed(text_of("not a dimension: ", in_quotes(text), " at column ", i + 1));
    }
    tokens.push_back({kind, text.substr(i, end - i), i});
    i = end;
  }
  return tokens;
}

// Recursive descent over the tokens.
class Parser {
 public:
  Parser(std::string_view text, std::set<std::string>& symbols)
      : text_(text), tokens_(tokens_of(text)), symbols_(symbols) {}

  DimensionNode whole() {
    DimensionNode node = sum(0);
    if (next_ < tokens_.size()) throw error(text_of("unexpected ", in_quotes(peek())));
    return node;
  }

 private:
  std::string_view peek() const { return next_ < tokens_.size() ? tokens_[next_].text : std::string_view(); }

  Malformed error(const std::string& what) const {
    const std::size_t column = next_ < tokens_.size() ? tokens_[next_].column : text_.size();
    return Malformed(text_of("not a dimension: ", in_quotes(text_), ": ", what, " at column ", column + 1));
  }

  void take(std::string_view expected) {
    if (peek() != expected) throw error(text_of("expected ", in_quotes(expected)));
    ++next_;
  }

  DimensionNode sum(int depth) { return chain(sums(), &Parser::product, depth); }
  DimensionNode product(int depth) { return chain(products(), &Parser::unary, depth); }

  DimensionNode chain(const std::map<std::string_view, Combine>& signs, DimensionNode (Parser::*operand)(int),
                      int depth) {
    if (depth > kDeepest) throw error("nested too deeply");
    DimensionNode first = (this->*operand)(depth);
    if (signs.count(peek()) == 0) return first;
    DimensionNode node;
    node.terms.push_back(std::move(first));
    while (signs.count(peek()) != 0) {
      node.operations.push_back(signs.at(peek()));
      ++next_;
      node.terms.push_back((this->*operand)(depth));
    }
    return node;
  }

  DimensionNode unary(int depth) {
    if (depth > kDeepest) throw error("nested too deeply");
    if (next_ == tokens_.size()) throw error("unexpected end");
    const Token token = tokens_[next_];
    if (token.text == "-") {
      ++next_;
      DimensionNode node;
      node.terms.emplace_back();
      node.terms.push_back(unary(depth + 1));
      node.operations.push_back(checked<subtract>);
      return node;
    }
    if (token.text == "(") {
      ++next_;
      DimensionNode inner = sum(depth + 1);
      take(")");
      return inner;
    }
    if (token.kind == Token::kSign) throw error(text_of("unexpected ", in_quotes(token.text)));
    ++next_;
    if (token.kind == Token::kNumber) return number(token.text);
    return peek() == "(" ? call(token.text, depth) : symbol(token.text);
  }

  DimensionNode number(std::string_view digits) {
    DimensionNode node;
    for (const char digit : digits)
      if (__builtin_mul_overflow(node.number, 10, &node.number) ||
          __builtin_add_overflow(node.number, digit - '0', &node.number))
        throw error("a number beyond 64 bits");
    return node;
  }

  DimensionNode symbol(std::string_view name) {
    DimensionNode node;
    node.symbol = name;
    symbols_.insert(node.symbol);
    return node;
  }

  DimensionNode call(std::string_view name, int depth) {
    const auto function = calls().find(name);
    if (function == calls().end()) throw error(text_of("unknown function ", in_quotes(name)));
    take("(");
    DimensionNode node;
    node.terms.push_back(sum(depth + 1));
    while (peek() == ",") {
      ++next_;
      node.terms.push_back(sum(depth + 1));
      node.operations.push_back(function->second);
    }
    take(")");
    return node;
  }

  std::string_view text_;
  std::vector<Token> tokens_;
  std::set<std::string>& symbols_;
  std::size_t next_ = 0;
};

}  // namespace

Expression Expression::parse(const std::string& text) {
  if (text.size() > kLongest)
    throw Malformed(text_of("a dimension of ", text.size(), " characters is too long: ", in_quotes(text.substr(0, 40))));
  Expression found;
  found.text_ = text;
  found.root_ = std::make_shared<const DimensionNode>(Parser(found.text_, found.symbols_).whole());
  return found;
}

std::optional<std::int64_t> Expression::evaluate(const Bindings& bindings) const { return root_->evaluate(bindings); }

std::optional<std::pair<std::string, std::int64_t>> Expression::solve(std::int64_t value,
                                                                      const Bindings& bindings) const {
  std::string unknown;
  for (const std::string& symbol : symbols_) {
    if (bindings.count(symbol) != 0) continue;
    if (!unknown.empty()) return std::nullopt;
    unknown = symbol;
  }
  if (unknown.empty()) return std::nullopt;
  Bindings trial = bindings;
  trial[unknown] = 0;
  const Value at_zero = evaluate(trial);
  trial[unknown] = 1;
  const Value at_one = evaluate(trial);
  if (!at_zero || !at_one) return std::nullopt;
  const Value slope = checked<subtract>(*at_one, *at_zero), rise = checked<subtract>(value, *at_zero);
  if (!slope || !rise || *slope == 0 || modulo(*rise, *slope) != Value(0)) return std::nullopt;
  const Value solution = floor_divided(*rise, *slope);
  if (!solution) return std::nullopt;
  trial[unknown] = *solution;
  if (evaluate(trial) != Value(value)) return std::nullopt;
  return std::pair(unknown, *solution);
}

}  // namespace whet::internal
