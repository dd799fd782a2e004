// Runs a bundle: lists its inputs and outputs, reads inputs from files, writes outputs, times calls.
//
//     run_bundle model.whet                                     what it takes and gives
//     run_bundle model.whet x.npy mask.npy --output y           runs it; writes y.0.npy, y.1.npy, ...
//     run_bundle model.whet x.npy --trust release.pub --key device.key      signed and encrypted ones
//     run_bundle model.whet x.raw --repeat 100 --threads 4      bytes as they lie in memory; times 100 calls
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "npy.hpp"
#include "whet/whet.hpp"

namespace {

struct Options {
  std::string bundle, output;
  std::vector<std::string> inputs;
  int threads = 0, repeat = 0;
  whet::Keys keys;
};

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const bool valued = word == "--output" || word == "--threads" || word == "--repeat" || word == "--trust" ||
                        word == "--key";
    if (valued && i + 1 == words.size()) throw std::invalid_argument(word + " wants a value");
    if (word == "--output") {
      options.output = words[++i];
    } else if (word == "--threads") {
      options.threads = std::stoi(words[++i]);
    } else if (word == "--repeat") {
      options.repeat = std::stoi(words[++i]);
    } else if (word == "--trust") {
      options.keys.trust(words[++i]);
    } else if (word == "--key") {
      options.keys.decrypt_with(words[++i]);
    } else if (options.bundle.empty()) {
      options.bundle = word;
    } else {
      options.inputs.push_back(word);
    }
  }
  if (options.bundle.empty())
    throw std::invalid_argument("usage: run_bundle BUNDLE [INPUT.npy | INPUT.raw]... [--output PREFIX] [--threads N] "
                                "[--repeat N] [--trust PUBLIC]... [--key FILE]");
  return options;
}

npy::Array read_input(const std::string& path, const whet::Spec& spec) {
  if (path.size() > 4 && path.compare(path.size() - 4, 4, ".npy") == 0) {
    npy::Array array = npy::read(path);
    if (spec.dtype == WHET_BF16 && array.dtype == WHET_U16) array.dtype = WHET_BF16;
    return array;
  }
  npy::Array array = {npy::contents(path), spec.dtype, spec.shape};
  if (std::count(spec.shape.begin(), spec.shape.end(), -1) != 0)
    throw std::invalid_argument(path + ": the sizes of " + spec.text + " differ from call to call: give it as .npy");
  if (array.bytes.size() != array.tensor().bytes())
    throw std::invalid_argument(path + " has " + std::to_string(array.bytes.size()) + " bytes; " + spec.text +
                                " takes " + std::to_string(array.tensor().bytes()));
  return array;
}

void time_calls(whet::Module& model, const std::vector<whet::Tensor>& inputs, int repeat) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  for (int i = 0; i < repeat; ++i) {
    const auto start = Clock::now();
    model(inputs);
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  std::cout << "median of " << repeat << " calls: " << times[times.size() / 2] << " ms on " << whet_threads()
            << " thread(s)\n";
}

void run(const Options& options) {
  whet::Module model(options.bundle, options.threads, options.keys);
  const std::vector<whet::Spec> specs = model.inputs();
  std::cout << "target " << model.target() << "\n";
  for (const whet::Spec& spec : specs) std::cout << "input  " << spec.text << "\n";
  for (const whet::Spec& spec : model.outputs()) std::cout << "output " << spec.text << "\n";
  if (options.inputs.empty() && !specs.empty()) return;
  std::vector<npy::Array> arrays;
  std::vector<whet::Tensor> inputs;
  for (std::size_t i = 0; i < options.inputs.size() && i < specs.size(); ++i)
    arrays.push_back(read_input(options.inputs[i], specs[i]));
  for (const npy::Array& array : arrays) inputs.push_back(array.tensor());
  const whet::Result outputs = model(inputs);
  for (std::size_t i = 0; i < outputs.size() && !options.output.empty(); ++i)
    npy::write(options.output + "." + std::to_string(i) + ".npy", outputs[i]);
  if (options.repeat > 0) time_calls(model, inputs, options.repeat);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse({argv + 1, argv + argc}));
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return EXIT_FAILURE;
  }
}
