"""Symbolic dimensions: every form of torch.export's dynamic_shapes, ranges, divisibility, numbers made of sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.frontend.operators import Call, Function, randn
from whet.errors import CaptureError, InputError
from whet.frontend import import_model
from whet.frontend.dimension_names import DimensionNames
from whet.ir import DimRange, Graph, Interpreter, parse_graph, print_graph
from whet.ir.dimensions import parse_dim
from whet.ir.printer import graph_tensors

BATCH, LENGTH = Dim("batch", min=1, max=64), 2 * Dim("half", max=64)


class Decoder(nn.Module):
    """One causal attention layer over any batch and length."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, length, width = x.shape
        h = self.norm(self.linear(x)).view(batch, length, 2, 4).transpose(1, 2)
        h = F.scaled_dot_product_attention(h, h, h, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        h = h + torch.arange(length).float()[None, :, None] / length + length**0.5
        return torch.cat([h, x], 1)[:, : length // 2], h.mean(1), h.flatten(0, 1)


def agrees(graph: Graph, model: nn.Module, *shapes: tuple[int, ...]) -> None:
    """At every shape, also after the text form."""
    again = parse_graph(print_graph(graph), graph_tensors(graph))
    for shape in shapes:
        x = randn(*shape)
        expected = model(x)
        expected = expected if isinstance(expected, (tuple, list)) else (expected,)
        for source in (graph, again):
            for result, reference in zip(Interpreter(source)(x), expected, strict=True):
                torch.testing.assert_close(result, torch.as_tensor(reference))


FORMS: dict[str, Any] = {
    "dims": ({0: BATCH, 1: LENGTH},),
    "auto": ({0: Dim.AUTO, 1: Dim.AUTO},),
    "dynamic": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},),
    "by_name": {"x": {0: BATCH, 1: LENGTH}},
    "a_dim_each": ((BATCH, LENGTH, None),),
    "static_mark": ((BATCH, LENGTH, Dim.STATIC),),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_dynamic_shapes(form: str) -> None:
    model = Decoder().eval()
    graph = import_model(model, (randn(3, 8, 8),), dynamic_shapes=FORMS[form])
    agrees(graph, model, (3, 8, 8), (5, 12, 8), (1, 4, 8))


def test_ranges() -> None:
    graph = import_model(Decoder().eval(), (randn(3, 8, 8),), dynamic_shapes=FORMS["dims"])
    assert str(graph.inputs[0].type) == "f32[batch, 2*half, 8]"
    assert graph.dimensions == {"batch": DimRange(1, 64), "half": DimRange(1, 64)}
    with pytest.raises(InputError, match=r"input 'x': dimension 0 \(batch\) is 65, allowed are 1\.\.64$"):
        Interpreter(graph)(randn(65, 4, 8))
    with pytest.raises(InputError):
        Interpreter(graph)(randn(2, 5, 8))


def test_open_ranges_and_minimum() -> None:
    shapes = ({0: Dim("n", min=4), 1: Dim.AUTO},)
    graph = import_model(Call(lambda x: x * 2), (randn(6, 5),), dynamic_shapes=(shapes,))
    assert graph.dimensions == {"n": DimRange(4, None), "s0": DimRange(1, None)}


def test_multiples() -> None:
    graph = import_model(Call(lambda x: x + 1), (randn(16, 3),), dynamic_shapes=(({0: 8 * Dim("n", max=9)},),))
    assert str(graph.inputs[0].type) == "f32[8*n, 3]"
    assert graph.dimensions["n"] == DimRange(1, 9)
    with pytest.raises(InputError):
        Interpreter(graph)(randn(12, 3))


SPLITS: dict[str, Function] = {
    "reshape": lambda x: x.reshape(-1, 4, x.shape[1]).sum(1),
    "view": lambda x: x.view(x.shape[0] // 4, 4, 6).transpose(0, 1),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[None, None, :, :4], 4),
}


@pytest.mark.parametrize("name", SPLITS)
def test_divisibility_comes_from_the_model(name: str) -> None:
    """Splitting a dimension by 4 makes it a multiple of 4."""
    model = Call(SPLITS[name])
    graph = import_model(model, (randn(8, 6),), dynamic_shapes=(({0: Dim.AUTO},),))
    assert str(graph.inputs[0].type) == "f32[4*s0, 6]"
    agrees(graph, model, (8, 6), (20, 6))
    with pytest.raises(InputError):
        Interpreter(graph)(randn(10, 6))


class Pictures(nn.Module):
    """Convolutions, pooling and resizing over any height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.grow = nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = F.max_pool2d(self.norm(self.conv(x)), 2, ceil_mode=True)
        back = F.interpolate(self.grow(y), size=x.shape[2:], mode="bilinear")
        grown = F.interpolate(x, scale_factor=1.5), F.interpolate(x, scale_factor=2, mode="bilinear")
        return back + x, *grown, F.adaptive_avg_pool2d(y, 1), F.avg_pool2d(y, 2, ceil_mode=True)


def test_pictures_of_any_size() -> None:
    model = Pictures().eval()
    shapes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    graph = import_model(model, (randn(2, 3, 16, 16),), dynamic_shapes=shapes)
    agrees(graph, model, (2, 3, 16, 16), (5, 3, 31, 18), (1, 3, 40, 23))


def test_factors_that_are_no_fractions_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"0\.3, which is no exact fraction.*size="):
        import_model(
            Call(lambda x: F.interpolate(x, scale_factor=0.3)),
            (randn(2, 3, 16, 16),),
            dynamic_shapes=(({2: Dim.AUTO},),),
        )


def test_numbers_made_of_sizes() -> None:
    model = Call(lambda x: [x.shape[0] * 2, x * x.shape[0], x / (x.shape[0] + 1), x + x.shape[0] ** -0.5])
    graph = import_model(model, (randn(4, 3),), dynamic_shapes=(({0: Dim.AUTO},),))
    agrees(graph, model, (4, 3), (7, 3))


def test_one_symbol_in_two_inputs() -> None:
    n = Dim("n", max=99)

    class Adds(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    graph = import_model(Adds().eval(), (randn(4, 3), randn(4, 3)), dynamic_shapes=({0: n}, {0: n}))
    assert [str(value.type) for value in graph.inputs] == ["f32[n, 3]"] * 2
    with pytest.raises(InputError, match="dimension 0"):
        Interpreter(graph)(randn(4, 3), randn(5, 3))


def named(*dims: Any) -> list[str]:
    """What the dimensions of an input are called."""
    shapes = (dict(enumerate(dims)),)
    example = (randn(*(8 + index for index in range(len(dims)))),)
    (value,) = import_model(Call(lambda x: x + 1), example, dynamic_shapes=(shapes,)).inputs
    return [str(item) for item in value.type.shape]


def test_users_names_are_kept() -> None:
    assert named(Dim("batch"), Dim("length", max=64)) == ["batch", "length"]
    # The part that is named, of what is derived from it.
    assert named(2 * Dim("half"), Dim("rows")) == ["2*half", "rows"]
    # s0 is for those without a name, and not for two.
    assert named(Dim.AUTO, Dim("batch"), Dim.DYNAMIC) == ["s0", "batch", "s1"]
    assert named(Dim.AUTO, Dim("s0"), Dim.AUTO) == ["s1", "s0", "s2"]


def test_names_that_the_text_form_cannot_write() -> None:
    """Words of Python and of the grammar, and letters beyond ASCII."""
    shown = named(Dim("class"), Dim("max"), Dim("größe"), Dim("gr__e"))
    assert shown == ["class_", "max_", "gr__e", "gr__e_1"]
    assert [str(parse_dim(name)) for name in shown] == shown


def test_a_name_for_a_part_that_the_user_did_not_name() -> None:
    """Where torch or the model makes a dimension a multiple of something, the name of the whole is not the part's."""
    names = DimensionNames([])
    whole, other = sympy.Symbol("s77"), sympy.Symbol("s27")
    names._given = {whole: "batch", other: "batch_over_4"}
    assert [names.name(other), names.name(whole, 4)] == ["batch_over_4", "batch_over_4_1"]


def test_programs_from_files_have_no_names(tmp_path: Path) -> None:
    """torch.export.save does not keep them; a program that was exported in this process has them."""
    shapes = (({0: Dim("batch", max=9)},),)
    program = torch.export.export(Call(lambda x: x + 1), (randn(4, 3),), dynamic_shapes=shapes)
    assert str(import_model(program).inputs[0].type) == "f32[batch, 3]"
    torch.export.save(program, tmp_path / "m.pt2")
    graph = import_model(tmp_path / "m.pt2")
    assert str(graph.inputs[0].type) == "f32[s0, 3]"
    assert graph.dimensions == {"s0": DimRange(1, 9)}


def test_a_dimension_that_the_model_fixes() -> None:
    with pytest.raises(CaptureError, match=r"dynamic_shapes"):
        import_model(nn.Linear(3, 2).eval(), (randn(4, 3),), dynamic_shapes=({1: Dim("features")},))


def test_text_does_not_depend_on_torchs_names() -> None:
    texts = {
        print_graph(import_model(Call(lambda x: x.sum(0)), (randn(4, size),), dynamic_shapes=(({1: Dim.AUTO},),)))
        for size in (5, 9)
    }
    assert len(texts) == 1
