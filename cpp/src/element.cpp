#include "element.hpp"

#include <algorithm>
#include <array>

namespace whet::internal {
namespace {

// DLDataTypeCode.
constexpr std::uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;

// In the order of whet_dtype.
constexpr std::array<Element, 13> kElements = {{
    {WHET_F64, "f64", "float64", "F64", kFloat, 8},
    {WHET_F32, "f32", "float32", "F32", kFloat, 4},
    {WHET_F16, "f16", "float16", "F16", kFloat, 2},
    {WHET_BF16, "bf16", "bfloat16", "BF16", kBfloat, 2},
    {WHET_I64, "i64", "int64", "I64", kInt, 8},
    {WHET_I32, "i32", "int32", "I32", kInt, 4},
    {WHET_I16, "i16", "int16", "I16", kInt, 2},
    {WHET_I8, "i8", "int8", "I8", kInt, 1},
    {WHET_U64, "u64", "uint64", "U64", kUInt, 8},
    {WHET_U32, "u32", "uint32", "U32", kUInt, 4},
    {WHET_U16, "u16", "uint16", "U16", kUInt, 2},
    {WHET_U8, "u8", "uint8", "U8", kUInt, 1},
    {WHET_BOOL, "bool", "bool", "BOOL", kBool, 1},
}};

template <typename Condition>
const Element* first(Condition condition) {
  const auto* const found = std::find_if(kElements.begin(), kElements.end(), condition);
  return found == kElements.end() ? nullptr : found;
}

}  // namespace

const Element* element(whet_dtype dtype) {
  return first([&](const Element& item) { return item.dtype == dtype; });
}

const Element* element_named(std::string_view name) {
  return first([&](const Element& item) { return item.name == name || item.longname == name; });
}

const Element* element_short(std::string_view name) {
  return first([&](const Element& item) { return item.name == name; });
}

const Element* element_of_safetensors(std::string_view name) {
  return first([&](const Element& item) { return item.safetensors == name; });
}

const Element* element_of_dlpack(std::uint8_t code, std::uint8_t bits, std::uint16_t lanes) {
  if (lanes != 1) return nullptr;
  return first([&](const Element& item) { return item.dlpack_code == code && item.bytes * 8 == bits; });
}

}  // namespace whet::internal
