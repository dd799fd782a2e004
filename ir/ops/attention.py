"""Attention as one operation: masks, causality, grouped heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from whet.ir.definition import (
    Axis,
    Cost,
    IndexMap,
    Kept,
    OpDefinition,
    Tie,
    block_ties,
    broadcast_shapes,
    moved_bytes,
    require,
    require_same_dtype,
)
from whet.ir.dimensions import Dim, same_dim
from whet.ir.graph import Operation
from whet.ir.types import DType, TensorType


class Attention(OpDefinition):
    """softmax(scale · q kᵀ + mask) v over the last two dimensions (Vaswani et al. 2017).

    q [..., H, L, E], k [..., G, S, E], v [..., G, S, D]; G = H, or H / G query heads share a key head (GQA,
    Ainslie et al. 2023). `mask` broadcasts to [..., H, L, S]: bool (True takes part) or float, added.
    `causal` lets row l see columns s <= l. A row that sees nothing gives zeros. scale None is 1/√E.
    """

    name = "attention"

    def infer(
        self,
        query: TensorType,
        key: TensorType,
        value: TensorType,
        mask: TensorType | None = None,
        *,
        causal: bool = False,
        scale: float | None = None,
    ) -> TensorType:
        require_same_dtype(query=query, key=key, value=value)
        require(query.rank == key.rank == value.rank >= 2, f"ranks differ: {query}, {key}, {value}")
        require(
            same_dim(query.shape[-1], key.shape[-1]),
            f"query {query} and key {key} differ in their last dimension",
        )
        require(same_dim(key.shape[-2], value.shape[-2]), f"key {key} and value {value} differ in length")
        result = self._result(query, key, value)
        if mask is not None:
            require(mask.dtype in (DType.BOOL, query.dtype), f"mask {mask} must be bool or {query.dtype.value}")
            scores = (*result.shape[:-1], key.shape[-2])
            fits = broadcast_shapes(mask.shape, scores)
            require(
                len(fits) == len(scores) and all(map(same_dim, fits, scores)),
                f"mask {mask} does not fit {scores}",
            )
        return result

    def _result(self, query: TensorType, key: TensorType, value: TensorType) -> TensorType:
        if query.rank < 3:
            return TensorType((query.shape[-2], value.shape[-1]), query.dtype)
        heads, groups = query.shape[-3], key.shape[-3]
        require(same_dim(groups, value.shape[-3]), f"key {key} and value {value} differ in heads")
        if isinstance(heads, int) and isinstance(groups, int):
            require(
                groups == 1 or heads % groups == 0,
                f"{heads} query heads do not divide over {groups} key heads",
            )
        else:
            require(same_dim(heads, groups), f"query heads {heads} and key heads {groups} must be static or equal")
        batch = broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
        return TensorType((*batch, heads, query.shape[-2], value.shape[-1]), query.dtype)

    def evaluate(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        if query.dim() >= 3 and 1 < key.shape[-3] < query.shape[-3]:
            repeat = query.shape[-3] // key.shape[-3]
            key = key.repeat_interleave(repeat, dim=-3)
            value = value.repeat_interleave(repeat, dim=-3)
        narrow = query.dtype
        if narrow in (
            torch.float16,
            torch.bfloat16,
        ):  # scores and weights are not rounded to these (numerics: R5)
            query, key, value = query.float(), key.float(), value.float()
        factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = torch.matmul(query, key.transpose(-2, -1)) * factor
        if causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -math.inf)
        if mask is not None and mask.dtype is torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = scores + mask
        # Rows that see nothing leave before the softmax, whose gradient is NaN there.
        blind = (scores == -math.inf).all(dim=-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)
        return torch.matmul(weights, value).to(narrow)

    def axes(self, operation: Operation) -> list[Tie]:
        query, key, rank = operation.operand(0).type, operation.operand(1).type, operation.result.type.rank
        ties = [
            Tie(Axis(0, rank - 1), Axis(1, rank - 1)),
            Tie(Axis(1, rank - 2), Axis(2, rank - 2)),
            Tie(Axis(0, rank - 2), Axis(-1, rank - 2)),
            Tie(Axis(2, rank - 1), Axis(-1, rank - 1)),
        ]
        shape = operation.result.type.shape
        ties += [
            Tie(Axis(slot, dim), Axis(-1, dim))
            for slot in (0, 1, 2)
            for dim in range(rank - 3)
            if same_dim(operation.operand(slot).type.shape[dim], shape[dim])
        ]
        if rank >= 3:
            ties += self._head_ties(rank - 3, query.shape[-3], key.shape[-3])
        if operation.operands[3:] and operation.operands[3] is not None:
            ties += self._mask_ties(operation)
        return ties

    def _head_ties(self, dim: int, heads: Dim, groups: Dim) -> list[Tie]:
        """A key head goes with all query heads that share it; one that all share ties none of them."""
        query, key, value, result = (Axis(slot, dim) for slot in (0, 1, 2, -1))
        ties = [Tie(query, result), Tie(key, value)]
        if same_dim(heads, groups):
            return [*ties, Tie(query, key), Tie(value, result)]
        if isinstance(heads, int) and isinstance(groups, int) and groups > 1:
            shared = IndexMap(divide=heads // groups)
            ties = [*block_ties(query, result, heads // groups, heads), Tie(key, value)]
            return [*ties, Tie(query, key, shared), Tie(value, result, right_map=shared)]
        return ties

    def _mask_ties(self, operation: Operation) -> list[Tie]:
        mask, key, rank = operation.operand(3).type, operation.operand(1).type, operation.result.type.rank
        shift = rank - mask.rank
        ties = [
            Tie(Axis(3, dim), Axis(-1, dim + shift))
            for dim in range(mask.rank - 1)
            if same_dim(mask.shape[dim], operation.result.type.shape[dim + shift])
        ]
        if mask.rank and same_dim(mask.shape[-1], key.shape[-2]):
            ties.append(Tie(Axis(3, mask.rank - 1), Axis(1, rank - 2)))
        return ties

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        """The scale stays that of the whole embedding dimension: what is left of q kᵀ keeps its meaning."""
        rank, scale = operation.result.type.rank, operation.attributes["scale"]
        size = operation.operand(0).type.shape[-1]
        if scale is None and Axis(0, rank - 1) in kept:
            scale = 1.0 / math.sqrt(size)
        return {**operation.attributes, "scale": scale}

    def cost(self, operation: Operation) -> Cost:
        query, key, value = (operation.operand(index).type for index in range(3))
        scores = query.numel * key.shape[-2]
        return Cost(2 * scores + 2 * operation.result.type.numel * value.shape[-2], moved_bytes(operation))


DEFINITIONS: tuple[OpDefinition, ...] = (Attention(),)
