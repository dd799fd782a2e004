from __future__ import annotations

import pytest
import torch
from tvm import te, tirx

from tests.backends.tvm.kernel_run import HOST, Run, error, last, run
from whet.backends.tvm.kernels.conv import conv, merged_groups, pack_conv_weight, plan_conv
from whet.backends.tvm.kernels.depthwise import depthwise, depthwise_tile, pack_depthwise_weight
from whet.backends.tvm.kernels.windows import window
from whet.ir.target import CATALOGUE, Target

CONVOLVE = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
TOLERANCE = 1e-5

# (batch, spatial, in, out, kernel, stride, (before, after), dilation, groups)
CASES = {
    "3x3": (1, (14, 14), 32, 64, 3, 1, (1, 1), 1, 1),
    "odd everything": (2, (13, 9), 7, 24, 3, 2, (1, 1), 1, 1),
    "3 outputs": (1, (11, 5), 5, 3, 3, 1, (1, 1), 1, 1),
    "stem": (1, (32, 32), 3, 64, 7, 2, (3, 3), 1, 1),
    "valid": (1, (15, 15), 8, 16, 3, 1, (0, 0), 1, 1),
    "strided 1x1": (1, (15, 15), 8, 40, 1, 2, (0, 0), 1, 1),
    "pointwise": (2, (7, 7), 48, 1000, 1, 1, (0, 0), 1, 1),
    "dilated": (1, (16, 16), 8, 16, 3, 1, (2, 2), 2, 1),
    "asymmetric padding": (1, (10, 10), 8, 16, 4, 1, (1, 2), 1, 1),
    "1d": (2, (40,), 16, 40, 5, 1, (2, 2), 1, 1),
    "3d": (1, (4, 9, 9), 6, 20, 3, 1, (1, 1), 1, 1),
    "wide groups": (1, (8, 8), 64, 64, 3, 1, (1, 1), 1, 2),
    "narrow groups": (1, (8, 8), 64, 64, 3, 1, (1, 1), 1, 16),
    "odd groups": (1, (8, 8), 30, 50, 3, 1, (1, 1), 1, 5),
    "grouped 1x1": (1, (8, 8), 64, 96, 1, 1, (0, 0), 1, 4),
    "more weights than the cache": (1, (7, 7), 512, 512, 3, 1, (1, 1), 1, 1),
}


