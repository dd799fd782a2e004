"""Inlining the regions that torch.export leaves as sub-graphs: autocast and no_grad blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from whet.errors import CaptureError

# The position of the wrapped sub-graph among the arguments of each wrapper.
_WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}


def inline_regions(program: ExportedProgram) -> ExportedProgram:
    """The program with every region's nodes in the place of the call. Edits the program's graph."""
    changed = False
    for node in list(program.graph.nodes):
        position = _WRAPPERS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if position is None:
            continue
        _refuse_real_autocast(node)
        _inline(program.graph_module, node, position)
        changed = True
    if not changed:
        return program
    program.graph.lint()
    program.graph_module.recompile()
    return inline_regions(program)


def _refuse_real_autocast(node: Node) -> None:
    if getattr(node.target, "__name__", "") != "wrap_with_autocast":
        return
    device, dtype, enabled = node.args[0], node.args[1], node.args[2]
    if enabled and device == "cpu":
        raise CaptureError(
            f"the model runs a part under torch.autocast({device!r}, dtype={dtype}): call it outside of "
            f"autocast, and "
            "choose precision with a pass"
        )


def _inline(owner: GraphModule, call: Node, position: int) -> None:
    body_name = call.args[position]
    assert isinstance(body_name, Node)
    body = getattr(owner, str(body_name.target))
    arguments = iter(call.args[position + 1 :])
    environment: dict[Node, Any] = {}
    result: Any = None
    with owner.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                environment[node] = next(arguments)
            elif node.op == "output":
                result = torch.fx.node.map_arg(node.args[0], lambda item: environment[item])
            else:
                if node.op == "get_attr":
                    _move_attribute(owner, body, node)
                environment[node] = owner.graph.node_copy(node, lambda item: environment[item])
    _replace_call(owner, call, result)
    if not body_name.users:
        owner.graph.erase_node(body_name)


def _move_attribute(owner: GraphModule, body: GraphModule, node: Node) -> None:
    name = f"{node.target}_inlined"
    while hasattr(owner, name):
        name += "_"
    setattr(owner, name, getattr(body, str(node.target)))
    node.target = name


def _replace_call(owner: GraphModule, call: Node, result: Any) -> None:
    if isinstance(result, Node):
        call.replace_all_uses_with(result)
    else:
        for user in list(call.users):
            # a region returns a tuple, whose items are taken by getitem
            user.replace_all_uses_with(result[user.args[1]])
            owner.graph.erase_node(user)
    owner.graph.erase_node(call)
