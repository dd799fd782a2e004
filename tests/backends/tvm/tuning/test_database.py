"""Records: what was measured comes back, whole lines alone count, other targets have records of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from whet.backends.tvm.kernels.decisions import DEFAULT, Decision
from whet.backends.tvm.kernels.tiles import Tile
from whet.backends.tvm.tuning.database import Database, Trial, Winner
from whet.errors import TuningError
from whet.ir.target import get_target

TARGET = get_target("avx2")
FASTER = Decision(Tile((4, 2), 16), "opposite", 2)


def filled(folder: Path) -> Database:
    database = Database(folder, TARGET)
    database.add_trial("a", Trial(DEFAULT, 2.0))
    database.add_trial("a", Trial(FASTER, None, "Wrong: output 0"))
    database.add_winner("a", Winner(FASTER, 1.0, 2.0))
    return database


def test_records_come_back(tmp_path: Path) -> None:
    filled(tmp_path)
    again = Database(tmp_path, TARGET)
    assert again.trials("a") == [Trial(DEFAULT, 2.0), Trial(FASTER, None, "Wrong: output 0")]
    assert again.decide("a") == FASTER and again.decide("b") == DEFAULT
    assert again.winner("a") == Winner(FASTER, 1.0, 2.0)
    assert list(again.winners()) == [("a", FASTER)]


def test_the_last_verdict_counts(tmp_path: Path) -> None:
    filled(tmp_path).add_winner("a", Winner(DEFAULT, 2.0, 2.0))
    assert Database(tmp_path, TARGET).decide("a") == DEFAULT


def test_targets_with_other_facts_have_other_records(tmp_path: Path) -> None:
    filled(tmp_path)
    assert Database(tmp_path, replace(TARGET, l2_cache_bytes=1 << 22)).decide("a") == DEFAULT
    assert Database(tmp_path, replace(TARGET, name="mine")).decide("a") == FASTER


def test_a_line_that_was_cut_off_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = filled(tmp_path).path
    whole = path.read_text()
    path.write_text(whole + '{"trial": "x')
    database = Database(tmp_path, TARGET)
    assert database.decide("a") == FASTER
    database.add_trial("a", Trial(Decision(Tile((1,), 8)), 3.0))
    assert path.read_text().startswith(whole) and len(Database(tmp_path, TARGET).trials("a")) == 3


@pytest.mark.parametrize("line", ["rubbish", '{"trial": "unknown", "decision": {}}', '{"winner": 1}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = filled(tmp_path).path
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(TuningError, match=path.name):
        Database(tmp_path, TARGET)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match="file"):
        Database(tmp_path / "file", TARGET).add_trial("a", Trial(DEFAULT, 1.0))
