"""What a bundle says of itself: target, inputs and outputs, state, dimensions, structures, checksums,
versions.

The manifest is JSON. It is read from files that may be damaged or hostile, so every field is checked here,
once, and the rest of the runtime works with typed values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from whet.errors import BundleError
from whet.runtime.dimensions import parse
from whet.runtime.dtypes import element_type
from whet.runtime.structure import Spec, check

FORMAT_VERSION: Final = 2
"""The newest format that is read: 2 has packed weights."""
DEVICES: Final = ("cpu", "cuda")

Dim = int | str

OR_SAVE_OLDER: Final = ", or save the bundle with an older one"
"""The second way out for who has a bundle of a newer format."""
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_FEATURE: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class TargetSpec:
    """The device that a bundle was compiled for.

    `arch` is "x86_64", "aarch64" or "arm", `os` is "linux" or "darwin", `features` are the CPU features that
    the code uses, by LLVM's names (`whet.runtime.cpu.FEATURES`), `device` says where tensors live, and
    `device_arch` is the compute capability for CUDA ("sm_90").
    """

    name: str
    triple: str
    arch: str
    os: str
    features: tuple[str, ...] = ()
    device: str = "cpu"
    device_arch: str | None = None

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"target.device is {self.device!r}; known are {', '.join(DEVICES)}")
        for feature in self.features:
            if not _FEATURE.fullmatch(feature):
                raise ValueError(f"target.features has {feature!r}; a feature is LLVM's name without + or -")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: each dimension is an int or an expression over the symbols of
    `Manifest.dimensions`.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", element_type(self.dtype).name)
        for dim in self.shape:
            if isinstance(dim, str):
                parse(dim)
            elif isinstance(dim, bool) or not 0 <= dim < 1 << 62:
                raise ValueError(f"{self.name} has the dimension {dim!r}")

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the symbols in the shape."""
        return frozenset().union(*(parse(dim).symbols for dim in self.shape if isinstance(dim, str)))

    def __str__(self) -> str:
        return f"{self.name}: {element_type(self.dtype).long}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class StateSpec:
    """A state that the runtime keeps between calls; `weight` is the key of its initial value in the weights
    file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    weight: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", element_type(self.dtype).name)


@dataclass(frozen=True)
class Dimension:
    """What sizes a symbol may take: min..max (None: no upper limit) in multiples of `multiple_of`."""

    min: int = 1
    max: int | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.min < 0 or self.multiple_of < 1 or (self.max is not None and self.max < self.min):
            raise ValueError(f"impossible range of a dimension: {self}")

    def __contains__(self, size: int) -> bool:
        return self.min <= size and (self.max is None or size <= self.max) and size % self.multiple_of == 0

    def __str__(self) -> str:
        limit = f"{self.min}..{self.max}" if self.max is not None else f"at least {self.min}"
        return limit if self.multiple_of == 1 else f"{limit}, a multiple of {self.multiple_of}"


@dataclass(frozen=True)
class Member:
    """Checksum and size in bytes of one file in the bundle; `expanded` is what packed weights take in memory."""

    sha256: str
    size: int
    expanded: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class KernelCall:
    """One call of a kernel, in the order in which `main` makes them: what there is to show, nothing that runs.

    `name` is the kernel's in the library, `operations` what it computes, `module` the path in the model that they come
    from, `precision` what it multiplies in, `schedule` the rule that arranged its loops, `reads` the numbers of the
    earlier calls whose results it takes.
    """

    name: str
    operations: tuple[str, ...]
    module: str = ""
    precision: str = ""
    schedule: str = ""
    reads: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "operations": list(self.operations), "reads": list(self.reads)}


@dataclass(frozen=True)
class Manifest:
    """All of it. `weights` are the keys of the tensors that `main` takes after inputs and state, in that
    order.

    `input_structure` is the structure of the pair (positional arguments, keyword arguments); `parameters` are
    the names of the positional arguments, by which they may be passed too. Raises ValueError where fields
    disagree.
    """

    target: TargetSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[str, ...]
    input_structure: Spec
    output_structure: Spec
    state: tuple[StateSpec, ...] = ()
    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    format_version: int = 1
    kernels: tuple[KernelCall, ...] = ()

    def __post_init__(self) -> None:
        check(self.input_structure, len(self.inputs))
        check(self.output_structure, len(self.outputs))
        kinds = [item.get("kind") for item in self.input_structure.get("items", ())]
        if kinds != ["tuple", "dict"]:
            raise ValueError("input_structure is not the structure of (tuple of arguments, dict of keyword arguments)")
        positional = len(self.input_structure["items"][0]["items"])
        if self.parameters and len(self.parameters) != positional:
            raise ValueError(f"parameters names {len(self.parameters)} of {positional} positional arguments")
        unknown = frozenset().union(*(item.symbols for item in self.inputs)) - set(self.dimensions)
        if unknown:
            raise ValueError(f"dimensions says nothing of {', '.join(sorted(unknown))}")
        for index, call in enumerate(self.kernels):
            if not all(0 <= number < index for number in call.reads):
                raise ValueError(f"kernels[{index}] reads what no earlier kernel makes: {call.reads}")

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {
            "format_version": self.format_version,
            "target": {**vars(self.target), "features": list(self.target.features)},
            "inputs": [{**vars(item), "shape": list(item.shape)} for item in self.inputs],
            "outputs": [{**vars(item), "shape": list(item.shape)} for item in self.outputs],
            "state": [{**vars(item), "shape": list(item.shape)} for item in self.state],
            "dimensions": {name: dict(vars(item)) for name, item in self.dimensions.items()},
            "weights": list(self.weights),
            "input_structure": self.input_structure,
            "output_structure": self.output_structure,
            "parameters": list(self.parameters),
            "versions": dict(self.versions),
            "kernels": [item.to_json() for item in self.kernels],
            "members": {name: item.to_json() for name, item in self.members.items()},
        }

    @classmethod
    def from_json(cls, value: Any, source: str = "manifest") -> Manifest:
        """Parse and check. Raises BundleError that names `source` and the field.

        The format version comes first: a newer format may change every other field.
        """
        try:
            top = Reader(value, "")
            version = readable_version(top, FORMAT_VERSION, source, OR_SAVE_OLDER)
            return cls(
                format_version=version,
                target=_target(top.object("target")),
                inputs=tuple(_tensor(item) for item in top.objects("inputs")),
                outputs=tuple(_tensor(item) for item in top.objects("outputs")),
                state=tuple(_state(item) for item in top.objects("state")),
                dimensions={name: _dimension(item) for name, item in top.table("dimensions").items()},
                weights=top.texts("weights"),
                input_structure=top.object("input_structure").fields,
                output_structure=top.object("output_structure").fields,
                parameters=top.texts("parameters"),
                versions={name: str(text) for name, text in top.object("versions").fields.items()},
                members={name: read_member(item) for name, item in top.table("members").items()},
                # bundles of before have none
                kernels=tuple(_kernel(item) for item in top.objects("kernels")) if "kernels" in top.fields else (),
            )
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{source} is not a manifest that whet wrote: {error}. Save the bundle again") from error


class Reader:
    """A JSON object whose fields are taken out by name and type; ValueError names the path of a wrong one."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'the manifest'} is not an object")
        self.fields: dict[str, Any] = value
        self.path = path

    def _get(self, name: str, *types: type) -> Any:
        value = self.fields.get(name)
        if type(value) not in types:
            raise ValueError(f"{self.path}{name} is {str(value)[:60]!r}")
        return value

    def integer(self, name: str) -> int:
        """A size: 0 to 2^62 - 1."""
        number = int(self._get(name, int))
        if not 0 <= number < 1 << 62:
            raise ValueError(f"{self.path}{name} is {number}")
        return number

    def optional_integer(self, name: str) -> int | None:
        """The same, or null."""
        return None if self.fields.get(name) is None else self.integer(name)

    def text(self, name: str) -> str:
        """A text."""
        return str(self._get(name, str))

    def optional_text(self, name: str) -> str | None:
        """A text, or null."""
        return None if self.fields.get(name) is None else self.text(name)

    def list(self, name: str, *types: type) -> Sequence[Any]:
        """A list with items of these types."""
        items: Sequence[Any] = self._get(name, list)
        if not all(type(item) in types for item in items):
            raise ValueError(f"{self.path}{name} has an item of another type")
        return items

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self.list(name, str))

    def object(self, name: str) -> Reader:
        """A field that is an object itself."""
        return Reader(self._get(name, dict), f"{self.path}{name}.")

    def objects(self, name: str) -> tuple[Reader, ...]:
        """A list of objects."""
        return tuple(Reader(item, f"{self.path}{name}[{i}].") for i, item in enumerate(self.list(name, dict)))

    def table(self, name: str) -> dict[str, Reader]:
        """An object whose values are objects."""
        inside = self.object(name)
        return {key: Reader(item, f"{inside.path}{key}.") for key, item in inside.fields.items()}