def convolve(name: str, target: Target = HOST) -> tuple[Run, torch.Tensor]:
    batch, spatial, inputs, outputs, size, stride, padding, dilation, groups = CASES[name]
    rank = len(spatial)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inputs, *spatial, generator=generator)
    weight = torch.randn(outputs, inputs // groups, *(size,) * rank, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    geometry = window((size,) * rank, (stride,) * rank, (padding,) * rank, (dilation,) * rank)
    plan = plan_conv(target, (batch, *spatial, inputs), outputs, geometry, groups)
    packed = pack_conv_weight(weight, plan.block, groups, plan.groups)
    data = te.placeholder((batch, *spatial, inputs), name="data")
    filters = te.placeholder(tuple(packed.shape), name="filters")
    offsets = te.placeholder((outputs,), name="offsets")
    y = conv(data, filters, geometry=geometry, out_channels=outputs, plan=plan)
    biased = te.compute(y.shape, lambda *i: y[i] + offsets[i[-1]], name="biased")
    positive = te.compute(y.shape, lambda *i: te.max(biased[i], 0.0), name="positive")
    grown = torch.nn.functional.pad(x.double(), [*padding] * rank)
    expected = CONVOLVE[rank](grown, weight.double(), bias.double(), stride=stride, dilation=dilation, groups=groups)
    reference = last(expected.relu())
    arrays = [last(x), packed, bias]
    return run([data, filters, offsets, positive], arrays, reference.shape, target=target), reference


@pytest.mark.parametrize("name", CASES)
def test_conv_equals_torch(name: str) -> None:
    result, expected = convolve(name)
    assert result.rule == "contraction"
    assert error(result.output, expected) < TOLERANCE


@pytest.mark.parametrize("name", ["3x3", "odd everything", "narrow groups"])
def test_conv_on_narrow_vectors(name: str) -> None:
    result, expected = convolve(name, CATALOGUE["avx2"])
    assert result.rule == "contraction"
    assert error(result.output, expected) < TOLERANCE


def test_accumulators_stay_in_registers() -> None:
    """The inner loop adds into registers: no accumulator is loaded or stored inside of it."""
    result, _ = convolve("3x3", CATALOGUE["avx2"])
    body = _innermost_loop(result.assembly, "vfmadd")
    assert sum("vfmadd" in line for line in body) >= 8
    assert not any("vmovups\t%ymm" in line or "vmovaps\t%ymm" in line for line in body)


@pytest.mark.parametrize("target", ["avx2", "avx512"])
def test_weights_that_no_cache_keeps_are_prefetched(target: str) -> None:
    """One prefetch for each cache line of weights that a step reads, and none for weights that stay in the cache."""
    result, expected = convolve("more weights than the cache", CATALOGUE[target])
    body = _innermost_loop(result.assembly, "vfmadd")
    vectors = {line.split()[-1] for line in body if "vmov" in line and "(%" in line}
    bytes_read = len(vectors) * CATALOGUE[target].vector_bits // 8
    assert sum("prefetch" in line for line in body) == -(-bytes_read // 64)
    assert error(result.output, expected) < TOLERANCE
    few, _ = convolve("3x3", CATALOGUE[target])
    assert "prefetch" not in few.assembly


def _innermost_loop(assembly: str, instruction: str) -> list[str]:
    """The lines of the basic block that holds the most of one instruction."""
    blocks: list[list[str]] = [[]]
    for line in assembly.splitlines():
        if line.startswith(".LBB"):
            blocks.append([])
        blocks[-1].append(line)
    return max(blocks, key=lambda lines: sum(instruction in line for line in lines))


def test_packing_pads_outputs_with_zeros() -> None:
    packed = pack_conv_weight(torch.ones(5, 2, 3, 3), 4)
    assert packed.shape == (2, 3, 3, 2, 4)
    assert float(packed[1, ..., 1:].abs().sum()) == 0.0
    assert float(packed.sum()) == 5 * 2 * 9


def test_narrow_groups_merge_to_whole_vectors() -> None:
    assert merged_groups(32, 128, 16) == 8
    assert merged_groups(2, 64, 16) == 2
    assert merged_groups(5, 50, 16) == 1
    assert merged_groups(1, 8, 16) == 1


def test_symbolic_batch() -> None:
    batch = tirx.Var("batch", "int64")
    geometry = window((3, 3), (1, 1), ((1, 1), (1, 1)))
    plan = plan_conv(HOST, (batch, 9, 9, 8), 24, geometry)
    weight = torch.randn(24, 8, 3, 3)
    packed = pack_conv_weight(weight, plan.block)
    data = te.placeholder((batch, 9, 9, 8), name="data")
    filters = te.placeholder(tuple(packed.shape), name="filters")
    y = conv(data, filters, geometry=geometry, out_channels=24, plan=plan)
    x = torch.randn(3, 8, 9, 9)
    expected = last(torch.nn.functional.conv2d(x, weight, padding=1))
    result = run([data, filters, y], [last(x), packed], expected.shape, symbolic=True)
    assert result.rule == "contraction"
    assert error(result.output, expected) < TOLERANCE


# (batch, spatial, channels, kernel, stride, padding, multiplier)
DEPTHWISE = {
    "3x3": (1, (14, 14), 48, 3, 1, 1, 1),
    "strided": (2, (13, 9), 32, 3, 2, 1, 1),
    "odd channels": (1, (9, 9), 7, 5, 1, 2, 1),
    "24 channels": (1, (9, 9), 24, 3, 1, 1, 1),
    "multiplier": (1, (9, 9), 10, 3, 1, 1, 2),
    "valid": (1, (9, 9), 16, 3, 1, 0, 1),
    "1d": (1, (50,), 20, 3, 1, 1, 1),
    "3d": (1, (4, 6, 6), 16, 3, 1, 1, 1),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_equals_torch(name: str, masked: bool) -> None:
    batch, spatial, channels, size, stride, padding, multiplier = DEPTHWISE[name]
    rank, outputs = len(spatial), channels * multiplier
    geometry = window((size,) * rank, (stride,) * rank, ((padding, padding),) * rank)
    x, weight = torch.randn(batch, channels, *spatial), torch.randn(outputs, 1, *(size,) * rank)
    tile = depthwise_tile(HOST, (batch, *spatial, channels), outputs, geometry)
    packed = pack_depthwise_weight(weight)
    data = te.placeholder((batch, *spatial, channels), name="data")
    filters = te.placeholder(tuple(packed.shape), name="filters")
    y = depthwise(data, filters, geometry=geometry, tile=tile, masked=masked)
    held = te.compute(y.shape, lambda *i: te.max(te.min(y[i], 6.0), 0.0), name="held")
    expected = CONVOLVE[rank](x.double(), weight.double(), stride=stride, padding=padding, groups=channels)
    reference = last(expected.clamp(0, 6))
    result = run([data, filters, held], [last(x), packed], reference.shape)
    assert result.rule == "depthwise"
    assert error(result.output, reference) < TOLERANCE
    copied = any(operation.name == "depthwise_pad" for operation in producers(y))
    assert copied == (padding > 0 and not masked)


def test_infinity_inside_is_nothing_to_the_border() -> None:
    """A masked position reads the nearest element: times a zero, infinity would be NaN."""
    x, weight = torch.ones(1, 16, 5, 5), torch.ones(16, 1, 3, 3)
    x[:, :, 0, 0] = float("inf")
    geometry = window((3, 3), None, ((1, 1), (1, 1)))
    data, filters = te.placeholder((1, 5, 5, 16), name="data"), te.placeholder((3, 3, 16), name="filters")
    y = depthwise(data, filters, geometry=geometry, tile=depthwise_tile(HOST, data.shape, 16, geometry), masked=True)
    expected = last(torch.nn.functional.conv2d(x, weight, padding=1, groups=16))
    result = run([data, filters, y], [last(x), pack_depthwise_weight(weight)], expected.shape)
    assert torch.equal(torch.from_numpy(result.output), expected)


def producers(tensor: te.Tensor) -> list[te.Operation]:
    """The operations that a tensor is computed by, itself first."""
    return [tensor.op, *(operation for before in tensor.op.input_tensors for operation in producers(before))]
