#include "container.hpp"

#include <array>
#include <limits>
#include <tuple>

#include "failure.hpp"

namespace whet::internal {
namespace {

constexpr std::size_t kLocal = 30, kCentral = 46, kEnd = 22, kEnd64 = 56, kLocator64 = 20;
constexpr std::uint64_t kInZip64 = 0xffffffff;
constexpr std::size_t kLongestName = 255;
// Version 2.0, and 4.5 for zip64; made on DOS or Unix.
const std::set<std::uint64_t> kVersions = {20, 45};
const std::set<std::uint64_t> kSystems = {0, 3};
// 0: a plain old file; 0x800: the name is UTF-8. Anything else means encryption or sizes that come after the data.
const std::set<std::uint64_t> kFlags = {0, 0x800};
// Permissions and type of a regular file, as archivers write them; a link or a folder is not among them.
const std::set<std::uint64_t> kModes = {0, 0600, 0644, 0664, 0755, 0100600, 0100644, 0100664, 0100755};

// Takes little-endian numbers from a record, one after the other.
class Fields {
 public:
  explicit Fields(std::string_view record) : rest_(record) {}

  std::uint64_t number(std::size_t bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(rest_[i]);
    rest_.remove_prefix(bytes);
    return value;
  }
  std::uint64_t half() { return number(2); }
  std::uint64_t word() { return number(4); }
  std::uint64_t wide() { return number(8); }
  std::string_view bytes(std::size_t count) {
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

 private:
  std::string_view rest_;
};

std::string record(const File& file, std::uint64_t offset, std::uint64_t size) {
  if (offset > file.size() || size > file.size() - offset) throw Malformed("it ends too early");
  return file.read(offset, static_cast<std::size_t>(size));
}

// What both headers of a member state alike.
using Common = std::array<std::uint64_t, 5>;  // flags, method, time, date, crc

struct Extent {
  std::uint64_t size, packed, header_at;
};

// Replace the fields that say "in the zip64 extra field" by those; no other extra field is accepted.
Extent with_zip64(std::string_view extra, Extent extent) {
  const std::array<std::uint64_t*, 3> values = {&extent.size, &extent.packed, &extent.header_at};
  std::size_t missing = 0;
  for (const auto* value : values) missing += *value == kInZip64 ? 1 : 0;
  if (extra.empty() && missing == 0) return extent;
  if (extra.size() != 4 + 8 * missing) throw Malformed("a member has an extra field");
  Fields fields(extra);
  if (fields.half() != 1 || fields.half() != 8 * missing) throw Malformed("a member has an extra field");
  for (auto* value : values)
    if (*value == kInZip64) *value = fields.wide();
  return extent;
}

struct Directory {
  std::uint64_t start, size, count;
};

Directory directory64(const std::string& text, std::string_view locator, std::uint64_t at) {
  Fields end(text), where(locator);
  const bool signature = end.bytes(4) == std::string_view("PK\x06\x06", 4);
  const std::uint64_t rest = end.wide(), made_by = end.half(), needed = end.half(), disk = end.word(),
                      first_disk = end.word(), here = end.wide(), count = end.wide(), size = end.wide(),
                      start = end.wide();
  if (!signature || rest != kEnd64 - 12 || needed != 45 || disk != 0 || first_disk != 0 || here != count ||
      (made_by & 255) != 45)
    throw Malformed("its zip64 end record is damaged");
  where.bytes(4);
  const std::uint64_t on_disk = where.word(), place = where.wide(), disks = where.word();
  if (on_disk != 0 || place != at || disks != 1) throw Malformed("its zip64 locator is damaged");
  return {start, size, count};
}

// The central directory, which must reach up to the end records.
Directory find_directory(const File& file) {
  if (file.size() < kEnd) throw Malformed("it is too short for a zip file");
  std::uint64_t end_at = file.size() - kEnd;
  const std::string text = record(file, end_at, kEnd);
  Fields end(text);
  const bool signature = end.bytes(4) == std::string_view("PK\x05\x06", 4);
  const std::uint64_t disk = end.half(), first_disk = end.half(), here = end.half(), count = end.half(),
                      size = end.word(), start = end.word(), comment = end.half();
  if (!signature || comment != 0)
    throw Malformed("it does not end as a zip file without a comment does (truncated, or something was added)");
  if (disk != 0 || first_disk != 0 || here != count) throw Malformed("its end record speaks of several disks");
  Directory found = {start, size, count};
  if (end_at >= kLocator64 + kEnd64) {
    const std::uint64_t locator_at = end_at - kLocator64;
    const std::string locator = record(file, locator_at, kLocator64);
    if (locator.compare(0, 4, "PK\x06\x07", 4) == 0) {
      end_at = locator_at - kEnd64;
      found = directory64(record(file, end_at, kEnd64), locator, end_at);
    }
  }
  if (found.size > end_at || found.start != end_at - found.size)
    throw Malformed("its directory does not reach its end record");
  return found;
}

// Hold the header before the data against the directory; the offset of the data.
std::uint64_t check_local(const File& file, std::uint64_t at, const Common& expected, std::uint64_t size,
                          std::string_view name) {
  const std::string text = record(file, at, kLocal);
  Fields fields(text);
  const bool signature = fields.bytes(4) == std::string_view("PK\x03\x04", 4);
  // The version may differ: the directory also counts how far into the file the member lies.
  const std::uint64_t needed = fields.half();
  const Common here = {fields.half(), fields.half(), fields.half(), fields.half(), fields.word()};
  const std::uint64_t packed = fields.word(), plain = fields.word(), name_size = fields.half(),
                      extra_size = fields.half();
  if (name_size != name.size() || extra_size > kLongestName || kVersions.count(needed) == 0)
    throw Malformed(text_of("the header of ", in_quotes(name), " is damaged"));
  const std::string rest = record(file, at + kLocal, name_size + extra_size);
  const Extent extent = with_zip64(std::string_view(rest).substr(name_size), {plain, packed, 0});
  if (!signature || here != expected || rest.compare(0, name_size, name) != 0 || extent.size != size ||
      extent.packed != size)
    throw Malformed(text_of("the header of ", in_quotes(name), " contradicts the directory"));
  return at + kLocal + rest.size();
}

struct Entry {
  std::string name;
  Stored stored;
  std::size_t next;
};

// The member at `position` of the directory; its header must lie where the data of the one before it ends.
Entry read_member(const File& file, std::string_view directory, std::size_t position, std::uint64_t data_end) {
  if (directory.size() < kCentral || position > directory.size() - kCentral)
    throw Malformed("its directory ends too early");
  Fields fields(directory.substr(position));
  const bool signature = fields.bytes(4) == std::string_view("PK\x01\x02", 4);
  const std::uint64_t made_by = fields.half(), needed = fields.half();
  const Common common = {fields.half(), fields.half(), fields.half(), fields.half(), fields.word()};
  Extent extent{};
  extent.packed = fields.word();
  extent.size = fields.word();
  const std::size_t name_size = fields.half(), extra_size = fields.half();
  const std::uint64_t comment = fields.half(), disk = fields.half(), internal = fields.half(),
                      external = fields.word();
  extent.header_at = fields.word();
  if (!signature || comment != 0 || disk != 0 || internal != 0)
    throw Malformed("an entry of its directory is damaged");
  const std::size_t name_at = position + kCentral;
  if (name_size + extra_size > directory.size() - name_at) throw Malformed("its directory ends too early");
  const std::string name(directory.substr(name_at, name_size));
  const std::string_view extra = directory.substr(name_at + name_size, extra_size);
  if (!is_utf8(name)) throw Malformed("the name of a member is not UTF-8");
  if (kVersions.count(made_by & 255) == 0 || kSystems.count(made_by >> 8) == 0 || kVersions.count(needed) == 0)
    throw Malformed(text_of("the member ", in_quotes(name), " needs another version of zip"));
  if ((external & 0xffff) != 0 || kModes.count(external >> 16) == 0)
    throw Malformed(text_of("the member ", in_quotes(name), " is not a regular file"));
  if (common[1] != 0 || kFlags.count(common[0]) == 0)
    throw Malformed(text_of("the member ", in_quotes(name), " is compressed or encrypted; members are stored"));
  extent = with_zip64(extra, extent);
  if (extent.size != extent.packed)
    throw Malformed(text_of("the member ", in_quotes(name), " has two sizes, ", extent.size, " and ", extent.packed));
  if (extent.header_at != data_end)
    throw Malformed(text_of("the member ", in_quotes(name), " does not begin where the one before it ends"));
  const std::uint64_t offset = check_local(file, extent.header_at, common, extent.size, name);
  // No sum of offset and size may wrap around.
  if (extent.size > file.size()) throw Malformed("its members do not fill it");
  return {name, {offset, extent.size, static_cast<std::uint32_t>(common[4])}, name_at + name_size + extra_size};
}

}  // namespace

std::map<std::string, Stored> read_container(const File& file, const std::set<std::string>& names,
                                             const std::set<std::string>& optional) {
  const Directory found = find_directory(file);
  if (found.count < names.size() || found.count > names.size() + optional.size())
    throw Malformed(text_of("it has ", found.count, " members in place of ", names.size()));
  // Few members with short names: anything longer is not ours, and is not read into memory.
  if (found.size > found.count * (kCentral + kLongestName))
    throw Malformed(text_of("its directory takes ", found.size, " bytes"));
  const std::string directory = record(file, found.start, found.size);
  std::map<std::string, Stored> members;
  std::size_t position = 0;
  std::uint64_t data_end = 0;
  for (std::uint64_t index = 0; index < found.count; ++index) {
    const Entry entry = read_member(file, directory, position, data_end);
    if (names.count(entry.name) == 0 && optional.count(entry.name) == 0)
      throw Malformed(text_of("it has the unknown member ", in_quotes(entry.name)));
    if (!members.emplace(entry.name, entry.stored).second)
      throw Malformed(text_of("it has the member ", in_quotes(entry.name), " twice"));
    position = entry.next;
    data_end = entry.stored.offset + entry.stored.size;
  }
  for (const std::string& name : names)
    if (members.count(name) == 0) throw Malformed(text_of("it has no member ", in_quotes(name)));
  if (position != directory.size() || data_end != found.start) throw Malformed("its members do not fill it");
  return members;
}

}  // namespace whet::internal
