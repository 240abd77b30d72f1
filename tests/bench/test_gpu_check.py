"""The GPU check, tried on a CPU: what it does around its stages, and all of it in small."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from video_gn.bench import _gpu_runs as runs
from video_gn.bench import gpu_check
from video_gn.bench._profile import profile_step
from video_gn.bench.gpu_check import STAGES, main, run_stage

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/gpu_check.sh"


def program(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


# ---- one stage ---------------------------------------------------------------------------------


def test_a_stage_that_fails_or_hangs_has_a_reason(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(sys, "executable", program(tmp_path / "fails", "echo begun; echo 'no such thing' >&2; exit 3"))
    found = run_stage("tests", [], 60)
    assert found["status"] == "failed"
    assert found["reasons"] == ["it ended with exit status 3: no such thing"]
    assert "    begun\n" in capfd.readouterr().err
    # Its own child must end with it.
    monkeypatch.setattr(sys, "executable", program(tmp_path / "hangs", f"sleep 300 & echo $! > {tmp_path}/pid; wait"))
    found = run_stage("tests", [], 1)
    assert (found["status"], found["reasons"]) == ("failed", ["it ran longer than 1 s"])
    status = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    # Gone, or dead until the system's first process takes notice.
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the stage's child goes on")


def test_a_stage_gives_what_it_found(monkeypatch, tmp_path):
    outcome = '{"figures": {"a": 1}, "lines": ["b"], "failures": ["c"], "skipped": ""}'
    text = f"while [ $# -gt 1 ]; do shift; done; echo '{outcome}' > $1/outcome.json"
    monkeypatch.setattr(sys, "executable", program(tmp_path / "works", text))
    found = run_stage("tests", [], 60)
    assert (found["status"], found["reasons"], found["figures"], found["lines"]) == ("failed", ["c"], {"a": 1}, ["b"])


# ---- all of them -------------------------------------------------------------------------------


def test_one_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    called = []

    def stage(name, words, seconds):
        called.append((name, words))
        status = {"steps": "failed", "compiled": "skipped"}.get(name, "passed")
        reasons = [] if status == "passed" else [f"because | {name}"]
        return {"status": status, "seconds": 1.0, "reasons": reasons, "figures": {}, "lines": [f"found by {name}"]}

    monkeypatch.setattr(gpu_check, "run_stage", stage)
    output = tmp_path / "new/check.json"
    assert main(["--device", "cpu", "--small", "--output", str(output)]) == 1
    assert called == [(name, ["--device", "cpu", "--small"]) for name in STAGES]
    check = json.loads(output.read_text())
    assert list(check["stages"]) == list(STAGES)
    assert {"processor", "device", "commit", "date", "torch"} <= set(check["machine"])
    page = (tmp_path / "new/check.md").read_text()
    assert "It says nothing about any GPU." in page
    assert "| Training steps | failed | 1 | because / steps |" in page
    assert all(f"## {stage.title}\n\nfound by {name}" in page for name, stage in STAGES.items())
    assert "[2/9] Training steps" in (said := capsys.readouterr().err) and "failed: steps\n" in said
    assert main(["--device", "cpu", "--output", str(output), "--stages", "norms", "compiled"]) == 0


def test_a_stage_without_time_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "LIMIT_SECONDS", 0)
    output = tmp_path / "check.json"
    assert main(["--device", "cpu", "--output", str(output), "--stages", "norms"]) == 1
    assert json.loads(output.read_text())["stages"]["norms"]["reasons"] == ["no time was left of 0 s"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "device must be one that torch has here, got 'cuda' (" in capsys.readouterr().err


def test_the_script_names_what_is_missing(tmp_path):
    """An interpreter without any package: -S leaves site-packages out."""
    bare = program(tmp_path / "python", f'exec {sys.executable} -S "$@"')
    done = subprocess.run(
        [SCRIPT], env={**os.environ, "PYTHON": bare, "PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"{bare} -m pip install 'torch>=2.11'" in done.stderr and "'pytorchvideo==0.1.5'" in done.stderr
    assert "torch is needed" in done.stderr


# ---- parts of stages ---------------------------------------------------------------------------


def test_the_largest_difference_of_two_states():
    one = {"a": [torch.tensor([1.0, -4.0]), 3], "b": {"c": torch.tensor(2)}}
    assert runs._difference(one, one) == 0
    assert runs._difference(one, {**one, "a": [torch.tensor([1.0, -3.0]), 3]}) == 0.25
    assert runs._difference(one, {**one, "a": [torch.tensor([1.0, -4.0]), 4]}) == float("inf")
    assert runs._difference(one, {**one, "b": {"d": torch.tensor(2)}}) == float("inf")
    assert runs._difference([], [torch.tensor(1.0)]) == float("inf")


@pytest.mark.slow
def test_the_norms_share_of_a_step():
    x = torch.randn(2, 8, 4, 6, 6, requires_grad=True)
    weight = torch.randn(8, 8, 1, 1, 1, requires_grad=True)
    one = profile_step(lambda: torch.nn.functional.group_norm(x, 2).sum().backward(), on_cuda=False)
    assert one["norms"] > 0 and one["convolutions"] == 0 and one["milliseconds"] > 0
    other = profile_step(lambda: torch.nn.functional.conv3d(x, weight).sum().backward(), on_cuda=False)
    assert other["convolutions"] > 0 and other["norms"] == 0
    for shares in (one, other):
        assert sum(shares[kind] for kind in ("norms", "convolutions", "copies", "other")) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_in_small(tmp_path):
    output = tmp_path / "check.json"
    words = [SCRIPT, "--device", "cpu", "--small", "--output", output]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    check = json.loads(output.read_text())
    status = {name: found["status"] for name, found in check["stages"].items()}
    needs_gpu = ("tests", "compiled", "autotuned")
    assert status == {name: "skipped" if name in needs_gpu else "passed" for name in STAGES}
    figures = {name: found["figures"] for name, found in check["stages"].items()}
    assert figures["resume"]["difference"] == 0
    assert len(set(figures["training"]["losses"]["device"])) == 8
    assert figures["norms"]["shares"]["group channels_last_3d bfloat16"]["norms"] > 0
    assert "pytorchvideo contiguous float32" in figures["steps"]["contenders"]
