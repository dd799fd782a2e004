#include "fat.hpp"

#include "failure.hpp"
#include "host.hpp"
#include "reader.hpp"

namespace whet::internal {
namespace {

constexpr std::size_t kMostVariants = 16;

std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (std::size_t number = 0; number < kMostVariants; ++number) names.push_back(text_of(number, ".whet"));
  return names;
}

// The format version comes first: a newer format may change every other field.
std::vector<TargetSpec> read_index(const Reader& top, const std::set<std::string>& members,
                                   const std::string& source) {
  const std::int64_t version = top.integer("format_version");
  if (version > WHET_FAT_FORMAT_VERSION)
    throw Failure(WHET_NEWER_FORMAT,
                  text_of(source, " has format version ", version, "; this whet reads up to ",
                          WHET_FAT_FORMAT_VERSION, ". Upgrade whet on this device"));
  if (version != WHET_FAT_FORMAT_VERSION) throw Malformed(text_of("format_version is ", version));
  const std::vector<Reader> variants = top.objects("variants");
  if (variants.size() != members.size())
    throw Malformed(text_of("it names ", variants.size(), " variants of ", members.size()));
  std::vector<TargetSpec> targets;
  for (const Reader& variant : variants) {
    const std::string name = variant.text("member"), &expected = kVariants[targets.size()];
    if (name != expected || members.count(name) == 0)
      throw Malformed(text_of("it names ", in_quotes(name), " in place of ", expected));
    targets.push_back(read_target(variant.object("target")));
  }
  return targets;
}

}  // namespace

const std::vector<std::string> kVariants = variant_names();

std::vector<TargetSpec> parse_index(const std::string& text, const std::set<std::string>& members,
                                    const std::string& source) {
  const Json value = parse_json(text);
  try {
    return read_index(Reader(value, ""), members, source);
  } catch (const Malformed& error) {
    throw Failure(WHET_DAMAGED, text_of(source, " is damaged: its index is not what it should be (", error.what(),
                                        "). Copy or save it again"));
  }
}

std::size_t best_variant(const std::vector<TargetSpec>& targets, const std::string& source) {
  std::string reasons;
  std::size_t best = targets.size();
  for (std::size_t number = 0; number < targets.size(); ++number) {
    try {
      check_host(targets[number], text_of("variant ", in_quotes(targets[number].name)));
    } catch (const Failure& failure) {
      reasons += text_of("\n  ", failure.what());
      continue;
    }
    // Of two that use as much the first.
    if (best == targets.size() || targets[number].features.size() > targets[best].features.size()) best = number;
  }
  if (best == targets.size())
    throw Failure(WHET_OTHER_DEVICE, text_of(source, " has nothing that runs on this device:", reasons));
  return best;
}

}  // namespace whet::internal
