"""Element types in TVM's words."""

from __future__ import annotations

from whet.ir.types import DType

TVM_DTYPES = {
    DType.F64: "float64",
    DType.F32: "float32",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I64: "int64",
    DType.I32: "int32",
    DType.I16: "int16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.I4: "int8",
    DType.BOOL: "bool",
}
