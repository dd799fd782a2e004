"""Wrong inputs are refused by name, with what was given and what the model wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import call_structure, host_target, output_structure
from whet.errors import InputError
from whet.runtime import Dimension, LoadedModule, Manifest, TensorSpec, load
from whet.runtime.binding import InputBinder


@pytest.fixture(scope="module")
def loaded(affine_bundle: Path) -> LoadedModule:
    return load(affine_bundle)


def _x(rows: int = 4, columns: int = 8, dtype: Any = "f4") -> Any:
    return np.ones((rows, columns), dtype)


def _mask(rows: int = 4) -> Any:
    return np.ones((rows, 8), bool)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {"mask": _mask()}, r"input 'x' is missing; the model takes \(x, mask=\)"),
        ((_x(),), {}, r"input 'mask' is missing"),
        ((_x(), _mask()), {}, r"2 positional argument\(s\) were given; the model takes \(x, mask=\)"),
        ((_x(),), {"mask": _mask(), "extra": 1}, r"unexpected keyword argument\(s\) 'extra'"),
        ((_x(dtype="f8"),), {"mask": _mask()}, r"'x' is float64\[4, 8\]; the model wants float32\[s0, 8\]"),
        ((_x(),), {"mask": _x(dtype="u1")}, r"'mask' is uint8\[4, 8\]; the model wants bool\[s0, 8\]"),
        ((_x(dtype="c8"),), {"mask": _mask()}, r"'x' is complex64"),
        ((_x(columns=7),), {"mask": _mask()}, r"'x' is float32\[4, 7\].*s0: 2\.\.64, a multiple of 2"),
        ((_x()[0],), {"mask": _mask()}, r"'x' is float32\[8\]"),
        ((_x(),), {"mask": _mask(6)}, r"'mask' is bool\[6, 8\].*and s0 is 4"),
        ((_x(3),), {"mask": _mask(3)}, r"s0 = 3 is not allowed"),
        ((_x(66),), {"mask": _mask(66)}, r"s0 = 66 is not allowed"),
        ((_x(0),), {"mask": _mask(0)}, r"s0 = 0 is not allowed"),
        (([[1.0] * 8] * 4,), {"mask": _mask()}, r"'x' is a list; give a numpy array"),
        ((None,), {"mask": _mask()}, r"'x' is None; the model wants a tensor"),
        ((1.0,), {"mask": _mask()}, r"'x' is a float"),
    ],
)
def test_refused(loaded: LoadedModule, args: tuple[Any, ...], kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        loaded(*args, **kwargs)


def test_positional_by_name(loaded: LoadedModule) -> None:
    by_name = loaded(x=_x(), mask=_mask())["y"]
    np.testing.assert_array_equal(by_name, loaded(_x(), mask=_mask())["y"])


def _binder(inputs: tuple[TensorSpec, ...], structure: Any, **fields: Any) -> InputBinder:
    manifest = Manifest(
        target=host_target(),
        inputs=inputs,
        outputs=(),
        weights=(),
        input_structure=structure,
        output_structure=output_structure(None),
        **fields,
    )
    return InputBinder(manifest)


def test_nested_arguments() -> None:
    specs = tuple(TensorSpec(name, (2,), "f32") for name in ("a", "b", "c"))
    binder = _binder(
        specs,
        call_structure({"p": "t", "q": ["t", 3]}, None, flag=True, tail=("t",)),
        parameters=("box", "none"),
    )
    arrays = [np.full(2, value, "f4") for value in range(3)]
    box = {"q": [arrays[1], 3], "p": arrays[0]}

    given = binder.bind((box,), {"tail": (arrays[2],)})  # None and True need not be given
    assert [item.value for item in given] == arrays
    assert [item.value for item in binder.bind((box, None), {"tail": [arrays[2]], "flag": True})] == arrays

    def refused(words: str, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(InputError, match=words):
            binder.bind(args, kwargs)

    refused(r"'tail' is missing", box)
    refused(r"'box'\['q'\] has 1 item", {**box, "q": [arrays[1]]}, tail=(arrays[2],))
    refused(
        r"'box'\['q'\]\[1\] is 4; the model was compiled for 3",
        {**box, "q": [arrays[1], 4]},
        tail=(arrays[2],),
    )
    refused(r"'box' has the keys \['p'\]", {"p": arrays[0]}, tail=(arrays[2],))
    refused(r"'none' is a int; the model was compiled with None", box, 1, tail=(arrays[2],))
    refused(r"'flag' is False", box, tail=(arrays[2],), flag=False)
    refused(r"'tail' is a ndarray; the model wants a tuple of 1", box, tail=arrays[2])
    refused(r"'c' is float32\[3\]", box, tail=(np.ones(3, "f4"),))


def test_numbers_for_rank_zero() -> None:
    """A Python number is taken where a tensor without dimensions is wanted, if its type can hold it."""
    for dtype, good, bad in (
        ("f32", 2, "x"),
        ("f32", 1.5, [1.5]),
        ("i64", -3, 1.5),
        ("u8", 255, 256),
        ("i8", True, 300),
        ("bool", True, 1),
    ):
        binder = _binder((TensorSpec("n", (), dtype),), call_structure("t"))
        (given,) = binder.bind((good,), {})
        assert given.shape == () and given.value.item() == good
        with pytest.raises(InputError, match="'n'"):
            binder.bind((bad,), {})
    (given,) = _binder((TensorSpec("n", (), "bf16"),), call_structure("t")).bind((1.00390625,), {})
    assert given.value.item() == 0x3F80  # 1 + 2^-8 lies between two: to the even one


def test_expressions_over_symbols() -> None:
    specs = (
        TensorSpec("a", ("s0 + s1",), "f32"),
        TensorSpec("b", ("s0",), "f32"),
        TensorSpec("c", ("max(s0, s1) // 2",), "f32"),
        TensorSpec("d", ("s1",), "f32"),
    )
    binder = _binder(specs, call_structure("t", "t", "t", "t"), dimensions={"s0": Dimension(), "s1": Dimension()})

    def bind(*sizes: int) -> None:
        binder.bind(tuple(np.ones(size, "f4") for size in sizes), {})

    bind(7, 2, 2, 5)
    with pytest.raises(InputError, match=r"'a' is float32\[8\].*s0 \+ s1 is 7 here"):
        bind(8, 2, 2, 5)
    with pytest.raises(InputError, match=r"'c' is float32\[3\].*max\(s0, s1\) // 2 is 2 here"):
        bind(7, 2, 3, 5)


def test_a_symbol_that_cannot_be_determined_is_left_to_the_code() -> None:
    binder = _binder(
        (TensorSpec("a", ("s0 + s1",), "f32"),),
        call_structure("t"),
        dimensions={"s0": Dimension(), "s1": Dimension()},
    )
    assert binder.bind((np.ones(3, "f4"),), {})[0].shape == (3,)
