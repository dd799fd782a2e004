"""The kernels of a bundle as a picture: one box a call, from top to bottom, arcs for what skips some of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from whet.runtime.manifest import KernelCall, Manifest

_WIDTH: Final = 420
_HEIGHT: Final = 34
_GAP: Final = 22
_MARGIN: Final = 20
_ARC: Final = 14
"""How far an arc bends out a step that it skips."""
_WIDEST_ARC: Final = 260
# Precision of the operands -> fill: integers, halves, float.
_FILLS: Final = (
    (("i4",), "#cfe8cf"), (("i8", "u8"), "#dcefdc"), (("bf16", "f16"), "#fff0cc"), (("f32", "f64"), "#dde8f7")
)  # fmt: skip
_OTHER: Final = "#eeeeee"


def draw_kernels(manifest: Manifest, title: str) -> str:
    """The text of an SVG file."""
    calls = manifest.kernels
    top = _MARGIN + 30
    height = top + (len(calls) + 2) * (_HEIGHT + _GAP)
    width = _WIDTH + _WIDEST_ARC + 2 * _MARGIN
    inputs = ", ".join(map(str, manifest.inputs))
    outputs = ", ".join(map(str, manifest.outputs))
    pieces = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 4}" font-size="14" font-weight="bold">{escape(title)}, '
        f"{escape(manifest.target.name)}</text>",
        _box(top, "inputs", inputs, "#ffffff"),
        *(_kernel(index, call, top) for index, call in enumerate(calls)),
        _box(top + (len(calls) + 1) * (_HEIGHT + _GAP), "outputs", outputs, "#ffffff"),
        *(_edge(source, target, top) for source, target in sorted(_edges(calls))),
        "</svg>",
    ]
    return "\n".join(pieces) + "\n"


def _edges(calls: tuple[KernelCall, ...]) -> Iterator[tuple[int, int]]:
    """Pairs of places: -1 stands for the inputs, the number of calls for the outputs."""
    read = {number for call in calls for number in call.reads}
    for index, call in enumerate(calls):
        yield from ((number, index) for number in call.reads)
        if not call.reads:
            yield -1, index
    yield from ((index, len(calls)) for index in range(len(calls)) if index not in read)


def _kernel(index: int, call: KernelCall, top: int) -> str:
    label = f"{call.module}  {call.precision}  {call.schedule}"
    return _box(top + (index + 1) * (_HEIGHT + _GAP), " + ".join(call.operations), label, _fill(call.precision))


def _fill(precision: str) -> str:
    words = precision.replace("->", " ").replace("x", " ").split()
    return next((fill for names, fill in _FILLS if words and words[0] in names), _OTHER)


def _box(y: int, head: str, label: str, fill: str) -> str:
    return (
        f'<g><title>{escape(head)}\n{escape(label)}</title><rect x="{_MARGIN}" y="{y}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="4" fill="{fill}" stroke="#888"/><text x="{_MARGIN + 8}" y="{y + 14}">'
        f'{escape(_cut(head, 66))}</text><text x="{_MARGIN + 8}" y="{y + 28}" fill="#666" font-size="9">'
        f"{escape(_cut(label, 84))}</text></g>"
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _edge(source: int, target: int, top: int) -> str:
    step = _HEIGHT + _GAP
    start, end = top + (source + 1) * step, top + (target + 1) * step
    if target == source + 1:
        x = _MARGIN + _WIDTH // 2
        path = f"M{x} {start + _HEIGHT} L{x} {end}"
    else:
        x, reach = _MARGIN + _WIDTH, min(_ARC * (target - source), _WIDEST_ARC)
        begin, stop = start + _HEIGHT // 2, end + _HEIGHT // 2
        path = f"M{x} {begin} C{x + reach} {begin} {x + reach} {stop} {x} {stop}"
    return f'<path d="{path}" fill="none" stroke="#555" marker-end="url(#tip)"/>'
