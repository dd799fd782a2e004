"""Machine code for x86, ARM and CUDA by Apache TVM. The only package that imports tvm."""

if not __name__.startswith("whet."):
    raise ImportError(f"import this package as whet.backends.tvm, not as {__name__!r}")

from whet.backends.tvm.backend import TvmBackend

__all__ = ["TvmBackend"]
