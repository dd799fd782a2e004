from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import tvm
from tvm import te, tirx, topi

from tests.backends.tvm.kernel_run import HOST, build, error, run
from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.conv import conv, pack_conv_weight, plan_conv
from whet.backends.tvm.kernels.cpu import lanes
from whet.backends.tvm.kernels.linear import linear
from whet.backends.tvm.kernels.tiles import Tile
from whet.backends.tvm.kernels.windows import window
from whet.backends.tvm.pipeline import build_kernel
from whet.backends.tvm.schedule.blocks import anchors
from whet.backends.tvm.schedule.fallback import Fallback
from whet.backends.tvm.schedule.rules import CPU_RULES, schedule_cpu
from whet.backends.tvm.schedule.tiled import rows_outside
from whet.backends.tvm.targets import tvm_target
from whet.ir.target import CATALOGUE

TOLERANCE = 1e-5
Expression = Callable[[te.Tensor], te.Tensor]
Reference = Callable[[torch.Tensor], torch.Tensor]


def softmax(x: te.Tensor) -> te.Tensor:
    k, j = te.reduce_axis((0, x.shape[-1])), te.reduce_axis((0, x.shape[-1]))
    lead = x.shape[:-1]
    peak = te.compute(lead, lambda *i: te.max(x[(*i, k.var)], axis=k))
    power = te.compute(x.shape, lambda *i: fast.exp(x[i] - peak[i[:-1]]))
    total = te.compute(lead, lambda *i: te.sum(power[(*i, j.var)], axis=j))
    return te.compute(x.shape, lambda *i: power[i] / total[i[:-1]])


def layer_norm(x: te.Tensor) -> te.Tensor:
    k, j = te.reduce_axis((0, x.shape[-1])), te.reduce_axis((0, x.shape[-1]))
    lead = x.shape[:-1]
    size = tirx.Cast("float32", x.shape[-1])
    mean = te.compute(lead, lambda *i: te.sum(x[(*i, k.var)], axis=k))
    square = te.compute(x.shape, lambda *i: (x[i] - mean[i[:-1]] / size) * (x[i] - mean[i[:-1]] / size))
    variance = te.compute(lead, lambda *i: te.sum(square[(*i, j.var)], axis=j))
    return te.compute(x.shape, lambda *i: (x[i] - mean[i[:-1]] / size) / te.sqrt(variance[i[:-1]] / size + 1e-5))


def max_pool(x: te.Tensor) -> te.Tensor:
    return topi.nn.pool2d(x, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), "max", layout="NHWC")


def spatial_mean(x: te.Tensor) -> te.Tensor:
    h, w = te.reduce_axis((0, x.shape[1])), te.reduce_axis((0, x.shape[2]))
    total = te.compute((x.shape[0], x.shape[3]), lambda n, c: te.sum(x[n, h, w, c], axis=[h, w]))
    return te.compute(total.shape, lambda *i: total[i] / tirx.Cast("float32", x.shape[1] * x.shape[2]))


def last_sum(x: te.Tensor) -> te.Tensor:
    k = te.reduce_axis((0, x.shape[-1]))
    return te.compute(x.shape[:-1], lambda *i: te.sum(x[(*i, k.var)], axis=k))


def total(x: te.Tensor) -> te.Tensor:
    axes = [te.reduce_axis((0, size)) for size in x.shape]
    return te.compute((), lambda: te.sum(x[tuple(axis.var for axis in axes)], axis=axes))


def relu(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda *i: te.max(x[i], 0.0))


def transpose(x: te.Tensor) -> te.Tensor:
    return te.compute((*x.shape[:-2], x.shape[-1], x.shape[-2]), lambda *i: x[(*i[:-2], i[-1], i[-2])])


def mean_of_channels(x: te.Tensor) -> te.Tensor:
    k = te.reduce_axis((0, x.shape[1]))
    return te.compute((x.shape[0], x.shape[2]), lambda n, m: te.sum(x[n, k, m], axis=k))


