"""Runs compiled models on a device: numpy, tvm_ffi and libtvm_runtime.so, without torch and without the
compiler.
"""

from __future__ import annotations

from whet.runtime.bundle import Bundle, read_bundle, read_manifest, read_variants
from whet.runtime.executor import set_threads
from whet.runtime.keys import write_secret_key, write_signing_key
from whet.runtime.loading import load
from whet.runtime.manifest import Dimension, Manifest, StateSpec, TargetSpec, TensorSpec
from whet.runtime.objects import bundle_linked
from whet.runtime.safetensors import RawTensor
from whet.runtime.session import LoadedModule, Program, Session
from whet.runtime.storage_report import StorageReport, storage_of, storage_report
from whet.runtime.structure import StructuredOutput
from whet.runtime.tensors import empty
from whet.runtime.verifying import Verification, verify_bundle
from whet.runtime.writing import join_bundles, sign_bundle, write_bundle

__all__ = [
    "Bundle",
    "Dimension",
    "LoadedModule",
    "Manifest",
    "Program",
    "RawTensor",
    "Session",
    "StateSpec",
    "StorageReport",
    "StructuredOutput",
    "TargetSpec",
    "TensorSpec",
    "Verification",
    "bundle_linked",
    "empty",
    "join_bundles",
    "load",
    "read_bundle",
    "read_manifest",
    "read_variants",
    "set_threads",
    "sign_bundle",
    "storage_of",
    "storage_report",
    "verify_bundle",
    "write_bundle",
    "write_secret_key",
    "write_signing_key",
]
