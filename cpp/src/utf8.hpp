// Whether bytes are UTF-8 (RFC 3629: shortest forms, no surrogates, up to U+10FFFF).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace whet::internal {

inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x80) continue;
    const int more = lead >= 0xc2 && lead < 0xe0 ? 1 : (lead & 0xf0) == 0xe0 ? 2 : lead >= 0xf0 && lead < 0xf5 ? 3 : 0;
    if (more == 0) return false;
    std::uint32_t code = lead & (0x3f >> more);
    for (int k = 0; k < more; ++k) {
      if (i == text.size() || (static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return false;
      code = code << 6 | (static_cast<unsigned char>(text[i++]) & 0x3f);
    }
    const bool surrogate = code >= 0xd800 && code < 0xe000;
    if ((more == 2 && (code < 0x800 || surrogate)) || (more == 3 && (code < 0x10000 || code > 0x10ffff))) return false;
  }
  return true;
}

}  // namespace whet::internal
