"""The one thread of this process that runs compiled code, and with it the one pool of TVM's workers.

TVM makes a pool of workers for every thread that calls it, and keeps that pool when the thread ends: eight
callers would run eight pools on the same cores, and a server with a thread per request would leak workers
until none can be made. So calls run on one thread: the main thread as long as no other calls, then and from then
on an execution thread, to which every call is handed (about 15 microseconds, more where it has fallen asleep).
Calls from several threads take turns, each with all the cores, and `threads` means the process. After a fork the
child makes an execution thread of its own: the pool of the thread that forked has lost its workers there, and
would hang.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from whet.errors import InputError
from whet.runtime.cpu import physical_cores
from whet.runtime.library import load_runtime, runtime_function

T = TypeVar("T")

THREADS_VARIABLE: Final = "TVM_NUM_THREADS"
# AffinityMode::kBig: prefer the fast cores; without effect while TVM_BIND_THREADS is 0.
_BIG: Final = 1


class _Call:
    """A call on its way to the execution thread and back."""

    __slots__ = ("args", "done", "error", "function", "result")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


class Executor:
    """The thread whose native code uses `threads` cores: the main thread (`on_main`, only from there), or one more."""

    def __init__(self, threads: int, on_main: bool = False) -> None:
        self.threads = threads
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._turn = threading.RLock()
        self._ident = threading.get_ident()
        # What ran here before may have made a pool of another size, which stays.
        if not (on_main and _configure_pool(threads) == threads):
            self._start(threads)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`, called on that thread; what it raises is raised here."""
        ident = threading.get_ident()
        if ident == self._ident:
            with self._turn:
                # Unless another thread has just called for the first time.
                if ident == self._ident:
                    return function(*args)
        self._leave_main(self.threads)
        call = _Call(function, args)
        self._calls.put(call)
        result: T = _result(call)
        return result

    def resize(self, threads: int) -> None:
        """Use that many threads for the calls that follow."""
        if not self._leave_main(threads):
            # A thread keeps the size of pool that it began with, so another thread goes on with this queue.
            call = _Call(_hand_over, (threads,))
            self._calls.put(call)
            _result(call)
        self.threads = threads

    def _leave_main(self, threads: int) -> bool:
        """Go on with an execution thread where calls still run on the main thread; whether they did."""
        if self._ident != threading.main_thread().ident:
            return False
        with self._turn:
            if self._ident != threading.main_thread().ident:
                return False
            self._start(threads)
            return True

    def _start(self, threads: int) -> None:
        """Start an execution thread with a pool of that size."""
        first = _Call(_configure_pool, (threads,))
        threading.Thread(target=self._loop, args=(first,), name="whet-execution", daemon=True).start()
        _result(first)

    def _loop(self, call: _Call) -> None:
        self._ident = threading.get_ident()
        while call.function is not _hand_over:
            try:
                call.result = call.function(*call.args)
            except BaseException as error:
                call.error = error
            call.done.release()
            # Or the last call's tensors would live until the next call.
            del call
            call = self._calls.get()
        try:
            self._start(*call.args)
        except BaseException as error:
            call.error = error
        call.done.release()


def _hand_over(threads: int) -> None:
    """What an execution thread is called with where another one is to go on."""


def _result(call: _Call) -> Any:
    call.done.acquire()
    if call.error is None:
        return call.result
    try:
        raise call.error
    finally:
        # The traceback refers to this frame: without this, both would wait for the garbage collector.
        del call


def _configure_pool(threads: int) -> int:
    """Set this thread's pool up; the number of threads that it has."""
    # TVM's default is half of the logical processors, and each worker bound to one of them, whatever this
    # process may use. It reads these variables at every launch, so they stay set.
    os.environ[THREADS_VARIABLE] = str(threads)
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    runtime_function("runtime.config_threadpool")(_BIG, threads)
    return int(runtime_function("runtime.NumThreads")())


_lock = threading.Lock()
_shared: Executor | None = None
_forked = False


def shared_executor(threads: int | None = None) -> Executor:
    """The executor of this process; the first caller decides how many threads it has.

    `threads=None` takes what there is; at first TVM_NUM_THREADS where it is set, else the physical cores.
    Raises InputError for a number below 1, or another number than the process has.
    """
    global _shared
    with _lock:
        if _shared is None:
            _shared = _new(_checked(threads) if threads is not None else default_threads())
        elif threads is not None and _checked(threads) != _shared.threads:
            raise InputError(
                f"threads={threads}, but compiled code of this process already runs on {_shared.threads} "
                f"thread(s), and the number is the process's: "
                f"call whet.runtime.set_threads({threads}) to change it for all modules"
            )
        return _shared


def set_threads(threads: int) -> None:
    """Run all compiled code of this process on that many threads from now on.

    Workers of the pool before stay asleep until the process ends: TVM cannot end them. Raises InputError
    below 1.
    """
    global _shared
    _checked(threads)
    load_runtime()
    with _lock:
        if _shared is None:
            _shared = _new(threads)
        elif _shared.threads != threads:
            _shared.resize(threads)


def _new(threads: int) -> Executor:
    return Executor(threads, on_main=not _forked and threading.current_thread() is threading.main_thread())


def default_threads() -> int:
    """TVM_NUM_THREADS where it is a positive number, else the physical cores that this process may use."""
    given = os.environ.get(THREADS_VARIABLE, "")
    return int(given) if given.isdecimal() and int(given) > 0 else physical_cores()


def _checked(threads: int) -> int:
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 4096:
        raise InputError(f"threads={threads!r}: give a number of threads, 1 or more")
    return threads


def _after_fork() -> None:
    """Workers and execution thread stayed in the parent: forget them, and a lock that may have been held."""
    global _forked, _lock, _shared
    _forked = True
    _lock = threading.Lock()
    _shared = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
