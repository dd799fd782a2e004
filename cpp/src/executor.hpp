// The one thread of this process that runs compiled code, and with it the one pool of TVM's workers.
//
// TVM makes a pool of workers for every thread that calls it, and keeps that pool when the thread ends: eight callers
// would run eight pools on the same cores, and a server with a thread per request would leak workers. So every call is
// handed to one execution thread, calls from several threads take turns, each with all the cores. After a fork the
// child makes an execution thread of its own.
#pragma once

#include <functional>

namespace whet::internal {

// Decide on how many threads compiled code of this process runs; 0 takes what there is, at first TVM_NUM_THREADS where
// it is set, else the physical cores. Throws Failure(WHET_BAD_INPUT) for an impossible number, or another number than
// the process has.
void start_executor(int threads);
// The same for all calls that follow, whatever it was before.
void resize_executor(int threads);
// 0 where nothing was started yet.
int executor_threads();
// Call `function` on the execution thread, and throw here what it throws.
void execute(const std::function<void()>& function);

}  // namespace whet::internal
