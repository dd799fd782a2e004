#include "binding.hpp"

#include <algorithm>
#include <set>

#include "failure.hpp"

namespace whet::internal {
namespace {

class Binder {
 public:
  Binder(const Manifest& manifest, const whet_tensor* inputs) : manifest_(manifest), inputs_(inputs) {}

  void check() {
    for (std::size_t i = 0; i < manifest_.inputs.size(); ++i) check_kind(i);
    // Plain symbols first: they are what expressions over them are checked against.
    each_dimension([this](std::size_t input, std::int64_t size, const Dim& dim) { bind(input, size, dim); });
    each_dimension([this](std::size_t input, std::int64_t size, const Dim& dim) { compute(input, size, dim); });
    for (const auto& [name, size] : bindings_) check_range(name, size);
  }

 private:
  template <typename Visit>
  void each_dimension(Visit visit) {
    for (std::size_t i = 0; i < manifest_.inputs.size(); ++i)
      for (std::size_t axis = 0; axis < inputs_[i].rank; ++axis)
        visit(i, inputs_[i].shape[axis], manifest_.inputs[i].shape[axis]);
  }

  void check_kind(std::size_t i) const {
    const TensorSpec& spec = manifest_.inputs[i];
    const whet_tensor& given = inputs_[i];
    if (given.rank != 0 && given.shape == nullptr)
      throw Failure(WHET_BAD_INPUT, text_of("input ", in_quotes(spec.name), " has no shape"));
    if (std::any_of(given.shape, given.shape + given.rank, [](std::int64_t size) { return size < 0; }))
      throw mismatch(i, ", and a size is negative");
    if (given.dtype != spec.element->dtype || given.rank != spec.shape.size()) throw mismatch(i, "");
    const bool empty = std::count(given.shape, given.shape + given.rank, 0) != 0;
    if (given.data == nullptr && !empty)
      throw Failure(WHET_BAD_INPUT, text_of("input ", in_quotes(spec.name), " has no data"));
  }

  void bind(std::size_t input, std::int64_t size, const Dim& dim) {
    if (std::holds_alternative<std::int64_t>(dim)) {
      if (std::get<std::int64_t>(dim) != size) throw mismatch(input, "");
      return;
    }
    const auto& expression = std::get<Expression>(dim);
    if (!expression.is_symbol()) return;
    const auto [bound, fresh] = bindings_.emplace(expression.text(), size);
    if (bound->second != size)
      throw mismatch(input, text_of(", and ", expression.text(), " is ", bound->second, " in another dimension"));
  }

  void compute(std::size_t input, std::int64_t size, const Dim& dim) {
    if (!std::holds_alternative<Expression>(dim)) return;
    const auto& expression = std::get<Expression>(dim);
    const auto unknown = std::count_if(expression.symbols().begin(), expression.symbols().end(),
                                       [this](const std::string& name) { return bindings_.count(name) == 0; });
    // Two unknowns in one size: any size may be right.
    if (unknown > 1) return;
    if (unknown == 1) {
      const auto solution = expression.solve(size, bindings_);
      if (!solution) throw mismatch(input, text_of(", and no size makes ", expression.text(), " equal to ", size));
      bindings_.insert(*solution);
      return;
    }
    const auto value = expression.evaluate(bindings_);
    if (!value) throw mismatch(input, text_of(", and ", expression.text(), " cannot be computed here"));
    if (*value != size) throw mismatch(input, text_of(", and ", expression.text(), " is ", *value, " here"));
  }

  void check_range(const std::string& name, std::int64_t size) const {
    const auto range = manifest_.dimensions.find(name);
    if (range == manifest_.dimensions.end() || range->second.holds(size)) return;
    for (std::size_t i = 0; i < manifest_.inputs.size(); ++i)
      if (symbols(i).count(name) != 0) throw mismatch(i, text_of(", and ", name, " = ", size, " is not allowed"));
  }

  std::set<std::string> symbols(std::size_t input) const {
    std::set<std::string> found;
    for (const Dim& dim : manifest_.inputs[input].shape)
      if (const auto* expression = std::get_if<Expression>(&dim))
        found.insert(expression->symbols().begin(), expression->symbols().end());
    return found;
  }

  Failure mismatch(std::size_t i, const std::string& why) const {
    const TensorSpec& spec = manifest_.inputs[i];
    const whet_tensor& given = inputs_[i];
    const Element* element_given = element(given.dtype);
    std::string ranges;
    for (const std::string& name : symbols(i))
      ranges += text_of(ranges.empty() ? " (" : "; ", name, ": ", manifest_.dimensions.at(name).text());
    return {WHET_BAD_INPUT,
            text_of("input ", in_quotes(spec.name), " is ",
                    element_given == nullptr ? "of no type" : element_given->longname,
                    shape_text({given.shape, given.shape + given.rank}), "; the model wants ", spec.type, ranges,
                    ranges.empty() ? "" : ")", why)};
  }

  const Manifest& manifest_;
  const whet_tensor* inputs_;
  Bindings bindings_;
};

}  // namespace

void check_inputs(const Manifest& manifest, const whet_tensor* inputs, std::size_t count) {
  if (count != manifest.inputs.size()) {
    std::string names;
    for (const TensorSpec& spec : manifest.inputs) names += (names.empty() ? "" : ", ") + spec.name;
    throw Failure(WHET_BAD_INPUT, text_of(count, " inputs were given; the model takes ", manifest.inputs.size(), ": (",
                                          names, ")"));
  }
  if (count != 0 && inputs == nullptr) throw Failure(WHET_BAD_INPUT, "the inputs are NULL");
  Binder(manifest, inputs).check();
}

}  // namespace whet::internal
