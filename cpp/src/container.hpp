// The container of a bundle: a zip of stored (never compressed) members, read strictly.
//
// A general zip reader forgives much: bytes before, between and after the members, headers that contradict each other,
// two members of one name. Here every header is held against the file before anything in it is believed.
// Layout: APPNOTE.TXT 6.3, sections 4.3 and 4.5.3 (zip64).
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "file.hpp"

namespace whet::internal {

// One member: its bytes are file[offset : offset + size].
struct Stored {
  std::uint64_t offset;
  std::uint64_t size;
  std::uint32_t crc32;
};

// Throws Malformed unless the file is a zip of the members `names`, and perhaps of those of `optional`, each stored
// once, with nothing before, between or after them.
std::map<std::string, Stored> read_container(const File& file, const std::set<std::string>& names,
                                             const std::set<std::string>& optional);

}  // namespace whet::internal
