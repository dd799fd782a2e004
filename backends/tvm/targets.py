"""A target in TVM's words."""

from __future__ import annotations

from typing import Any

import tvm

from whet.ir.target import Target


def tvm_target(target: Target) -> tvm.target.Target:
    """TVM's target, with the host's side for CUDA."""
    return tvm.target.Target(target_description(target))


def target_description(target: Target) -> dict[str, Any]:
    """What TVM's target is made of, as JSON can hold it."""
    host = _llvm(target)
    return host if target.kind == "cpu" else {"kind": "cuda", "arch": target.device_arch, "host": host, **_CUDA_LIMITS}


# Limits that every supported CUDA device has.
_CUDA_LIMITS: dict[str, Any] = {
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 49152,
    "thread_warp_size": 32,
    "max_num_threads": 1024,
    "registers_per_block": 65536,
}


def _llvm(target: Target) -> dict[str, Any]:
    description: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": target.triple,
        "mcpu": target.cpu,
        "mattr": [f"+{feature}" for feature in target.features],
        "num-cores": target.num_cores,
    }
    if "gnueabihf" in target.triple:
        description["mfloat-abi"] = "hard"
    return description