FUNCTIONS: dict[str, tuple[Expression, Reference, str, list[tuple[int, ...]]]] = {
    "softmax": (
        softmax,
        lambda x: x.softmax(-1),
        "rows",
        [(3, 5, 64), (2, 7, 37), (40, 256), (9, 3), (3, 100), (2, 197)],
    ),
    "layer_norm": (
        layer_norm,
        lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]),
        "rows",
        [(1, 20, 96), (1, 20, 37), (50, 384)],
    ),
    "max_pool": (
        max_pool,
        lambda x: torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1),
        "stages",
        [(1, 14, 14, 64), (2, 11, 9, 5), (1, 8, 8, 48)],
    ),
    "spatial_mean": (spatial_mean, lambda x: x.mean((1, 2)), "stages", [(1, 7, 7, 128), (2, 5, 3, 30)]),
    "last_sum": (last_sum, lambda x: x.sum(-1), "stages", [(6, 64), (6, 37), (2, 3, 1024), (17,)]),
    "middle_sum": (mean_of_channels, lambda x: x.sum(1), "stages", [(2, 9, 64), (2, 9, 13)]),
    "total": (total, lambda x: x.sum(), "stages", [(4, 5, 64), (3, 7)]),
    "relu": (relu, torch.relu, "stages", [(1, 56, 56, 64), (7, 13, 5), (10007,), (3,), (1, 1), ()]),
    "transpose": (transpose, lambda x: x.mT, "stages", [(1, 3, 4096), (2, 33, 17)]),
}


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, case in FUNCTIONS.items() for shape in case[3]])
def test_static_shapes(name: str, shape: tuple[int, ...]) -> None:
    expression, reference, rule, _ = FUNCTIONS[name]
    x = torch.randn(shape)
    data = te.placeholder(shape, name="data")
    expected = reference(x.double())
    result = run([data, expression(data)], [x], expected.shape)
    # A long row that fills no whole vectors is reduced stage by stage.
    width = lanes(HOST)
    whole = not shape or shape[-1] < 2 * width or shape[-1] % width == 0
    assert result.rule == (rule if whole else "stages")
    assert error(result.output, expected) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "max_pool"])
def test_symbolic_shapes(name: str) -> None:
    expression, reference, _, shapes = FUNCTIONS[name]
    for shape in shapes:
        if not shape:
            continue
        x = torch.randn(shape)
        data = te.placeholder([tirx.Var(f"d{axis}", "int64") for axis in range(len(shape))], name="data")
        expected = reference(x.double())
        result = run([data, expression(data)], [x], expected.shape, symbolic=True)
        assert error(result.output, expected) < TOLERANCE


def test_anchor_behind_which_nothing_can_be_fused() -> None:
    """An epilogue over other axes, a second output and a second anchor leave each anchor its tile."""
    x, weight = torch.randn(1, 9, 9, 8), torch.randn(24, 8, 3, 3)
    geometry = window((3, 3), padding=((1, 1), (1, 1)))
    plan = plan_conv(HOST, (1, 9, 9, 8), 24, geometry)
    packed = pack_conv_weight(weight, plan.block)
    data, filters = te.placeholder((1, 9, 9, 8), name="data"), te.placeholder(tuple(packed.shape), name="filters")
    first = conv(data, filters, geometry=geometry, out_channels=24, plan=plan, name="first")
    swapped = te.compute((1, 24, 81), lambda n, c, p: first[n, p // 9, p % 9, c], name="swapped")
    second = conv(data, filters, geometry=geometry, out_channels=24, plan=plan, name="second")
    func = te.create_prim_func([data, filters, swapped, second])
    scheduled = schedule_cpu(func, HOST)
    assert scheduled.attrs["whet.schedule"] == "stages"
    assert scheduled.script().count("T.vectorized") >= 4
    outputs = [tvm.runtime.tensor(np.full(shape, 7, "float32")) for shape in ((1, 24, 81), (1, 9, 9, 24))]
    arrays = [tvm.runtime.tensor(array.contiguous().numpy()) for array in (x, packed)]
    build_kernel(scheduled, tvm_target(HOST))["main"](*arrays, *outputs)
    expected = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), padding=1)
    assert error(outputs[0].numpy(), expected.reshape(1, 24, 81)) < TOLERANCE
    assert error(outputs[1].numpy(), expected.permute(0, 2, 3, 1)) < TOLERANCE


def test_several_outputs() -> None:
    data = te.placeholder((10, 32), name="data")
    first = relu(data)
    second = last_sum(first)
    func = te.create_prim_func([data, first, second])
    module, rule = build(func)
    assert rule == "stages"
    x = np.random.default_rng(0).standard_normal((10, 32)).astype("float32")
    outputs = [tvm.runtime.tensor(np.zeros(shape, "float32")) for shape in ((10, 32), (10,))]
    module["main"](tvm.runtime.tensor(x), *outputs)
    np.testing.assert_array_equal(outputs[0].numpy(), np.maximum(x, 0))
    np.testing.assert_allclose(outputs[1].numpy(), np.maximum(x, 0).sum(-1), rtol=1e-5)


