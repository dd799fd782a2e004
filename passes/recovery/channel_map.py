"""Comparing features of different numbers of channels: a learned linear map in between (FitNets, ICLR 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from whet.errors import PassError
from whet.ir.types import TensorType


class ChannelMap(nn.Module):
    """y[..., o, ...] = Σ_i weight[o, i] · x[..., i, ...] + bias[o] along one dimension: a 1x1 convolution.

    Args:
        dim: the dimension.
        inputs: its size in x.
        outputs: its size in y.
    """

    def __init__(self, dim: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs, ...] -> [..., outputs, ...]."""
        return cast(Tensor, self.linear(x.movedim(self.dim, -1))).movedim(-1, self.dim)


def channel_map(name: str, student: TensorType, teacher: Sequence[int]) -> nn.Module:
    """What makes the student's feature `name` comparable with the teacher's, of shape `teacher`.

    Raises PassError where more than one dimension differs.
    """
    pairs = list(zip(student.shape, teacher, strict=False))
    differing = [dim for dim, (mine, theirs) in enumerate(pairs) if isinstance(mine, int) and mine != theirs]
    if len(teacher) != student.rank or len(differing) > 1 or differing == [0]:
        raise PassError(
            f"features: {name!r} is {student} in the student and {list(teacher)} in the teacher; they may differ in "
            "the number of channels alone"
        )
    if not differing:
        return nn.Identity()
    (dim,) = differing
    return ChannelMap(dim, int(pairs[dim][0]), int(teacher[dim]))
