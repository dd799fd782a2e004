// What is wrong, in words, with the code that the C API returns for it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

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

// In quotes, at most 70 bytes of it, without bytes that would move a terminal's cursor: names come out of files.
inline std::string in_quotes(std::string_view name) {
  constexpr std::string_view digits = "0123456789abcdef";
  constexpr std::size_t longest = 70;
  std::string shown = "'";
  for (const unsigned char byte : name.substr(0, longest)) {
    if (byte >= 32 && byte != 127) {
      shown += static_cast<char>(byte);
      continue;
    }
    shown += "\\x";
    shown += digits[byte >> 4];
    shown += digits[byte & 15];
  }
  return shown + (name.size() > longest ? "...'" : "'");
}

}  // namespace whet::internal
