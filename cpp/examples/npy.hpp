// Numpy's file format, as much of it as tensors need: https://numpy.org/doc/stable/reference/generated/numpy.lib.format
#pragma once

#include <algorithm>
#include <cctype>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "whet/whet.hpp"

namespace npy {

// Bytes of a tensor, with what they are.
struct Array {
  std::vector<char> bytes;
  whet_dtype dtype;
  whet::Shape shape;

  whet::Tensor tensor() const { return {bytes.data(), dtype, shape}; }
};

// Type codes; numpy has none for bfloat16, whose bits are written as uint16.
inline const std::map<std::string, whet_dtype>& codes() {
  static const std::map<std::string, whet_dtype> table = {
      {"<f8", WHET_F64}, {"<f4", WHET_F32}, {"<f2", WHET_F16}, {"<i8", WHET_I64}, {"<i4", WHET_I32}, {"<i2", WHET_I16},
      {"|i1", WHET_I8},  {"<u8", WHET_U64}, {"<u4", WHET_U32}, {"<u2", WHET_U16}, {"|u1", WHET_U8},  {"|b1", WHET_BOOL}};
  return table;
}

inline std::vector<char> contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// What follows `key` in the header, which is a Python dict.
inline std::string field(const std::string& header, const std::string& key) {
  const std::size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) throw std::runtime_error("no " + key + " in the header of an .npy file");
  return header.substr(header.find_first_not_of(' ', at + key.size() + 3));
}

inline Array read(const std::string& path) {
  const std::vector<char> data = contents(path);
  const bool magic = data.size() > 12 && std::memcmp(data.data(), "\x93NUMPY", 6) == 0;
  const std::size_t width = magic && data[6] == 1 ? 2 : 4;
  std::size_t length = 0;
  for (std::size_t i = width; magic && i-- > 0;) length = length << 8 | static_cast<unsigned char>(data[8 + i]);
  if (!magic || length > data.size() - 8 - width) throw std::runtime_error(path + " is no .npy file");
  const std::string header(data.data() + 8 + width, length);
  const std::string code = field(header, "descr").substr(1, 3), shape = field(header, "shape");
  if (codes().count(code) == 0 || field(header, "fortran_order").compare(0, 5, "False") != 0)
    throw std::runtime_error(path + " has another type or order of elements than tensors have");
  Array array = {{data.begin() + static_cast<std::ptrdiff_t>(8 + width + length), data.end()}, codes().at(code), {}};
  for (std::size_t i = 1; i < shape.size() && shape[i] != ')'; ++i)
    if (std::isdigit(static_cast<unsigned char>(shape[i])) != 0) {
      array.shape.push_back(std::stoll(shape.substr(i)));
      while (std::isdigit(static_cast<unsigned char>(shape[i + 1])) != 0) ++i;
    }
  if (array.bytes.size() != array.tensor().bytes()) throw std::runtime_error(path + " is cut off");
  return array;
}

inline void write(const std::string& path, const whet::Tensor& tensor) {
  const whet_dtype dtype = tensor.dtype() == WHET_BF16 ? WHET_U16 : tensor.dtype();
  const auto code =
      std::find_if(codes().begin(), codes().end(), [dtype](const auto& item) { return item.second == dtype; });
  std::string header = "{'descr': '" + code->first + "', 'fortran_order': False, 'shape': (";
  for (const std::int64_t size : tensor.shape()) header += std::to_string(size) + ",";
  header += "), }";
  header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.put(static_cast<char>(header.size() & 255)).put(static_cast<char>(header.size() >> 8));
  file << header;
  file.write(static_cast<const char*>(tensor.raw()), static_cast<std::streamsize>(tensor.bytes()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

}  // namespace npy
