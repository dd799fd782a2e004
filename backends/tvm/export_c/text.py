"""C text of one model: the header, the tables with the run, and the buffers of the example."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from whet.backends.tvm.export_c.layout import Call, Copy, Layout, Place, Region, Slot, Tensor
from whet.backends.tvm.export_c.memory_plan import ALIGNMENT
from whet.runtime.dtypes import DTYPES
from whet.runtime.manifest import Manifest, TensorSpec

_DLTENSOR: Final = 7
"""TVM's number of "a pointer to a DLTensor"."""

# Whet's element types -> (type in C, DLPack's code); 16-bit floats have no portable type: their bits
_TYPES: Final = {
    "f64": ("double", 2),
    "f32": ("float", 2),
    "f16": ("uint16_t", 2),
    "bf16": ("uint16_t", 4),
    "i64": ("int64_t", 0),
    "i32": ("int32_t", 0),
    "i16": ("int16_t", 0),
    "i8": ("int8_t", 0),
    "u64": ("uint64_t", 1),
    "u32": ("uint32_t", 1),
    "u16": ("uint16_t", 1),
    "u8": ("uint8_t", 1),
    "bool": ("uint8_t", 6),
}


def header(manifest: Manifest, layout: Layout) -> str:
    """model.h: how to call the model, and everything that is known of its inputs and outputs."""
    macros = [
        *_tensor_macros("INPUT", manifest.inputs),
        *_tensor_macros("OUTPUT", manifest.outputs),
    ]
    return f"""\
/* A model as a static program for {_comment(manifest.target.name)}.

   Memory is static: an arena of {layout.arena_bytes} bytes (peak; {layout.live_bytes} are needed at one time) and
   {layout.state_bytes} bytes of state. Nothing is allocated. There is one model, and one run of it at a time: calls
   from several threads must take turns. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define MODEL_TARGET {_quoted(manifest.target.name)}
#define MODEL_ALIGNMENT {ALIGNMENT} /* of every input and output, in bytes */
#define MODEL_ARENA_BYTES {layout.arena_bytes}
#define MODEL_STATE_BYTES {layout.state_bytes}
#define MODEL_WEIGHTS_BYTES {layout.weights_bytes}
#define MODEL_INPUTS {len(manifest.inputs)}
#define MODEL_OUTPUTS {len(manifest.outputs)}

/* Tensors lie row by row, without gaps. */
{chr(10).join(macros)}

/* Before the first run. Returns 0. */
int model_init(void);

/* One run: inputs[i] and outputs[i] are the addresses of MODEL_INPUT_i_BYTES and MODEL_OUTPUT_i_BYTES bytes,
   multiples of MODEL_ALIGNMENT; outputs overlap nothing. Returns 0, or -1 and model_error says why: then the state is
   as before, and the outputs hold anything. */
int model_run(const void *const *inputs, void *const *outputs);

/* Put the state (caches, running values) back to its first value. */
void model_reset(void);

/* What went wrong in the last call that returned -1. */
const char *model_error(void);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _tensor_macros(kind: str, specs: Sequence[TensorSpec]) -> Iterator[str]:
    for index, spec in enumerate(specs):
        shape = [int(dim) for dim in spec.shape]
        name = f"MODEL_{kind}_{index}"
        element = DTYPES[spec.dtype]
        yield f"\n/* {_comment(str(spec))} */"
        yield f"#define {name}_NAME {_quoted(spec.name)}"
        yield f"#define {name}_DTYPE {_quoted(element.long)}"
        yield f"#define {name}_TYPE {_TYPES[spec.dtype][0]}"
        yield f"#define {name}_RANK {len(shape)}"
        yield f"#define {name}_SHAPE {{{', '.join(map(str, shape))}}}"
        yield f"#define {name}_ELEMENTS {math.prod(shape)}"
        yield f"#define {name}_BYTES {math.prod(shape) * element.itemsize}"


def source(manifest: Manifest, layout: Layout) -> str:
    """model.c: the tables of tensors, arguments and calls, and the functions of model.h."""
    used = _used(layout)
    permission = any(feature.startswith("amx-") for feature in manifest.target.features)
    parts = [
        _PERMISSION if permission else "",
        '#include "model.h"\n#include "runtime.h"\n\n#include <string.h>\n',
        "extern const unsigned char model_weights[];\n" if Region.WEIGHTS in used else "",
        _ARENA if Region.ARENA in used else "",
        _STATE if Region.STATE in used else "",
        "static int ready;\n",
        *(_tables(layout) if layout.calls else ()),
        _reset(layout.slots),
        _init(permission),
        _run(manifest, layout),
    ]
    return "\n".join(part for part in parts if part)


def _init(permission: bool) -> str:
    asked = (
        """\
    if (syscall(SYS_arch_prctl, MODEL_REQUEST_PERMISSION, MODEL_TILE_DATA) != 0)
        return model_fail("this system does not let programs use the matrix unit (AMX)", NULL);