def parse_target(value: Any) -> TargetSpec:
    """A target out of JSON. Raises ValueError."""
    return _target(Reader(value, "target."))


def _target(reader: Reader) -> TargetSpec:
    return TargetSpec(
        name=reader.text("name"),
        triple=reader.text("triple"),
        arch=reader.text("arch"),
        os=reader.text("os"),
        features=reader.texts("features"),
        device=reader.text("device"),
        device_arch=reader.optional_text("device_arch"),
    )


def _tensor(reader: Reader) -> TensorSpec:
    return TensorSpec(reader.text("name"), tuple(reader.list("shape", int, str)), reader.text("dtype"))


def _state(reader: Reader) -> StateSpec:
    shape = tuple(reader.list("shape", int))
    return StateSpec(reader.text("name"), shape, reader.text("dtype"), reader.text("weight"))


def _dimension(reader: Reader) -> Dimension:
    return Dimension(reader.integer("min"), reader.optional_integer("max"), reader.integer("multiple_of"))


def _kernel(reader: Reader) -> KernelCall:
    return KernelCall(
        reader.text("name"),
        reader.texts("operations"),
        reader.text("module"),
        reader.text("precision"),
        reader.text("schedule"),
        tuple(reader.list("reads", int)),
    )


def readable_version(reader: Reader, newest: int, source: str, otherwise: str = "") -> int:
    """The format version of an object. Raises BundleError where it is above `newest`, ValueError where it is no number.

    `otherwise` is what else than an upgrade helps.
    """
    version = reader.integer("format_version")
    if version > newest:
        raise BundleError(
            f"{source} has format version {version}; this whet reads up to {newest}. "
            f"Upgrade whet on this device (pip install --upgrade whet){otherwise}"
        )
    return version


def read_member(reader: Reader) -> Member:
    """Checksum and sizes of one member. Raises ValueError."""
    digest = reader.text("sha256")
    if not _HEX.fullmatch(digest):
        raise ValueError(f"{reader.path}sha256 is {digest[:70]!r}")
    return Member(digest, reader.integer("size"), reader.optional_integer("expanded"))
