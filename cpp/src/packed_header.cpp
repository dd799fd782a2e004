#include "packed_header.hpp"

#include <map>
#include <set>

#include "failure.hpp"
#include "json.hpp"
#include "memory.hpp"

namespace whet::internal {
namespace {

constexpr std::uint64_t kCodebookLimit = 256;
// Far above any memory, and far below where sums of sizes would wrap around.
constexpr std::uint64_t kMostElements = std::uint64_t{1} << 50;

using Text = std::string PackedTensor::*;
using Number = std::uint64_t PackedTensor::*;
using List = std::vector<std::uint64_t> PackedTensor::*;

const std::map<std::string, Text>& texts() {
  static const std::map<std::string, Text> table = {
      {"key", &PackedTensor::key}, {"dtype", &PackedTensor::dtype}, {"same", &PackedTensor::same}};
  return table;
}
const std::map<std::string, Number>& numbers() {
  static const std::map<std::string, Number> table = {{"gaps", &PackedTensor::gaps},
                                                      {"gap_bits", &PackedTensor::gap_bits},
                                                      {"count", &PackedTensor::count},
                                                      {"entries", &PackedTensor::entries},
                                                      {"index_bits", &PackedTensor::index_bits}};
  return table;
}
const std::map<std::string, List>& lists() {
  static const std::map<std::string, List> table = {{"shape", &PackedTensor::shape},
                                                    {"blocks", &PackedTensor::blocks}};
  return table;
}
const std::map<std::string, Positions>& positions() {
  static const std::map<std::string, Positions> table = {
      {"dense", Positions::kDense}, {"bitmap", Positions::kBitmap}, {"gaps", Positions::kGaps}};
  return table;
}

[[noreturn]] void wrong(const std::string& name, const Json& value) {
  throw Malformed(text_of(name, " of a tensor is ", value.shown()));
}

void take(PackedTensor& tensor, std::string& where, const std::string& name, const Json& value) {
  const auto text = texts().find(name);
  if (text != texts().end() || name == "positions") {
    if (!value.is(Json::kText)) wrong(name, value);
    (name == "positions" ? where : tensor.*text->second) = value.text;
    return;
  }
  const auto number = numbers().find(name);
  if (number != numbers().end()) {
    if (!value.is(Json::kSize)) wrong(name, value);
    tensor.*number->second = value.size;
    return;
  }
  const auto list = lists().find(name);
  if (list == lists().end()) throw Malformed(text_of("a tensor has the field ", in_quotes(name)));
  const auto sizes = value.sizes();
  if (!sizes) wrong(name, value);
  tensor.*list->second = *sizes;
}

// Fill in what follows from the fields, and hold them against each other.
void complete(PackedTensor& tensor, const std::string& where) {
  const std::string key = in_quotes(tensor.key);
  tensor.element = element_short(tensor.dtype);
  const auto found = positions().find(where);
  if (tensor.element == nullptr || found == positions().end())
    throw Malformed(text_of(key, " is ", in_quotes(tensor.dtype), ", ", in_quotes(where)));
  tensor.positions = found->second;
  const std::uint64_t itemsize = tensor.element->bytes;
  if (!bytes_of(tensor.shape, itemsize, tensor.nbytes) || tensor.nbytes / itemsize > kMostElements)
    throw Malformed(text_of(key, " has impossible numbers"));
  tensor.numel = tensor.nbytes / itemsize;
  const auto bits = [](std::uint64_t count) { return count >= 1 && count <= 8; };
  if (!bits(tensor.gap_bits) || !bits(tensor.index_bits) || tensor.entries > kCodebookLimit ||
      tensor.count > tensor.numel || tensor.gaps > tensor.numel)
    throw Malformed(text_of(key, " has impossible numbers"));
  if (tensor.positions == Positions::kDense && tensor.count != tensor.numel)
    throw Malformed(text_of(key, " has ", tensor.count, " values for ", tensor.numel, " elements"));
  if (tensor.positions == Positions::kBitmap) tensor.streams.push_back(symbols_size(tensor.numel, 1));
  if (tensor.positions == Positions::kGaps) tensor.streams.push_back(symbols_size(tensor.gaps, tensor.gap_bits));
  tensor.streams.push_back((tensor.entries == 0 ? tensor.count : tensor.entries) * itemsize);
  if (tensor.entries != 0) tensor.streams.push_back(symbols_size(tensor.count, tensor.index_bits));
}

PackedTensor read_tensor(const Json& value) {
  if (!value.is(Json::kTable)) throw Malformed(text_of("a tensor is ", value.shown()));
  PackedTensor tensor;
  std::string where = "dense";
  for (const auto& [name, item] : value.fields) take(tensor, where, name, item);
  if (value.fields.count("key") == 0 || value.fields.count("dtype") == 0) throw Malformed("a tensor has no key or no dtype");
  if (tensor.same.empty()) complete(tensor, where);
  if (tensor.blocks.size() != tensor.streams.size())
    throw Malformed(text_of(in_quotes(tensor.key), " has ", tensor.blocks.size(), " blocks for ", tensor.streams.size(),
                            " streams"));
  return tensor;
}

Block read_block(const Json& value) {
  const std::vector<Json>& parts = value.items;
  const bool whole = parts.size() == 3 && parts[0].is(Json::kText) && parts[1].is(Json::kSize) &&
                     parts[2].is(Json::kSize) && (parts[0].text == "zstd" || parts[0].text == "plain");
  if (!whole) throw Malformed(text_of("a block is ", value.shown()));
  const Block block = {parts[0].text == "zstd", parts[1].size, parts[2].size};
  if (!block.compressed && block.stored != block.size)
    throw Malformed(text_of("a plain block has ", block.stored, " bytes in place of ", block.size));
  return block;
}

const std::vector<Json>& items(const Json& table, const char* name) {
  if (!table[name].is(Json::kList)) throw Malformed(text_of(table[name].shown(), " is not a list"));
  return table[name].items;
}

void add(std::uint64_t& sum, std::uint64_t term) {
  if (__builtin_add_overflow(sum, term, &sum)) throw Malformed("its sizes add up to more than 64 bits");
}

void check_blocks(const PackedHeader& header, std::uint64_t data_size) {
  std::uint64_t stored = 0;
  for (const Block& block : header.blocks) add(stored, block.stored);
  if (stored != data_size) throw Malformed(text_of("the blocks do not fill ", data_size, " bytes"));
  std::vector<std::uint64_t> used(header.blocks.size());
  for (const PackedTensor& tensor : header.tensors)
    for (std::size_t i = 0; i < tensor.streams.size(); ++i) {
      const std::uint64_t number = tensor.blocks[i];
      if (number >= used.size())
        throw Malformed(text_of(in_quotes(tensor.key), " lies in block ", number, " of ", used.size()));
      add(used[number], tensor.streams[i]);
    }
  for (std::size_t i = 0; i < used.size(); ++i)
    if (used[i] != header.blocks[i].size) throw Malformed("the streams do not fill their blocks");
}

}  // namespace

PackedHeader parse_packed_header(const std::string& text, std::uint64_t data_size) {
  const Json table = parse_json(text);
  if (table.fields.size() != 2 || table.fields.count("tensors") + table.fields.count("blocks") != 2)
    throw Malformed("the header is no table of tensors and blocks");
  PackedHeader header;
  for (const Json& item : items(table, "blocks")) header.blocks.push_back(read_block(item));
  std::set<std::string> keys;
  for (const Json& item : items(table, "tensors")) {
    header.tensors.push_back(read_tensor(item));
    if (!keys.insert(header.tensors.back().key).second) throw Malformed("a tensor is stored twice");
    add(header.nbytes, header.tensors.back().nbytes);
  }
  check_blocks(header, data_size);
  return header;
}

}  // namespace whet::internal