"""
        if permission
        else ""
    )
    return f"int model_init(void)\n{{\n{asked}    model_reset();\n    ready = 1;\n    return 0;\n}}\n"


_PERMISSION: Final = """\
/* The registers of the matrix unit are Linux's to give; without that their first use is an illegal instruction. */
#define _DEFAULT_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#define MODEL_REQUEST_PERMISSION 0x1023
#define MODEL_TILE_DATA 18
"""

_ARENA: Final = """\
/* For boards with several memories: -DMODEL_ARENA='__attribute__((section(".fast")))' */
#ifndef MODEL_ARENA
#define MODEL_ARENA
#endif
static _Alignas(MODEL_ALIGNMENT) unsigned char arena[MODEL_ARENA_BYTES + (MODEL_ARENA_BYTES == 0)] MODEL_ARENA;
"""
_STATE: Final = """\
static _Alignas(MODEL_ALIGNMENT) unsigned char state[MODEL_STATE_BYTES + (MODEL_STATE_BYTES == 0)];
"""


def _used(layout: Layout) -> set[Region]:
    """Regions that the text will name: an unused variable is a warning."""
    places = [tensor.place for tensor in layout.tensors]
    places += [place for copy in layout.copies for place in (copy.target, copy.source)]
    used = {place.region for place in places}
    used |= {Region.ARENA for call in layout.calls if call.workspace_bytes}
    used |= {Region.STATE for slot in layout.slots if slot.size}
    return used | {Region.WEIGHTS for slot in layout.slots if slot.initial is not None}


def _tables(layout: Layout) -> Iterator[str]:
    yield "\n".join(f"model_kernel __tvm_ffi_{name};" for name in sorted({call.kernel for call in layout.calls}))
    yield ""
    # the last one is no tensor's: an array without elements is no C
    rows = [", ".join(map(str, tensor.shape)) + "," for tensor in layout.tensors if tensor.shape]
    yield _table("const int64_t shapes", [*rows, "0"])
    yield _table("DLTensor tensors", _tensor_rows(layout.tensors))
    numbers = [number for call in layout.calls for number in call.arguments]
    yield _table("TVMFFIAny arguments", (f"{{{_DLTENSOR}, 0, {{.pointer = &tensors[{item}]}}}}," for item in numbers))
    yield _table("const model_call calls", _call_rows(layout.calls))


def _table(declaration: str, rows: Iterable[str]) -> str:
    return "\n".join([f"static {declaration}[] = {{", *(f"    {row}" for row in rows), "};\n"])


def _tensor_rows(tensors: Sequence[Tensor]) -> Iterator[str]:
    shape = 0
    for tensor in tensors:
        element = DTYPES[tensor.dtype]
        code = _TYPES[tensor.dtype][1]
        bound = tensor.place.region in (Region.INPUT, Region.OUTPUT)
        data = "NULL" if bound else f"(void *){_address(tensor.place)}"
        dtype = f"{{{code}, {8 * element.itemsize}, 1}}"
        yield f"{{{data}, {{1, 0}}, {len(tensor.shape)}, {dtype}, (int64_t *)(shapes + {shape}), NULL, 0}},"
        shape += len(tensor.shape)


def _call_rows(calls: Sequence[Call]) -> Iterator[str]:
    first = 0
    for call in calls:
        workspace = _address(Place(Region.ARENA, call.workspace)) if call.workspace_bytes else "NULL"
        yield f"/* {_comment(call.comment)} */"
        yield (
            f'{{__tvm_ffi_{call.kernel}, "{call.kernel}", arguments + {first}, {len(call.arguments)}, '
            f"{workspace}, {call.workspace_bytes}}},"
        )
        first += len(call.arguments)


def _address(place: Place) -> str:
    if place.region in (Region.INPUT, Region.OUTPUT):
        return f"{place.region.value}[{place.offset}]"
    return f"({place.region.value} + {place.offset})"


def _reset(slots: Sequence[Slot]) -> str:
    lines = [
        f"    memset(state + {slot.offset}, 0, {slot.size});"
        if slot.initial is None
        else f"    memcpy(state + {slot.offset}, model_weights + {slot.initial}, {slot.size});"
        for slot in slots
        if slot.size
    ]
    return "\n".join(["void model_reset(void)\n{", *lines, "}\n"])


def _run(manifest: Manifest, layout: Layout) -> str:
    lines = [
        "static int misplaced(const void *address)\n{",
        "    return address == NULL || (uintptr_t)address % MODEL_ALIGNMENT != 0;",
        "}\n",
        "int model_run(const void *const *inputs, void *const *outputs)\n{",
        "    (void)inputs, (void)outputs;",
        "    (void)model_fail(NULL, NULL);",
        "    if (!ready)",
        '        return model_fail("model_run was called before model_init", NULL);',
        *_alignment_checks("input", [spec.name for spec in manifest.inputs]),
        *_alignment_checks("output", [spec.name for spec in manifest.outputs]),
    ]
    for number, tensor in enumerate(layout.tensors):
        if tensor.place.region in (Region.INPUT, Region.OUTPUT):
            lines.append(f"    tensors[{number}].data = (void *){_address(tensor.place)};")
    if layout.calls:
        lines += [f"    if (model_call_kernels(calls, {len(layout.calls)}) != 0)", "        return -1;"]
    lines += [_copy(copy) for copy in layout.copies]
    return "\n".join([*lines, "    return 0;", "}\n"])


def _alignment_checks(kind: str, names: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        yield f"    if (misplaced({kind}s[{index}]))"
        yield (
            f"        return model_fail({_quoted(f'{kind} {index} ({name})')}, "
            f'" lies at no multiple of {ALIGNMENT} bytes");'
        )


def _copy(copy: Copy) -> str:
    return f"    memcpy({_address(copy.target)}, {_address(copy.source)}, {copy.size});"


def example_buffers(manifest: Manifest) -> str:
    """Declarations in main.c: memory of the inputs and outputs, their addresses and sizes."""
    return "".join(
        [*_buffers("input", "INPUT", len(manifest.inputs)), *_buffers("output", "OUTPUT", len(manifest.outputs))]
    )


def _buffers(name: str, macro: str, count: int) -> Iterator[str]:
    for index in range(count):
        size = f"AT_LEAST_ONE(MODEL_{macro}_{index}_BYTES)"
        yield f"static _Alignas(MODEL_ALIGNMENT) unsigned char {name}_{index}[{size}];\n"
    # an array without elements is no C: where there are none, one that nothing reads
    addresses = [f"{name}_{index}" for index in range(count)] or ["NULL"]
    sizes = [f"MODEL_{macro}_{index}_BYTES" for index in range(count)] or ["0"]
    yield f"static void *{name}s[] = {{{', '.join(addresses)}}};\n"
    yield f"static const size_t {name}_bytes[] = {{{', '.join(sizes)}}};\n\n"


def _comment(text: str) -> str:
    """Text that cannot end a comment."""
    return text.replace("*/", "* /").replace("/*", "/ *")


def _quoted(text: str) -> str:
    """A C string literal; what is not printable ASCII is octal, which ends by itself after three digits."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{plain}"'
