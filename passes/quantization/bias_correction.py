"""Bias correction: quantized weights shift a layer's mean output, and its bias takes the shift back."""

from __future__ import annotations

from torch import Tensor

from whet.errors import InternalError
from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.passes.quantization.rounding import LayerInputs, grouped_rows
from whet.passes.weights import bias_key, evaluate_weight, key_of, rounded


def output_shift(weight: Tensor, quantized: Tensor, inputs: LayerInputs) -> Tensor:
    """E[(W_q - W) x] of each output channel, float64 [out]: how far the quantized weight moves the mean output.

    Args:
        weight: the real weight, [out, ...].
        quantized: the weight that its integers stand for, of the same shape.
        inputs: what the layer reads on the calibration data.

    Raises PassError where the inputs do not fit the weight.
    """
    rows = grouped_rows(quantized.double() - weight.detach().double(), inputs)
    shift: Tensor = (rows @ inputs.mean.double()[:, :, None]).flatten()
    return shift


def corrected_bias(bias: Tensor | None, weight: Tensor, quantized: Tensor, inputs: LayerInputs) -> Tensor:
    """bias - E[(W_q - W) x], float64 [out]: the channel means of W_q x + bias' are those of W x + bias.

    Rounding errors of a weight do not average out over inputs that have a mean, as those behind a relu do (Nagel et
    al., ICCV 2019, section 4.2, with the mean taken on calibration data; Finkelstein et al. 2019). Arguments as for
    `output_shift`; a `bias` of None counts as 0.
    """
    shift = output_shift(weight, quantized, inputs)
    return -shift if bias is None else bias.detach().double() - shift


def correct_bias(graph: Graph, layer: Operation, weight: Value, inputs: LayerInputs) -> None:
    """Give a layer, whose weight operand stands for integers already, the bias that goes with them.

    Args:
        graph: a private clone, which is edited.
        layer: linear or conv in it.
        weight: the layer's real weight, which it read before.
        inputs: what it reads on the calibration data.
    """
    real, quantized = evaluate_weight(weight), evaluate_weight(layer.operand(1))
    if real is None or quantized is None:
        raise InternalError(f"{layer!r} at {layer.location} has a weight that is no stored form of constants")
    bias = layer.operands[2] if len(layer.operands) > 2 else None
    tensor = None if bias is None else evaluate_weight(bias)
    builder = Builder(graph, before=layer)
    if bias is not None and tensor is None:
        shift = output_shift(real, quantized, inputs)
        corrected: Value = builder.sub(bias, builder.constant(rounded(shift, bias)))
    else:
        key = bias_key(weight) if bias is None else key_of(bias)
        corrected = builder.constant(rounded(corrected_bias(tensor, real, quantized, inputs), layer.result), key)
    if len(layer.operands) < 3:
        layer.operands.append(None)
    layer.set_operand(2, corrected)
