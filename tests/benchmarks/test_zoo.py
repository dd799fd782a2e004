"""The zoo's list and its runner."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import zoo
from benchmarks.models.check import CheckResult
from benchmarks.models.timm_models import FAMILIES, import_timm
from benchmarks.models.zoo_cases import all_cases

REQUIRED = {
    "trained": "mobilenet_v2 minilm crepe_full crepe_tiny voice_encoder",
    "torchvision": "resnet18 resnet50 vgg11 densenet121 squeezenet1_1 efficientnet_b0 convnext_tiny swin_t "
    "vit_b_16 shufflenet_v2_x1_0 googlenet regnet_y_400mf mnasnet1_0 deeplabv3_resnet50 fcn_resnet50 "
    "r3d_18",
    "transformers": "bert distilbert roberta deberta deberta_v2 albert electra gpt2 llama qwen2 mixtral t5 "
    "bart vit swin convnext mobilevit segformer clip wav2vec2 whisper mamba patchtst",
}


def test_nothing_required_is_missing_from_the_list() -> None:
    names = set(all_cases())
    for source, required in REQUIRED.items():
        prefix = "" if source == "torchvision" else f"{source}/"
        assert {prefix + name for name in required.split()} <= names
    assert len({family for family, _ in FAMILIES}) == len(FAMILIES) >= 40


def test_each_timm_family_is_the_one_that_defines_its_model() -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed (the extra `bench`)")
    models = import_timm().models
    for family, name in FAMILIES:
        assert name in models.list_models(module=family), f"{name} is not of timm.models.{family}"


@pytest.mark.parametrize(
    ("library", "name"),
    [("torchvision", "squeezenet1_1"), ("transformers", "transformers/t5"), ("timm", "timm/ghostnet_100")],
)
def test_one_model_of_each_library_exports(library: str, name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed (the extra `bench`)")
    report = tmp_path / "report.json"
    assert zoo.main(["--models", name, "--stage", "export", "--json", str(report)]) == 0
    (row,) = json.loads(report.read_text())
    assert row["passed"] and row["operators"]


def options(limit: float = 60.0, jobs: int = 1) -> zoo.Options:
    return zoo.Options("export", "x86", "tvm", limit, jobs)


def run_script(monkeypatch: pytest.MonkeyPatch, script: str, limit: float = 60.0) -> CheckResult:
    """Run the first case of the list by a script instead of the real check."""

    def command(runner: zoo.Runner, name: str, answer: Path) -> list[str]:
        return [sys.executable, "-c", script, name, str(answer)]

    monkeypatch.setattr(zoo.Runner, "_command", command)
    (result,), interrupted = zoo.run_all(zoo.choose("resnet18", None), options(limit), Console(quiet=True))
    assert not interrupted
    return result


def test_a_model_over_its_limit_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    result = run_script(monkeypatch, "import time; time.sleep(60)", limit=0.5)
    assert not result.passed
    assert "limit of 0.5 s" in result.reason
    assert time.monotonic() - start < 20


def test_a_crash_is_a_failure_with_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_script(monkeypatch, "import os; print('about to crash', flush=True); os.abort()")
    assert not result.passed
    assert result.reason == "the process ended with status -6: about to crash"


def test_a_failed_model_makes_the_exit_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = CheckResult("resnet18", "torchvision", reason="no kernel")
    monkeypatch.setattr(zoo.Runner, "run", lambda self, case: failure)
    assert zoo.main(["--models", "resnet18"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  resnet18" in said
    assert "no kernel" in said
    assert "0.0%" in said


def test_totals_are_per_source_and_over_all() -> None:
    results = [
        CheckResult("a", "timm", True),
        CheckResult("b", "timm", False),
        CheckResult("c", "torchvision", True),
    ]
    assert zoo.totals(results) == [("timm", 1, 2), ("torchvision", 1, 1), ("all", 2, 3)]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SystemExit, match="No such models: resnet17"):
        zoo.choose("resnet17", None)
    with pytest.raises(SystemExit, match="No such sources: keras"):
        zoo.choose(None, "keras")


def test_interrupting_prints_what_was_done(tmp_path: Path) -> None:
    """SIGINT while the second of two models hangs: the first is reported, the child is gone."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from benchmarks import zoo\n"
        f"child = '''\nimport sys, time, json, pathlib\n"
        "if sys.argv[1] == 'resnet18':\n"
        "    row = dict(name='resnet18', source='torchvision', passed=True)\n"
        "    pathlib.Path(sys.argv[2]).write_text(json.dumps(row)); sys.exit()\n"
        f"open({str(tmp_path / 'hangs')!r}, 'w').write(str(__import__('os').getpid()))\n"
        "time.sleep(100)'''\n"
        "zoo.Runner._command = lambda self, name, answer: [sys.executable, '-c', child, name, str(answer)]\n"
        "sys.exit(zoo.main(['--models', 'resnet18,resnet50']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(zoo.ROOT), str(zoo.ROOT / "src")])},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "hangs").exists() or not (tmp_path / "hangs").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "pass  resnet18" in said
    assert "Interrupted after 1 of 2 models." in said
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "hangs").read_text()), 0)


def test_every_case_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["--list", "--sources", "torchvision"]) == 0
    assert "resnet18" in capsys.readouterr().out.split()


def test_the_command_names_the_model_and_how_it_is_checked(tmp_path: Path) -> None:
    runner = zoo.Runner(zoo.Options("compile", "avx2", "reference", 1.0, 1), tmp_path)
    command = runner._command("resnet18", tmp_path / "x.json")
    joined = " ".join(command)
    assert "benchmarks.models.check resnet18" in joined
    assert "--target avx2 --backend reference" in joined