def test_tuple_reduction() -> None:
    data = te.placeholder((10, 33), name="data")
    result = run([data, topi.argmax(data, axis=1)], [torch.arange(330.0).reshape(10, 33) % 29], (10,))
    np.testing.assert_array_equal(result.output, (torch.arange(330).reshape(10, 33) % 29).argmax(1).numpy())


def test_scan() -> None:
    x = torch.randn(6, 40)
    data = te.placeholder((6, 40), name="data")
    result = run([data, topi.cumsum(data, axis=1)], [x], (6, 40))
    assert error(result.output, x.double().cumsum(1)) < TOLERANCE


def test_sort() -> None:
    x = torch.randn(6, 40)
    data = te.placeholder((6, 40), name="data")
    result = run([data, topi.sort(data, axis=1)], [x], (6, 40))
    np.testing.assert_array_equal(result.output, x.sort(1).values.numpy())


def test_scatter() -> None:
    data, where = te.placeholder((6, 8), name="data"), te.placeholder((6, 3), "int64", name="where")
    updates = te.placeholder((6, 3), name="updates")
    x, index = torch.zeros(6, 8), torch.randint(0, 8, (6, 3))
    values = torch.ones(6, 3)
    y = topi.scatter_elements(data, where, updates, axis=1, reduction="add")
    result = run([data, where, updates, y], [x, index, values], (6, 8))
    np.testing.assert_array_equal(result.output, x.scatter_add(1, index, values).numpy())


@pytest.mark.parametrize("name", [target.name for target in CATALOGUE.values() if target.kind == "cpu"])
def test_functions_compile_for_every_cpu(name: str) -> None:
    target = CATALOGUE[name]
    for expression, _, rule, shapes in FUNCTIONS.values():
        data = te.placeholder(shapes[0], name="data")
        module, taken = build(te.create_prim_func([data, expression(data)]), target)
        assert taken == rule
        assert module.inspect_source("asm")


def test_outer_loops_are_parallel_and_inner_ones_vectors() -> None:
    data = te.placeholder((1, 56, 56, 64), name="data")
    text = schedule_cpu(te.create_prim_func([data, relu(data)]), HOST).script()
    assert "T.parallel" in text
    assert "T.vectorized" in text


@pytest.mark.parametrize(
    ("rows", "inner", "columns", "expected"),
    [
        (196, 96, 576, True),  # more activations than weights
        (49, 160, 960, False),  # more weights than activations
        (20000, 1024, 1024, False),  # more weights than the second cache keeps
    ],
)
def test_what_is_less_is_read_by_every_core(rows: int, inner: int, columns: int, expected: bool) -> None:
    x, weight = te.placeholder((rows, inner), name="x"), te.placeholder((columns // 32, inner, 32), name="weight")
    y = linear(x, weight, out_features=columns, tile=Tile((7,), 32))
    sch = tvm.s_tir.Schedule(te.create_prim_func([x, weight, y]))
    host = dataclasses.replace(HOST, l2_cache_bytes=2 << 20)
    assert rows_outside(sch, anchors(sch, roles.CONTRACTION)[0], None, host) is expected


@pytest.mark.parametrize(
    ("rows", "inner", "columns", "expected"),
    [
        (64, 32, 64, False),  # few products
        (128, 384, 384, True),  # many
        (1, 2048, 1024, True),  # many weights, each read once
    ],
)
def test_contractions_wake_other_cores_for_work_that_pays(rows: int, inner: int, columns: int, expected: bool) -> None:
    x, weight = te.placeholder((rows, inner), name="x"), te.placeholder((columns // 32, inner, 32), name="weight")
    y = linear(x, weight, out_features=columns, tile=Tile((1,), 32))
    assert ("T.parallel" in schedule_cpu(te.create_prim_func([x, weight, y]), HOST).script()) is expected


def test_small_functions_stay_on_one_thread() -> None:
    data = te.placeholder((16, 16), name="data")
    assert "T.parallel" not in schedule_cpu(te.create_prim_func([data, relu(data)]), HOST).script()


def test_the_last_rule_accepts_everything() -> None:
    assert isinstance(CPU_RULES[-1], Fallback)
    data = te.placeholder((4,), name="data")
    func = te.create_prim_func([data, relu(data)])
    scheduled = schedule_cpu(func, HOST, rules=(Fallback(),))
    assert scheduled.attrs["whet.schedule"] == "fallback"


def test_attributes_survive() -> None:
    data = te.placeholder((4, 64), name="data")
    func = te.create_prim_func([data, relu(data)]).with_attr("global_symbol", "named")
    assert schedule_cpu(func, HOST).attrs["global_symbol"] == "named"
