"""The models that a command line names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from whet.errors import CaptureError, PassError
from whet.passes.references import resolve

_KEYS: Final = (
    "model", "example_inputs", "example_kwargs", "dynamic_shapes", "calibration", "train", "evaluate", "objective"
)  # fmt: skip
HELP: Final = (
    "A .pt2 file of torch.export.save, or module:function (also file.py:function) that returns the model, a pair "
    "(model, inputs), or a dict of arguments of whet.optimize."
)


def read_model(name: str) -> dict[str, Any]:
    """Arguments of `whet.optimize` for the model that `name` stands for.

    Raises CaptureError where it stands for none, and whatever the function that makes it raises.
    """
    if ":" not in name or Path(name).suffix == ".pt2":
        if not Path(name).is_file():
            raise CaptureError(f"there is no file {name}; a model is {HELP[0].lower()}{HELP[1:]}")
        return {"model": name}
    try:
        made = resolve(name)
    except PassError as error:
        raise CaptureError(f"model {name}: {error}") from error
    return _arguments(name, made() if _is_function(made) else made)


def _is_function(made: Any) -> bool:
    """A model is callable too; what is not one makes one."""
    return callable(made) and (isinstance(made, type) or not hasattr(made, "forward"))


def _arguments(name: str, made: Any) -> dict[str, Any]:
    if isinstance(made, Mapping):
        unknown = set(made) - set(_KEYS)
        if unknown or "model" not in made:
            raise CaptureError(f"{name} gave a dict with {', '.join(made)}; it takes model and {', '.join(_KEYS[1:])}")
        return dict(made)
    if isinstance(made, tuple):
        if len(made) != 2:
            raise CaptureError(f"{name} gave a tuple of {len(made)}: return (model, inputs), inputs a tuple of tensors")
        model, inputs = made
        return {"model": model, "example_inputs": inputs if isinstance(inputs, tuple | list) else (inputs,)}
    return {"model": made}
