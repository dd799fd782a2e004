"""What is known of each runtime, and its table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

MEASURED = ("ready_seconds", "first_result_seconds", "peak_megabytes")


@dataclass
class Row:
    """One runtime: what it takes on the device (MB), and how it starts: medians of `rounds` (seconds, MB).

    `ready_seconds` is from the making of the process until the model is loaded, `first_result_seconds` until it has
    run once.
    """

    runtime: str
    version: str
    packages: int | None = None
    download_megabytes: float | None = None
    installed_megabytes: float | None = None
    model_megabytes: float | None = None
    ready_seconds: float | None = None
    first_result_seconds: float | None = None
    peak_megabytes: float | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    note: str = ""
    failure: str = ""

    def add(self, measured: dict[str, float]) -> None:
        """Count one more start."""
        self.rounds.append(measured)
        for name in MEASURED:
            setattr(self, name, statistics.median(item[name] for item in self.rounds))


def table(rows: Sequence[Row], title: str) -> Table:
    """One line for each runtime."""
    shown = Table(title=title, title_justify="left")
    for name in (
        "runtime",
        "packages",
        "download",
        "installed",
        "model",
        "loaded after",
        "first result",
        "peak memory",
    ):
        shown.add_column(name, justify="left" if name == "runtime" else "right")
    for row in rows:
        sizes = [row.download_megabytes, row.installed_megabytes, row.model_megabytes]
        cells = [_shown(value, 1, "MB") for value in sizes]
        cells += [_shown(value, 2, "s") for value in (row.ready_seconds, row.first_result_seconds)]
        count = "" if row.packages is None else str(row.packages)
        shown.add_row(f"{row.runtime} {row.version}", count, *cells, _shown(row.peak_megabytes, 0, "MB"))
    return shown


def _shown(value: float | None, digits: int, unit: str) -> str:
    return "" if value is None else f"{value:.{digits}f} {unit}"
