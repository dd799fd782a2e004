"""Training that can be interrupted: a folder with the state after the last whole epoch, in JSON and safetensors.

state.json           epoch, metrics, and what is trained on what
epoch-N.safetensors  weights, statistics, optimizer, and the best weights so far
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whet.errors import PassError

_NOTE: Final = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of one training is kept.

    Args:
        folder: of this training alone.
        identity: JSON of everything that the training depends on; a checkpoint of another one is refused.
    """

    folder: Path
    identity: Mapping[str, Any]

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What `save` was given last; None where there is nothing yet. Raises PassError."""
        path = self.folder / _NOTE
        if not path.exists():
            return None
        try:
            note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._require_same(note["identity"])
            return note["state"], load_file(self._tensors(note["state"]["epoch"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise PassError(f"cannot read the checkpoint in {self.folder}: {error}; delete it to train anew") from error

    def _require_same(self, found: Mapping[str, Any]) -> None:
        differing = [key for key, value in self.identity.items() if found.get(key) != value]
        if differing:
            raise PassError(
                f"the checkpoint in {self.folder} is of another training: {', '.join(differing)} differ(s); name "
                "another folder, or delete it to train anew"
            )

    def save(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Tensors first, then the note that names them: an interruption leaves the older pair. Raises PassError."""
        epoch = state["epoch"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, self._tensors(epoch)
            )
            fresh = self.folder / f"{_NOTE}.new"
            fresh.write_text(json.dumps({"state": state, "identity": self.identity}), encoding="utf-8")
            os.replace(fresh, self.folder / _NOTE)
            for old in self.folder.glob("epoch-*.safetensors"):
                if old != self._tensors(epoch):
                    old.unlink()
        except (OSError, SafetensorError) as error:
            raise PassError(f"cannot write the checkpoint in {self.folder}: {error}") from error

    def _tensors(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}.safetensors"
