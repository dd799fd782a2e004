#include "host.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>

#include "failure.hpp"
#include "processor.hpp"

namespace whet::internal {
namespace {

// Where fields lie: e_phoff and e_phentsize of the header, of a program header p_offset and p_filesz.
struct ElfLayout {
  std::size_t word, table, entries, begin, length;
};

// By EI_CLASS: 32 and 64 bit.
const std::map<char, ElfLayout> kElfClasses = {{1, {4, 28, 42, 4, 16}}, {2, {8, 32, 54, 8, 32}}};
// e_machine of the ELF header, by architecture.
const std::map<std::string, std::uint64_t> kElfMachines = {{"x86_64", 62}, {"aarch64", 183}, {"arm", 40}};
constexpr char kLittleEndian = 1;

struct Elf {
  std::uint64_t machine;
  // The least size in bytes that its headers state.
  std::uint64_t end;
};

std::uint64_t number_at(const std::string& library, std::uint64_t at, std::size_t bytes) {
  if (bytes > library.size() || at > library.size() - bytes) throw Malformed("its headers are cut off");
  std::uint64_t value = 0;
  for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(library[at + i]);
  return value;
}

std::uint64_t added(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) throw Malformed("its headers state impossible sizes");
  return sum;
}

Elf read_elf(const std::string& library) {
  const bool magic = library.size() >= 6 && library.compare(0, 4, "\x7f" "ELF") == 0;
  if (!magic || kElfClasses.count(library[4]) == 0 || library[5] != kLittleEndian)
    throw Malformed("wrong first bytes");
  const ElfLayout& layout = kElfClasses.at(library[4]);
  const std::uint64_t machine = number_at(library, 18, 2);
  const std::uint64_t table = number_at(library, layout.table, layout.word);
  const std::uint64_t size = number_at(library, layout.entries, 2), count = number_at(library, layout.entries + 2, 2);
  std::uint64_t end = added(table, size * count);
  for (std::uint64_t index = 0; index < count; ++index) {
    const std::uint64_t at = added(table, size * index);
    end = std::max(end, added(number_at(library, added(at, layout.begin), layout.word),
                              number_at(library, added(at, layout.length), layout.word)));
  }
  return {machine, end};
}

}  // namespace

void check_host(const TargetSpec& target, const std::string& source) {
  if (target.arch != host_arch() || target.os != host_os())
    throw Failure(WHET_OTHER_DEVICE,
                  text_of(source, " was compiled for ", printable(target.arch), " ", printable(target.os), " (target ", in_quotes(target.name),
                          "); this device is ", host_arch(), " ", host_os(),
                          ". Compile the model again for this device"));
  std::string missing;
  const std::set<std::string> features(target.features.begin(), target.features.end());
  for (const std::string& feature : features)
    if (host_features().count(feature) == 0) missing += (missing.empty() ? "" : ", ") + feature;
  if (!missing.empty())
    throw Failure(WHET_OTHER_DEVICE,
                  text_of(source, " was compiled for a processor with ", missing, " (target ", in_quotes(target.name),
                          "), which this one has not. Compile the model again for this device or for a plainer target"));
}

void check_library(const std::string& library, const TargetSpec& target, const std::string& source) {
  const auto expected = kElfMachines.find(target.arch);
  if (expected == kElfMachines.end()) return;
  Elf elf{};
  try {
    elf = read_elf(library);
  } catch (const Malformed& error) {
    throw Failure(WHET_DAMAGED, text_of(source, " is damaged: its library is not an ELF file (", error.what(),
                                        "). Save the bundle again"));
  }
  if (elf.machine != expected->second)
    throw Failure(WHET_DAMAGED, text_of(source, " says that it is for ", target.arch,
                                        ", but its library is for another machine (ELF ", elf.machine,
                                        "). Save the bundle again"));
  if (elf.end > library.size())
    throw Failure(WHET_DAMAGED, text_of(source, " is damaged: its library has ", library.size(),
                                        " bytes and should have ", elf.end, ". Save the bundle again"));
}

}  // namespace whet::internal
