"""One engine on one model as a row, rows beside each other, and what they come to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

NAN = float("nan")
BASELINE = "eager"
LARGEST_ERROR: Mapping[str, float] = {"f32": 1e-3, "bf16": 0.1, "int8": 0.5}
"""By precision, the largest ||out - eager|| / ||eager|| of an output that still counts as the model's."""


@dataclass
class Row:
    """One engine on one model.

    Attributes:
        model: the case's name.
        engine: the engine's name.
        precision: what its contractions are computed in.
        own: whether it is Whet; all others are peers.
        note: what else to know of the engine.
        milliseconds: median of the rounds, each of which is the median of a process's calls.
        rounds: latencies of the rounds in milliseconds.
        ratio: the best peer's latency in the same precision over this one's: above 1 is faster than every peer.
        best_peer: which peer that is.
        ratio_to_eager: latency over eager's: below 1 is faster.
        relative_error: of the first output, against eager's.
        peak_megabytes: resident memory of the process that loads and runs the model.
        size_megabytes: of the files that are shipped; NaN where there are none.
        prepare_seconds: export, quantization, compilation, tuning.
        missing: modules that the engine needs and that are not installed.
        failure: why there is no result.
    """

    model: str
    engine: str
    precision: str
    own: bool = False
    note: str = ""
    milliseconds: float = NAN
    rounds: list[float] = field(default_factory=list)
    ratio: float = NAN
    best_peer: str = ""
    ratio_to_eager: float = NAN
    relative_error: float = NAN
    peak_megabytes: float = NAN
    size_megabytes: float = NAN
    prepare_seconds: float = NAN
    missing: tuple[str, ...] = ()
    failure: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a latency to compare."""
        return not self.missing and not self.failure and math.isfinite(self.milliseconds)


@dataclass(frozen=True)
class Summary:
    """An engine of Whet over all models: the ratios to the best peers of its precision.

    Attributes:
        engine: the engine's name.
        precision: its precision.
        ratios: by model, where both it and a peer have a result.
        without: models on which there is no such ratio.
    """

    engine: str
    precision: str
    ratios: Mapping[str, float]
    without: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Geometric mean of the ratios; NaN where there are none."""
        return statistics.geometric_mean(self.ratios.values()) if self.ratios else NAN

    def __str__(self) -> str:
        if not self.ratios:
            return f"{self.engine} ({self.precision}): no model has both a result and a peer's"
        worst = min(self.ratios, key=lambda model: self.ratios[model])
        text = (
            f"{self.engine} ({self.precision}): geometric mean {self.mean:.2f} x the best peer over "
            f"{len(self.ratios)} model(s), lowest {self.ratios[worst]:.2f} ({worst})"
        )
        return text + (f"; without {', '.join(self.without)}" if self.without else "")


def compare(rows: Sequence[Row]) -> None:
    """Fill in the ratios. An engine whose output is not the model's is a failure, and no peer to anybody."""
    for row in rows:
        limit = LARGEST_ERROR[row.precision]
        if row.measured and not (row.relative_error <= limit or _is_unknown(row, rows)):
            row.failure = f"its output differs from eager's by {row.relative_error:.1e}, more than {limit:g}"
    for row in rows:
        if not row.measured:
            continue
        baseline = next((one for one in _beside(row, rows) if one.engine == BASELINE), None)
        if baseline is not None:
            row.ratio_to_eager = row.milliseconds / baseline.milliseconds
        peers = [one for one in _beside(row, rows) if one.precision == row.precision and not one.own]
        if peers:
            best = min(peers, key=lambda one: one.milliseconds)
            row.ratio, row.best_peer = best.milliseconds / row.milliseconds, best.engine


def _beside(row: Row, rows: Iterable[Row]) -> Iterable[Row]:
    return (one for one in rows if one.model == row.model and one.measured)


def _is_unknown(row: Row, rows: Sequence[Row]) -> bool:
    """Whether there is nothing to compare this row's output with."""
    return math.isnan(row.relative_error) and all(one.engine != BASELINE for one in _beside(row, rows))


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """One summary for each of Whet's engines, in the order of the rows."""
    summaries = []
    for engine in dict.fromkeys(row.engine for row in rows if row.own):
        own = [row for row in rows if row.engine == engine]
        ratios = {row.model: row.ratio for row in own if math.isfinite(row.ratio)}
        without = tuple(row.model for row in own if row.model not in ratios)
        summaries.append(Summary(engine, own[0].precision, ratios, without))
    return summaries


def missing_engines(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """Engines that are not installed, each with the modules that it lacks."""
    return {row.engine: row.missing for row in rows if row.missing}


_HEADINGS = ("model", "engine", "in", "ms", "ratio", "best peer", "x eager", "error", "MB peak", "MB size", "s prep.")
_TEXTS = 3


def table(rows: Iterable[Row]) -> Table:
    """The rows as people read them; ratio: the best peer's latency in the same precision over this one's."""
    result = Table()
    for index, heading in enumerate(_HEADINGS):
        justify = "left" if index < _TEXTS or heading == "best peer" else "right"
        result.add_column(heading, justify=justify, no_wrap=True, overflow="fold")
    previous = ""
    for row in rows:
        if previous and row.model != previous:
            result.add_section()
        previous = row.model
        style = "bold" if row.own else None
        result.add_row(row.model, row.engine, row.precision, *_cells(row), style=style)
    return result


def _cells(row: Row) -> list[str]:
    if row.missing:
        return ["[yellow]not installed"]
    if row.failure:
        return ["[red]failed"]
    return [
        _number(row.milliseconds, ".2f"),
        _number(row.ratio, ".2f"),
        row.best_peer if row.own else "",
        _number(row.ratio_to_eager, ".2f"),
        _number(row.relative_error, ".1e"),
        _number(row.peak_megabytes, ".0f"),
        _number(row.size_megabytes, ".1f"),
        _number(row.prepare_seconds, ".1f"),
    ]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the table has no room for: geometric means, engines that are not installed, failures, notes."""
    lines = [str(summary) for summary in summarize(rows)]
    lines += [f"not installed: {engine} ({', '.join(lacks)})" for engine, lacks in missing_engines(rows).items()]
    lines += [f"failed: {row.engine} on {row.model}: {row.failure}" for row in rows if row.failure]
    lines += [f"{engine}: {note}" for engine, note in {row.engine: row.note for row in rows if row.note}.items()]
    return lines
