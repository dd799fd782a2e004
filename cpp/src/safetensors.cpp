#include "safetensors.hpp"

#include <algorithm>

#include "failure.hpp"
#include "json.hpp"
#include "memory.hpp"

namespace whet::internal {
namespace {

Entry read_entry(const std::string& key, const Json& value) {
  if (value.fields.size() != 3 || value.fields.count("dtype") + value.fields.count("shape") +
                                          value.fields.count("data_offsets") != 3)
    throw Malformed(text_of(in_quotes(key), " has no dtype, shape and data_offsets"));
  const Json &dtype = value["dtype"], &extents = value["shape"], &place = value["data_offsets"];
  const Element* element = dtype.is(Json::kText) ? element_of_safetensors(dtype.text) : nullptr;
  if (element == nullptr) throw Malformed(text_of(in_quotes(key), " has the dtype ", dtype.shown()));
  const auto shape = extents.sizes(), offsets = place.sizes();
  if (!shape || !offsets || offsets->size() != 2)
    throw Malformed(text_of(in_quotes(key), " has the shape ", extents.shown(), " and the offsets ",
                            place.shown()));
  const std::uint64_t begin = (*offsets)[0], end = (*offsets)[1];
  std::uint64_t bytes = 0;
  if (!bytes_of(*shape, element->bytes, bytes) || end < begin || end - begin != bytes)
    throw Malformed(text_of(in_quotes(key), " of shape ", extents.shown(), " and ", element->name,
                            " has the offsets ", place.shown()));
  return {key, element, {shape->begin(), shape->end()}, begin, end};
}

}  // namespace

std::vector<Entry> decode_safetensors(const std::string& header, std::uint64_t data_size) {
  const Json table = parse_json(header);
  if (!table.is(Json::kTable)) throw Malformed("the header is not an object");
  std::vector<Entry> entries;
  for (const auto& [key, value] : table.fields)
    if (key != "__metadata__") entries.push_back(read_entry(key, value));
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t position = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != position)
      throw Malformed(
          text_of(in_quotes(entry.key), " begins at ", entry.begin, ", the tensor before it ends at ", position));
    position = entry.end;
  }
  if (position != data_size)
    throw Malformed(text_of("the tensors take ", position, " bytes, the file has ", data_size));
  return entries;
}

}  // namespace whet::internal
