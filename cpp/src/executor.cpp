#include "executor.hpp"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <tvm/ffi/function.h>

#include "failure.hpp"
#include "processor.hpp"

namespace whet::internal {
namespace {

constexpr const char* kThreadsVariable = "TVM_NUM_THREADS";
constexpr int kMostThreads = 4096;
// AffinityMode::kBig: prefer the fast cores; without effect while TVM_BIND_THREADS is 0.
constexpr int kBig = 1;

void configure_pool(int threads) {
  // TVM's default is half of the logical processors, and each worker bound to one of them, whatever this process may
  // use. It reads these variables at every launch, so they stay set.
  setenv(kThreadsVariable, std::to_string(threads).c_str(), 1);
  setenv("TVM_BIND_THREADS", "0", 0);
  tvm::ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kBig, threads);
}

// A call on its way to the execution thread and back.
struct Call {
  const std::function<void()>* function;
  // The pool that the calls after it run on, 0 for an ordinary call: a thread keeps the size of pool that it began
  // with, so another thread goes on with the queue.
  int threads = 0;
  bool done = false;
  std::exception_ptr error;
};

class Executor {
 public:
  explicit Executor(int threads) : threads_(threads) { run_first(threads); }

  void run(const std::function<void()>& function) {
    if (std::this_thread::get_id() == ident_) {
      function();
      return;
    }
    Call call = {&function};
    hand_over(call);
  }

  void resize(int threads) {
    const std::function<void()> nothing = [] {};
    Call call = {&nothing, threads};
    hand_over(call);
    threads_ = threads;
  }

  int threads() const { return threads_; }

 private:
  void run_first(int threads) {
    const std::function<void()> configure = [threads] { configure_pool(threads); };
    Call call = {&configure};
    {
      const std::lock_guard lock(mutex_);
      calls_.push_back(&call);
    }
    start();
    wait(call);
  }

  void start() {
    std::thread([this] { loop(); }).detach();
  }

  void hand_over(Call& call) {
    {
      const std::lock_guard lock(mutex_);
      calls_.push_back(&call);
    }
    arrived_.notify_one();
    wait(call);
  }

  void wait(Call& call) {
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [&] { return call.done; });
    if (call.error) std::rethrow_exception(call.error);
  }

  void loop() {
    std::unique_lock lock(mutex_);
    ident_ = std::this_thread::get_id();
    while (true) {
      arrived_.wait(lock, [this] { return !calls_.empty(); });
      Call& call = *calls_.front();
      calls_.pop_front();
      if (call.threads != 0) {
        const int threads = call.threads;
        lock.unlock();
        std::thread([this, &call, threads] {
          finish(call, [threads] { configure_pool(threads); });
          loop();
        }).detach();
        return;
      }
      lock.unlock();
      finish(call, *call.function);
      lock.lock();
    }
  }

  void finish(Call& call, const std::function<void()>& function) {
    std::exception_ptr error;
    try {
      function();
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    call.error = std::move(error);
    call.done = true;
    finished_.notify_all();
  }

  int threads_;
  std::atomic<std::thread::id> ident_;
  std::mutex mutex_;
  std::condition_variable arrived_, finished_;
  std::deque<Call*> calls_;
};

// Never destroyed: the execution thread waits on it until the process ends.
struct Shared {
  std::mutex mutex;
  Executor* executor = nullptr;
};
Shared* shared = new Shared;

// The execution thread stayed in the parent: forget it, and locks that may have been held.
void after_fork() { shared = new Shared; }
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork);

int checked(int threads) {
  if (threads < 1 || threads > kMostThreads)
    throw Failure(WHET_BAD_INPUT, text_of("threads=", threads, ": give a number of threads, 1 or more"));
  return threads;
}

int default_threads() {
  const char* given = std::getenv(kThreadsVariable);
  const int number = given == nullptr ? 0 : std::atoi(given);
  return number > 0 && number <= kMostThreads ? number : physical_cores();
}

Executor& executor() {
  const std::lock_guard lock(shared->mutex);
  if (shared->executor == nullptr) shared->executor = new Executor(default_threads());
  return *shared->executor;
}

}  // namespace

void start_executor(int threads) {
  if (threads != 0) checked(threads);
  const std::lock_guard lock(shared->mutex);
  if (shared->executor == nullptr) {
    shared->executor = new Executor(threads == 0 ? default_threads() : threads);
    return;
  }
  if (threads != 0 && threads != shared->executor->threads())
    throw Failure(WHET_BAD_INPUT,
                  text_of("threads=", threads, ", but compiled code of this process already runs on ",
                          shared->executor->threads(), " thread(s), and the number is the process's: call "
                          "whet_set_threads to change it for all modules"));
}

void resize_executor(int threads) {
  checked(threads);
  const std::lock_guard lock(shared->mutex);
  if (shared->executor == nullptr) {
    shared->executor = new Executor(threads);
  } else if (shared->executor->threads() != threads) {
    shared->executor->resize(threads);
  }
}

int executor_threads() {
  const std::lock_guard lock(shared->mutex);
  return shared->executor == nullptr ? 0 : shared->executor->threads();
}

void execute(const std::function<void()>& function) { executor().run(function); }

}  // namespace whet::internal
