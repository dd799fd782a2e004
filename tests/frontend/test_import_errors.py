"""Models that cannot be imported: the error names the thing, where it is, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from tests.frontend.operators import Function, imported, randn
from whet.errors import CaptureError, UnsupportedOpError, WhetError
from whet.frontend import import_model
from whet.frontend.hints import described

X = randn(2, 3)


def branch(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x - 1


def sized_by_data(x: Tensor) -> Tensor:
    return torch.zeros(int(x.sum().item()))


@pytest.mark.parametrize("function", [branch, sized_by_data])
def test_control_flow_on_data(function: Function) -> None:
    with pytest.raises(CaptureError, match=r"data-dependent control flow(.|\n)*torch\.where"):
        imported(function, X)


@pytest.mark.parametrize(
    "function", [lambda x: x[x > 0], lambda x: x * x.sum().item(), lambda x: torch.masked_select(x, x > 0)]
)
def test_shapes_and_numbers_that_depend_on_data(function: Function) -> None:
    with pytest.raises(WhetError, match=r"depends on the data(.|\n)*torch\.where"):
        imported(function, X)


REFUSED: dict[str, tuple[Function, str]] = {
    "nonzero": (lambda x: x.nonzero(), r"aten\.nonzero\.default \(its shape depends on the data"),
    "cond": (lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)), r"cond \(control flow"),
    "while_loop": (
        lambda x: while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (torch.tensor(0), x))[1],
        r"while_loop \(control flow",
    ),
    "random": (lambda x: x + torch.rand_like(x), r"aten\.rand_like\.default \(random"),
    "fft": (lambda x: torch.fft.rfft(x).abs(), r"_fft_r2c\.default \(complex numbers"),
    "complex": (lambda x: torch.complex(x, x).abs(), r"aten\.complex\.default \(complex numbers"),
    "view_as_complex": (lambda x: torch.view_as_complex(x[:, :2].contiguous()).abs(), r"view_as_complex\.default"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operators_without_converter(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UnsupportedOpError, match=message):
        imported(function, X)


def test_every_unsupported_operator_is_listed_once_with_its_line() -> None:
    def several(x: Tensor) -> Tensor:
        return x + torch.rand_like(x) + torch.rand_like(x) + torch.randn_like(x)

    with pytest.raises(UnsupportedOpError) as caught:
        imported(several, X)
    names = [name.split(" ")[0] for name, _ in caught.value.operators]
    assert names == ["aten.rand_like.default", "aten.randn_like.default"]
    assert all("operators.py:" in where for _, where in caught.value.operators)


def test_custom_operator() -> None:
    @torch.library.custom_op("whet_tests::thing", mutates_args=())
    def thing(x: Tensor) -> Tensor:
        return x.sin()

    thing.register_fake(torch.empty_like)
    with pytest.raises(UnsupportedOpError, match=r"whet_tests\.thing\.default(.|\n)*Add a converter"):
        imported(lambda x: thing(x) + 1, X)


def test_hints_are_for_whole_names() -> None:
    assert described("aten.add.Tensor") == "aten.add.Tensor"
    assert "packed" in described("aten.lstm.data")


def test_input_that_the_model_writes_into() -> None:
    with pytest.raises(CaptureError, match=r"writes into 'input'.*return the new tensor"):

        class Writes(nn.Module):
            def forward(self, input: Tensor) -> Tensor:
                return input.add_(1) * 2

        import_model(Writes().eval(), (X,))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 2), nn.Dropout()),
        nn.Sequential(nn.Linear(3, 2).eval(), nn.BatchNorm1d(2)).eval()[1].train() and nn.Sequential(nn.BatchNorm1d(3)),
    ],
)
def test_training_mode(model: nn.Module) -> None:
    with pytest.raises(CaptureError, match=r"training mode.*eval\(\)"):
        import_model(model, (X,))


def test_a_part_in_training_mode_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(CaptureError, match=r"training mode \(1\)"):
        import_model(model, (X,))


def test_functional_dropout_that_is_always_on() -> None:
    with pytest.raises(CaptureError, match=r"dropout at .*operators.py:\d+ is in training mode"):
        imported(lambda x: nn.functional.dropout(x), X)


def test_dropout_of_evaluation_mode_is_nothing() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.Linear(3, 3)).eval()
    graph = import_model(model, (X,))
    assert [operation.name for operation in graph.operations if operation.name != "constant"] == ["linear"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    model = nn.Linear(3, 2).eval()
    model.weight.data[0, 0] = value
    with pytest.raises(CaptureError, match=r"parameter 'weight'.*broken"):
        import_model(model, (X,))
    with pytest.raises(CaptureError, match="weight"):
        import_model(torch.export.export(model, (X,)))


def test_statistics_that_are_not_numbers() -> None:
    model = nn.BatchNorm1d(3).eval()
    assert model.running_mean is not None
    model.running_mean[0] = torch.nan
    with pytest.raises(CaptureError, match="running_mean"):
        import_model(model, (X,))


def test_a_buffer_may_be_infinite() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.mask).softmax(-1)

    import_model(Masked().eval(), (X,))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [((randn(2, 4),), "Linear(.|\n)*example_inputs"), ((X, X), "too many positional"), ((), "Linear")],
)
def test_inputs_that_do_not_fit(inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        import_model(nn.Linear(3, 2).eval(), inputs, {} if inputs else {"y": X})


def test_dtypes_that_whet_has_not() -> None:
    with pytest.raises(CaptureError, match=r"float8"):
        imported(lambda x: x.to(torch.float8_e4m3fn).float(), X)


def test_other_things_than_models() -> None:
    with pytest.raises(CaptureError, match=r"int: pass an nn\.Module"):
        import_model(3)  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"no file .*missing\.pt2"):
        import_model(tmp_path / "missing.pt2")
    broken = tmp_path / "broken.pt2"
    broken.write_text("no zip")
    with pytest.raises(CaptureError, match=r"broken\.pt2 is not a program"):
        import_model(broken)


def test_a_number_left_open() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            return x * n

    shapes = {"x": None, "n": torch.export.Dim.DYNAMIC}
    with pytest.raises(CaptureError, match=r"Python number.*0-d tensor"):
        import_model(Scaled().eval(), (X, 3), dynamic_shapes=shapes)
    graph = import_model(Scaled().eval(), (X, 3))
    assert graph.input_structure["items"][0]["items"][1] == {"kind": "constant", "value": 3}
