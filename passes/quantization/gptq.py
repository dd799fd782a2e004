"""GPTQ: rounding column by column, each error made good by the columns that are still real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whet.errors import PassError
from whet.passes.quantization.rounding import LayerInputs, better_rows, grouped_rows, require_inputs, round_nearest


@dataclass(frozen=True)
class GPTQ:
    """Columns are rounded to nearest in turn; the error of each is spread over the columns that follow.

    With H = E[x xᵀ] + damping · mean(diag) · I and its inverse's Cholesky factor H⁻¹ = Uᵀ U (U upper triangular),
    column j of the weight is rounded, and W[:, k] -= (W[:, j] - Q[:, j]) / U[j, j] · U[j, k] for all k > j: what
    minimizes E‖(W - Q) x‖² given the columns done (Frantar et al., ICLR 2023; Optimal Brain Surgeon, Hassibi & Stork
    1993). Scales are those given (per channel or per group) and stay. A row that comes out worse than rounded to
    nearest, by that measure, is rounded to nearest. Convolutions are taken as products with im2col's matrix; grouped
    ones have an H for each group.

    Args:
        damping: as a fraction of the mean of H's diagonal, > 0.
        block: columns done before the others are brought up to date, for speed alone.
        order: largest diagonal of H first ("activation order"), else the columns as they come.

    Raises PassError for a damping or block that is not positive, and for inputs that are missing.
    """

    damping: float = 0.01
    block: int = 128
    order: bool = True
    needs_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.damping > 0 or self.block < 1:
            raise PassError(f"GPTQ takes damping > 0 and block >= 1, got {self.damping} and {self.block}")

    def round(
        self, weight: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, inputs: LayerInputs | None
    ) -> Tensor:
        """Integers of the weight's shape, i32; see `Rounding.round`."""
        given = require_inputs(inputs, "GPTQ")
        rows = grouped_rows(weight.detach().double(), given)
        scales = grouped_rows(scale.double().expand(weight.shape), given)
        zeros = grouped_rows(zero_point.double().expand(weight.shape), given)
        gram = given.gram.double()
        columns = _order(gram) if self.order else torch.arange(rows.shape[2]).expand(rows.shape[0], -1)
        factor = _factor(_permuted(gram, columns), self.damping)
        take = columns[:, None, :].expand_as(rows)
        ordered = self._sweep(rows.gather(2, take), scales.gather(2, take), zeros.gather(2, take), factor, low, high)
        codes = torch.empty_like(rows).scatter(2, take, ordered)
        integers = codes.reshape(weight.shape).to(torch.int32)
        nearest = round_nearest(weight, scale, zero_point, low, high)
        return better_rows(weight, integers, nearest, scale, zero_point, given)

    def _sweep(self, rows: Tensor, scales: Tensor, zeros: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
        """Codes of [groups, rows, columns], column by column; what lies beyond a block is updated once a block."""
        rest, codes, pruned = rows.clone(), torch.empty_like(rows), rows == 0
        count = rows.shape[2]
        for start in range(0, count, self.block):
            stop = min(start + self.block, count)
            errors = torch.zeros_like(rest[:, :, start:stop])
            for column in range(start, stop):
                real, scale, zero = rest[:, :, column], scales[:, :, column], zeros[:, :, column]
                code = (torch.round(real / scale) + zero).clamp(low, high)
                code = torch.where(pruned[:, :, column], zero, code)
                codes[:, :, column] = code
                error = (real - (code - zero) * scale) / factor[:, column, column, None]
                rest[:, :, column:stop] -= error[:, :, None] * factor[:, None, column, column:stop]
                errors[:, :, column - start] = error
            rest[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
        return codes


def _order(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)


def _permuted(gram: Tensor, columns: Tensor) -> Tensor:
    by_row = gram.gather(1, columns[:, :, None].expand_as(gram))
    return by_row.gather(2, columns[:, None, :].expand_as(gram))


def _factor(gram: Tensor, damping: float) -> Tensor:
    """Upper triangular U with (gram + damping)⁻¹ = Uᵀ U."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    # a group that only ever read zeros: any rounding is as good as another
    added = torch.where(mean > 0, mean * damping, torch.ones_like(mean))
    damped = gram + torch.diag_embed(added.expand_as(diagonal))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
