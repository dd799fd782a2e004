// One start of the C++ runtime: start BUNDLE INPUT.raw THREADS BEGUN. See start.py: it prints the same.
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "whet/whet.hpp"

namespace {

// Nanoseconds of the clock that Python calls monotonic.
std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Peak resident memory of this process in KiB.
long peak() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stol(line.substr(6));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const std::int64_t begun = std::stoll(argv[4]);
  whet::Module model(argv[1], std::stoi(argv[3]));
  std::ifstream file(argv[2], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<float> input(bytes.size() / sizeof(float));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(input.data()));
  const std::int64_t ready = now();
  const whet::Result outputs = model({whet::Tensor::of(input, model.inputs()[0].shape)});
  const std::int64_t done = now();
  const float* values = outputs[0].data<float>();
  std::cout << "{\"ready_seconds\": " << (ready - begun) / 1e9 << ", \"first_result_seconds\": " << (done - begun) / 1e9
            << ", \"peak_megabytes\": " << peak() * 1024 / 1e6 << ", \"output\": [" << values[0];
  for (int i = 1; i < 8; ++i) std::cout << ", " << values[i];
  std::cout << "]}\n";
}
