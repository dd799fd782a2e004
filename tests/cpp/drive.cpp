// What the tests do with the C API in one process: many bundles, many threads, many calls.
//
//     drive verify | open | target  bundles, one path a line on the input; "STATUS<tab>MESSAGE" for each, where all is
//                                   well "ok" and nothing more, or the name of the target that was taken
//     drive secured verify | open | target | outputs   bundles and keys, "PATH<tab>PUBLIC KEY<tab>KEY" a line, a dash
//                                   for none; likewise, or the outputs for one set of inputs, in hexadecimal
//     drive threads BUNDLE N CALLS  N threads; every result is that of one thread
//     drive memory BUNDLE CALLS     KiB that the process grew by over CALLS calls, after as many to warm up
//     drive turns A B N             opens, runs and closes two bundles in turn; the results stay what they were
//     drive sessions BUNDLE         outputs of a model with state: calls, reset, sessions, a copy
//     drive inputs BUNDLE           what is said of wrong inputs
//     drive dimensions              expressions: "TEXT<tab>s0<tab>s1<tab>VALUE" a line; the value for s0 and s1, and the
//                                   s0 for which it is VALUE; "none" where there is none, "refused" for no expression
//     drive crypto                  1 where signed and encrypted bundles can be opened, else 0
//     drive features                of this processor
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "dimension.hpp"
#include "failure.hpp"
#include "whet/whet.hpp"

namespace {

using Words = std::vector<std::string>;
using Bytes = std::vector<char>;

// A tensor of the spec's type; a size that differs from call to call is 4.
struct Input {
  Bytes bytes;
  whet_dtype dtype;
  whet::Shape shape;

  Input(const whet::Spec& spec, unsigned seed) : dtype(spec.dtype), shape(spec.shape) {
    for (std::int64_t& size : shape) size = size < 0 ? 4 : size;
    bytes.resize(whet::Tensor(nullptr, dtype, shape).bytes());
    std::mt19937 random(seed);
    if (dtype == WHET_F32) {
      for (std::size_t i = 0; i + 4 <= bytes.size(); i += 4) {
        const float value = std::normal_distribution<float>()(random);
        std::memcpy(&bytes[i], &value, 4);
      }
      return;
    }
    for (char& byte : bytes) byte = static_cast<char>(random() & 1);
  }

