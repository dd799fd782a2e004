"""Every case, by name, in the order of the table."""

from __future__ import annotations

from benchmarks.cases import digits, pictures, residual, sentences, sounds
from benchmarks.cases.case import Case

CASES: dict[str, Case] = {
    case.name: case for case in (*digits.CASES, *residual.CASES, *pictures.CASES, *sentences.CASES, *sounds.CASES)
}
