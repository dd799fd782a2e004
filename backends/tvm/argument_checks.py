"""Relax checks every argument of `main` at every call: weights, which cannot change, are spared that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import tvm
from tvm import relax

WEIGHTS: Final = "whet.weights"
"""Attribute of `main`: how many of its last parameters are weights, which come with the code, and never change."""

_CHECKS: Final = ("vm.builtin.check_tensor_info", "vm.builtin.match_shape")


def without_checks_of_weights() -> tvm.transform.Pass:
    """Drop checks of types and shapes of weights: behind VMShapeLower, which makes two of every parameter.

    Of a small network they are more than half of what the virtual machine does.
    """
    return tvm.transform.module_pass(_drop, opt_level=0, name="WithoutChecksOfWeights")


def _drop(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    main = module["main"]
    count = int(main.attrs[WEIGHTS]) if main.attrs and WEIGHTS in main.attrs else 0
    weights = list(main.params)[len(main.params) - count :]
    if not weights or not isinstance(main.body, relax.SeqExpr):
        return module
    blocks = [_without(block, weights) for block in main.body.blocks]
    body = relax.SeqExpr(blocks, main.body.body)
    module.update_func(
        module.get_global_var("main"), relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    )
    return module


def _without(block: Any, weights: Sequence[relax.Var]) -> Any:
    return relax.BindingBlock([binding for binding in block.bindings if not _checks(binding, weights)])


def _checks(binding: Any, weights: Sequence[relax.Var]) -> bool:
    call = getattr(binding, "value", None)
    if not isinstance(call, relax.Call) or not isinstance(call.op, relax.ExternFunc):
        return False
    return str(call.op.global_symbol) in _CHECKS and any(call.args[0].same_as(weight) for weight in weights)
