"""The golden fixture compares, reports the difference, and rewrites when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester: pytest.Pytester, repository: Path) -> pytest.Pytester:
    """A suite of one test under a copy of this repository's conftest."""
    tests = pytester.mkdir("tests")
    (tests / "conftest.py").write_text((repository / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (tests / "test_one.py").write_text('def test_one(golden):\n    golden("one.txt", "new text")\n')
    return pytester


def golden_file(suite: pytest.Pytester) -> Path:
    return suite.path / "tests" / "golden" / "one.txt"


def test_missing_file_fails_and_names_the_flag(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no golden file*one.txt*--update-golden*"])


def test_update_writes_what_the_next_run_accepts(suite: pytest.Pytester) -> None:
    suite.runpytest_subprocess("--update-golden").assert_outcomes(passed=1)
    assert golden_file(suite).read_text() == "new text\n"
    suite.runpytest_subprocess().assert_outcomes(passed=1)


def test_changed_text_fails_with_the_difference(suite: pytest.Pytester) -> None:
    golden_file(suite).parent.mkdir()
    golden_file(suite).write_text("old text\n")
    result = suite.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*-old text*", "*+new text*"])