  whet::Tensor tensor() const { return {bytes.data(), dtype, shape}; }
};

std::vector<Input> inputs_of(const whet::Module& model, unsigned seed) {
  std::vector<Input> inputs;
  for (const whet::Spec& spec : model.inputs()) inputs.emplace_back(spec, seed++);
  return inputs;
}

std::vector<whet::Tensor> views(const std::vector<Input>& inputs) {
  std::vector<whet::Tensor> found;
  for (const Input& input : inputs) found.push_back(input.tensor());
  return found;
}

Bytes joined(const whet::Result& result) {
  Bytes bytes;
  for (std::size_t i = 0; i < result.size(); ++i) {
    const whet::Tensor tensor = result[i];
    const char* data = static_cast<const char*>(tensor.raw());
    bytes.insert(bytes.end(), data, data + tensor.bytes());
  }
  return bytes;
}

// How a bundle is looked at; what is said of it where all is well.
using Look = whet_status (*)(const char*, const whet_keys*, std::string*);

whet_status only_verify(const char* path, const whet_keys* keys, std::string*) { return whet_verify_with(path, keys); }

whet_status open_and_list(const char* path, const whet_keys* keys, std::string*) {
  whet_module* module = nullptr;
  const whet_status status = whet_open_with(path, 1, keys, &module);
  whet_spec spec{};
  for (std::size_t i = 0; i < whet_input_count(module); ++i) whet_input(module, i, &spec);
  for (std::size_t i = 0; i < whet_output_count(module); ++i) whet_output(module, i, &spec);
  whet_close(module);
  return status;
}

whet_status name_target(const char* path, const whet_keys* keys, std::string* said) {
  whet_module* module = nullptr;
  const whet_status status = whet_open_with(path, 1, keys, &module);
  if (module != nullptr) *said = whet_target_name(module);
  whet_close(module);
  return status;
}

std::string hexadecimal(const Bytes& bytes) {
  std::string text;
  for (const char byte : bytes)
    for (const int shift : {4, 0}) text += "0123456789abcdef"[static_cast<unsigned char>(byte) >> shift & 15];
  return text;
}

whet::Keys copied(const whet_keys& keys) {
  whet::Keys made;
  whet::Keys::Bytes bytes{};
  for (std::size_t i = 0; i < keys.trusted_count; ++i) {
    std::copy_n(keys.trusted + i * bytes.size(), bytes.size(), bytes.begin());
    made.trust(bytes);
  }
  if (keys.key == nullptr) return made;
  std::copy_n(keys.key, bytes.size(), bytes.begin());
  return made.decrypt_with(bytes);
}

whet_status run_once(const char* path, const whet_keys* keys, std::string* said) {
  try {
    whet::Module model(path, 1, keys == nullptr ? whet::Keys() : copied(*keys));
    *said = hexadecimal(joined(model(views(inputs_of(model, 0)))));
    return WHET_OK;
  } catch (const whet::Error& error) {
    return error.status();
  }
}

Words split(const std::string& line) {
  Words words;
  for (std::size_t at = 0, end = 0; end != std::string::npos; at = end + 1) {
    end = line.find('\t', at);
    words.push_back(line.substr(at, end == std::string::npos ? end : end - at));
  }
  return words;
}

void tell(whet_status status, std::string said) {
  if (status != WHET_OK) said = whet_last_error();
  // One line each.
  std::replace(said.begin(), said.end(), '\n', ' ');
  std::cout << whet_status_name(status) << '\t' << said << std::endl;
}

void look_at(Look look, const std::string& path, const whet_keys* keys) {
  std::string said;
  const whet_status status = look(path.c_str(), keys, &said);
  tell(status, said);
}

int each_bundle(Look look) {
  for (std::string path; std::getline(std::cin, path);) look_at(look, path, nullptr);
  return 0;
}

int verify(const Words&) { return each_bundle(only_verify); }
int open_bundles(const Words&) { return each_bundle(open_and_list); }
int targets(const Words&) { return each_bundle(name_target); }

const std::map<std::string, Look> kLooks = {
    {"verify", only_verify}, {"open", open_and_list}, {"target", name_target}, {"outputs", run_once}};

int secured(const Words& how) {
  const Look look = kLooks.at(how.at(0));
  for (std::string line; std::getline(std::cin, line);) {
    const Words words = split(line);
    whet::Keys keys;
    try {
      if (words.at(1) != "-") keys.trust(words[1]);
      if (words.at(2) != "-") keys.decrypt_with(words[2]);
      const whet_keys given = keys.view();
      look_at(look, words[0], &given);
    } catch (const whet::Error& error) {
      tell(error.status(), "");
    }
  }
  return 0;
}

int threads(const Words& words) {
  constexpr unsigned kinds = 5;
  whet::Module model(words.at(0));
  std::vector<std::vector<Input>> inputs;
  std::vector<Bytes> expected;
  for (unsigned kind = 0; kind < kinds; ++kind) {
    inputs.push_back(inputs_of(model, 100 * kind));
    expected.push_back(joined(model(views(inputs.back()))));
  }
  const int count = std::stoi(words.at(1)), calls = std::stoi(words.at(2));
  std::atomic<int> wrong{0}, done{0};
  std::vector<std::thread> running;
  for (int thread = 0; thread < count; ++thread)
    running.emplace_back([&, thread] {
      for (int call = 0; call < calls; ++call) {
        const auto kind = static_cast<unsigned>(thread + call) % kinds;
        if (joined(model(views(inputs[kind]))) != expected[kind]) ++wrong;
        ++done;
      }
    });
  for (std::thread& thread : running) thread.join();
  std::cout << done << " calls, " << wrong << " wrong\n";
  return wrong == 0 ? 0 : 1;
}

int turns(const Words& words) {
  std::vector<Bytes> first;
  std::vector<whet::Result> kept;
  for (int turn = 0; turn < 2 * std::stoi(words.at(2)); ++turn) {
    whet::Module model(words.at(turn % 2));
    whet::Result result = model(views(inputs_of(model, 0)));
    if (turn < 2) first.push_back(joined(result));
    if (joined(result) != first[turn % 2]) return 1;
    // Results outlive their modules.
    if (turn < 6) kept.push_back(std::move(result));
  }
  for (std::size_t i = 0; i < kept.size(); ++i)
    if (joined(kept[i]) != first[i % 2]) return 1;
  return 0;
}

long resident_kib() {
  std::ifstream file("/proc/self/statm");
  long size = 0, resident = 0;
  file >> size >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

int memory(const Words& words) {
  whet::Module model(words.at(0));
  const std::vector<Input> inputs = inputs_of(model, 0);
  const int calls = std::stoi(words.at(1));
  long before = 0;
  for (int turn = 0; turn < 2; ++turn) {
    before = turn == 0 ? 0 : resident_kib();
    for (int call = 0; call < calls; ++call) model(views(inputs));
  }
  std::cout << resident_kib() - before << "\n";
  return 0;
}

void show(const char* what, const whet::Result& result) {
  std::cout << what;
  for (std::size_t i = 0; i < result.size(); ++i)
    for (std::size_t k = 0; k < result[i].size(); ++k) std::cout << ' ' << result[i].data<float>()[k];
  std::cout << '\n';
}

int sessions(const Words& words) {
  whet::Module model(words.at(0));
  std::vector<float> ones(4, 1), fives(4, 5);
  const std::vector<whet::Tensor> one = {whet::Tensor::of(ones, {4})}, five = {whet::Tensor::of(fives, {4})};
  const whet::Result first = model(one);
  show("first", first);
  // The model keeps its input as state: a copy, since the caller goes on writing into its own.
  ones.assign(4, 99);
  show("second", model(five));
  ones.assign(4, 1);
  show("first again", first);
  model.reset();
  show("reset", model(one));
  whet::Session session = model.session();
  show("session", session(one));
  whet::Session copy = session.copy();
  show("copy", copy(one));
  show("session again", session(one));
  session.reset();
  show("session reset", session(one));
  // A child of a fork has no execution thread until it calls.
  std::cout << std::flush;
  const pid_t child = fork();
  if (child == 0) {
    show("child", session(one));
    std::cout << std::flush;
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

int inputs(const Words& words) {
  whet::Module model(words.at(0));
  std::vector<float> numbers(8 * 66);
  std::vector<std::uint8_t> bits(8 * 66);
  const auto x = [&](whet::Shape shape) { return whet::Tensor(numbers.data(), WHET_F32, std::move(shape)); };
  const auto mask = [&](whet::Shape shape) { return whet::Tensor(bits.data(), WHET_BOOL, std::move(shape)); };
  const std::vector<std::vector<whet::Tensor>> cases = {
      {x({4, 8}), mask({4, 8})},
      {x({4, 8})},
      {mask({4, 8}), mask({4, 8})},
      {x({4, 9}), mask({4, 8})},
      {x({4, 8, 1}), mask({4, 8})},
      {x({4, 8}), mask({6, 8})},
      {x({3, 8}), mask({3, 8})},
      {x({66, 8}), mask({66, 8})},
      {x({-4, 8}), mask({4, 8})},
      {whet::Tensor(nullptr, WHET_F32, {4, 8}), mask({4, 8})},
      {whet::Tensor(numbers.data(), static_cast<whet_dtype>(15), {4, 8}), mask({4, 8})},
  };
  for (const auto& given : cases) {
    try {
      std::cout << model(given).size() << " outputs\n";
    } catch (const whet::Error& error) {
      std::cout << whet_status_name(error.status()) << ": " << error.what() << '\n';
    }
  }
  return 0;
}

int dimensions(const Words&) {
  using whet::internal::Expression;
  for (std::string line; std::getline(std::cin, line);) {
    const Words words = split(line);
    const std::int64_t s0 = std::stoll(words.at(1)), s1 = std::stoll(words.at(2)), value = std::stoll(words.at(3));
    try {
      const Expression expression = Expression::parse(words[0]);
      const bool bound = expression.symbols().size() <= expression.symbols().count("s0") + expression.symbols().count("s1");
      const auto result = bound ? expression.evaluate({{"s0", s0}, {"s1", s1}}) : std::nullopt;
      const auto solution = expression.solve(value, {{"s1", s1}});
      std::cout << (result ? std::to_string(*result) : "none") << ' '
                << (solution ? solution->first + "=" + std::to_string(solution->second) : "none") << '\n';
    } catch (const whet::internal::Malformed&) {
      std::cout << "refused\n";
    }
  }
  return 0;
}

int crypto(const Words&) {
  std::cout << whet_has_cryptography() << '\n';
  return 0;
}

int features(const Words&) {
  std::cout << whet_processor_features() << '\n';
  return 0;
}

struct Command {
  const char* name;
  int (*run)(const Words&);
};
constexpr Command kCommands[] = {
    {"verify", verify},     {"open", open_bundles}, {"target", targets},  {"secured", secured},
    {"crypto", crypto},     {"threads", threads},   {"memory", memory},   {"turns", turns},
    {"sessions", sessions}, {"inputs", inputs},     {"features", features}, {"dimensions", dimensions}};

}  // namespace

int main(int argc, char** argv) {
  try {
    for (const Command& command : kCommands)
      if (argc > 1 && std::strcmp(argv[1], command.name) == 0) return command.run({argv + 2, argv + argc});
    std::cerr << "unknown command\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
  }
  return 2;
}
