"""What an export to C leaves behind, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StaticProgram:
    """A model as C sources and one object; prints as text.

    Attributes:
        folder: where the files lie.
        files: their names.
        target: what the code is for.
        kernels: how many calls of kernels one run makes.
        arena_bytes: memory for everything computed on the way, scratch memory of kernels included: the plan's peak.
        live_bytes: the most that is needed at one time; no plan can do with less than that.
        state_bytes: memory for what is kept between runs.
        weights_bytes: constant data: weights, and initial values of the state.
        code_bytes: machine code of the kernels with its constants.
    """

    folder: Path
    files: tuple[str, ...]
    target: str
    kernels: int
    arena_bytes: int
    live_bytes: int
    state_bytes: int
    weights_bytes: int
    code_bytes: int

    def __str__(self) -> str:
        rows = (
            ("arena", self.arena_bytes, f"memory, the plan's peak; {self.live_bytes} needed at one time"),
            ("state", self.state_bytes, "memory, kept between runs"),
            ("weights", self.weights_bytes, "constant data"),
            ("kernels", self.code_bytes, f"constant code; {self.kernels} calls a run"),
        )
        lines = [f"static program for {self.target} in {self.folder}"]
        lines += [f"  {name:<8} {size:>12} B  {what}" for name, size, what in rows]
        return "\n".join([*lines, f"  files: {', '.join(self.files)}"])
