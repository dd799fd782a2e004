// Element types of a bundle: one table from Whet's names to those of weights files and of the virtual machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "whet/whet.h"

namespace whet::internal {

struct Element {
  whet_dtype dtype;
  std::string_view name;
  const char* longname;
  std::string_view safetensors;
  std::uint8_t dlpack_code;
  std::uint8_t bytes;
};

// nullptr for an unknown one.
const Element* element(whet_dtype dtype);
// By the short ("f32") or the long ("float32") name.
const Element* element_named(std::string_view name);
const Element* element_short(std::string_view name);
const Element* element_of_safetensors(std::string_view name);
const Element* element_of_dlpack(std::uint8_t code, std::uint8_t bits, std::uint16_t lanes);

}  // namespace whet::internal
