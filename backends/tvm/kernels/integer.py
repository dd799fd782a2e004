"""What stored integers need around their products: the signedness that an instruction wants, zero points taken out.

`sum((x - zero) * w) = sum(x * w) - zero * sum(w)`: the kernels multiply the stored integers as they are,
padding holds the zero point, and the second term is one constant a column, computed at compile time
(`compensation`). An instruction that wants the other signedness gets activations shifted by 128, which shifts
their zero point as well.
"""

from __future__ import annotations

import torch

from whet.backends.tvm.intrinsics.instructions import DotInstruction

_SIGN_SHIFT = 128
_OFFSETS: dict[tuple[str, str], int] = {("int8", "uint8"): _SIGN_SHIFT, ("uint8", "int8"): -_SIGN_SHIFT}


def recoding_offset(source: str, instruction: DotInstruction) -> int:
    """What is added to activations of dtype `source` for the signedness that the instruction wants."""
    return _OFFSETS.get((source, instruction.activation), 0)


def operand_shift(source: str, wanted: str, zero_point: int) -> int:
    """What is added to a number that becomes one of dtype `wanted`: 16 bits hold it without its zero point."""
    return -zero_point if wanted == "int16" else _OFFSETS.get((source, wanted), 0)


def compensation(weight: torch.Tensor, zero_point: int, offset: int = 0) -> torch.Tensor:
    """`-(zero_point + offset) * sum(w)` of each output channel, int32 `[O]`: add it to the kernel's result.

    `weight[O, ...]` in torch's layout; `offset` is the plan's (0 for a depthwise convolution).

    Raises:
        OverflowError: the constant does not fit 32 bits.
    """
    sums = weight.to(torch.int64).flatten(1).sum(1)
    values = -(zero_point + offset) * sums
    limits = torch.iinfo(torch.int32)
    if bool(((values < limits.min) | (values > limits.max)).any()):
        raise OverflowError("the zero point times the sum of the weights does not fit 32 bits")
    return values.to(torch.int32)
