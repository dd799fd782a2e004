// What is wrong, in words, with the code that the C API returns for it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "utf8.hpp"
#include "whet/whet.h"

namespace whet::internal {

struct Failure : std::runtime_error {
  Failure(whet_status code, const std::string& message) : std::runtime_error(message), status(code) {}
  whet_status status;
};

// A part of a file is not what it should be; whoever knows the file turns it into a Failure.
struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string text_of(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// UTF-8 without bytes that would move a terminal's cursor: what is shown comes out of files.
inline std::string printable(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  const bool readable = is_utf8(text);
  std::string shown;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 32 && byte != 127 && (byte < 128 || readable)) {
      shown += c;
      continue;
    }
    shown += "\\x";
    shown += digits[byte >> 4];
    shown += digits[byte & 15];
  }
  return shown;
}

// The same in quotes, at most 70 bytes of it.
inline std::string in_quotes(std::string_view name) {
  constexpr std::size_t longest = 70;
  std::size_t end = name.size() > longest ? longest : name.size();
  // Not in the middle of a character.
  while (end < name.size() && end > 0 && (static_cast<unsigned char>(name[end]) & 0xc0) == 0x80) --end;
  return "'" + printable(name.substr(0, end)) + (end < name.size() ? "...'" : "'");
}

}  // namespace whet::internal
