"""Pictures of results; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.comparison import Row

_PANEL_HEIGHT = 2.6
_GROUP_WIDTH = 0.84
_OWN_COLOUR = "#d1495b"
_PEER_COLOURS = ("#30638e", "#6f9fc8", "#003d5b", "#8d99ae", "#a3b18a")


def plot_latency(rows: Sequence[Row], about: Mapping[str, str], path: Path) -> None:
    """Grouped bars: a panel for each precision, a group for each model, a bar for each engine.

    A bar is the latency over that of the fastest peer of the same precision in its group, so that models of all sizes
    stand beside each other; the milliseconds are written on it.
    """
    from matplotlib.figure import Figure

    precisions = list(dict.fromkeys(row.precision for row in rows if row.measured))
    if not precisions:
        raise ValueError("there is nothing to draw: no engine has a result")
    models = list(dict.fromkeys(row.model for row in rows))
    figure = Figure(figsize=(max(7.0, 2.1 * len(models) + 1.5), _PANEL_HEIGHT * len(precisions) + 0.8))
    panels = figure.subplots(len(precisions), squeeze=False)[:, 0]
    for panel, precision in zip(panels, precisions, strict=True):
        chosen = [row for row in rows if row.precision == precision and row.measured]
        _draw(panel, chosen, models)
        panel.set_ylabel(f"{precision}\nx the best peer's time")
    threads = f", {about['threads']} threads" if "threads" in about else ""
    where = f"{about.get('cpu', '')}{threads}, {about.get('date', '')}"
    figure.suptitle(f"{where}: latency over the best peer's, ms on the bars; lower is better", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def _draw(panel: object, rows: Sequence[Row], models: Sequence[str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    engines = list(dict.fromkeys(row.engine for row in rows))
    peers = [row.engine for row in rows if not row.own]
    colours = dict(zip(dict.fromkeys(peers), _PEER_COLOURS * len(engines), strict=False))
    width = _GROUP_WIDTH / max(len(engines), 1)
    references = {model: _reference(rows, model) for model in models}
    for index, engine in enumerate(engines):
        own = [row for row in rows if row.engine == engine and references[row.model]]
        places = [models.index(row.model) + (index - (len(engines) - 1) / 2) * width for row in own]
        heights = [row.milliseconds / references[row.model] for row in own]
        bars = panel.bar(places, heights, width * 0.92, label=engine, color=colours.get(engine, _OWN_COLOUR))
        panel.bar_label(bars, [f"{row.milliseconds:.3g}" for row in own], fontsize=6.5, padding=1)
    panel.axhline(1.0, color="0.4", linewidth=0.8, linestyle=":")
    panel.set_xticks(range(len(models)), models, fontsize=8)
    panel.margins(y=0.15)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, ncols=len(engines), loc="upper left", bbox_to_anchor=(0, 1.16))


def _reference(rows: Sequence[Row], model: str) -> float:
    """The fastest peer's latency, or where there is none the fastest engine's; 0 where there is nothing."""
    here = [row for row in rows if row.model == model]
    peers = [row.milliseconds for row in here if not row.own]
    return min(peers or [row.milliseconds for row in here], default=0.0)
