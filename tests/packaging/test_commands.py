"""The two entrances to the repository, make and .ci/run, do what a fresh machine needs of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PASSING_PYTEST = "echo '===== 3 passed in 0.10s ====='"


def link_tools(folder: Path, names: tuple[str, ...]) -> None:
    """Make ``folder`` a PATH that holds these programs of the host and no others."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("compiler", "cross"), [(None, True), ("gcc", False)])
def test_zig_comes_from_pip_where_no_compiler_is_found(
    repository: Path, tmp_path: Path, compiler: str | None, cross: bool
) -> None:
    tools = tmp_path / "bin"
    link_tools(tools, ("bash", "nproc", "env"))
    write_program(tools / "python3", "true")
    if compiler is not None:
        write_program(tools / compiler, "true")
    make = shutil.which("make")
    assert make is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        [make, "--dry-run", "--always-make", "install"],
        cwd=repository,
        env={**environment, "PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (install,) = (line for line in done.stdout.splitlines() if " -e " in line)
    assert ("cross" in install) is cross


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """A folder with .ci/run and programs in place of what it calls, all of which succeed."""
    root = tmp_path / "clone"
    (root / ".ci").mkdir(parents=True)
    shutil.copy2(repository / ".ci" / "run", root / ".ci" / "run")
    write_program(root / "bin" / "make", PASSING_PYTEST)
    write_program(root / "cpp" / "setup", "echo all is there")
    for tool in ("ruff", "mypy", "lint-imports"):
        write_program(root / ".venv" / "bin" / tool, f"echo {tool} is content")
    return root


def run_ci(clone: Path) -> subprocess.CompletedProcess[str]:
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [clone / ".ci" / "run"], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


def test_ci_repeats_the_closing_lines(clone: Path) -> None:
    done = run_ci(clone)
    assert done.returncode == 0, done.stderr
    summary = done.stdout.split("==> summary")[1]
    assert summary.count("3 passed in 0.10s") == 3
    assert summary.strip().endswith("all steps passed")


@pytest.mark.parametrize("tool", ["bin/make", ".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/lint-imports"])
def test_ci_fails_with_any_step_and_still_runs_the_others(clone: Path, tool: str) -> None:
    write_program(clone / tool, "echo it broke; exit 3")
    done = run_ci(clone)
    assert done.returncode == 1
    summary = done.stdout.split("==> summary")[1]
    assert "FAILED (3)" in summary
    assert "imports" in summary
    assert summary.strip().splitlines()[-1].startswith("failed:")
