"""scripts/demo.sh and the set-up before it, with stand-ins for Python, pip and video-gn."""

import os
import pty
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# As pip prints without its bars; the pauses are long enough for a line of progress.
PIP = """#!/bin/bash
[[ "$*" == *--version* ]] && exit 0
echo "Collecting av==18.1.0 (from video_gn)"
echo "  Downloading av-18.1.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (30 kB)"
echo "  Downloading torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl (531.2 MB)"
sleep $PAUSE
echo "Installing collected packages: av, torch"
[ "$BREAKS" != pip ] || { echo "ERROR: no space left"; exit 1; }
"""
# Notes its call, and makes the file that it was asked for; BREAKS names the command that fails.
VIDEO_GN = """#!/bin/bash
echo "$*" >> "$CALLS"
[[ "$BREAKS" != "$1" ]] || exit 130
[[ "$1" != infer ]] || touch "${@: -1}"
"""


@pytest.fixture
def stage(tmp_path):
    """A copy of the scripts with an environment of stand-ins."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").touch()
    for name, text in (("python", PIP), ("video-gn", VIDEO_GN)):
        program = tmp_path / ".venv/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "runs/demo").mkdir(parents=True)
    return tmp_path


def environment(stage, **more):
    return {"PATH": os.environ["PATH"], "CALLS": str(stage / "calls.txt"), "PAUSE": "0", "BREAKS": "", **more}


def demo(stage, **more):
    """Exit status, standard output and standard error."""
    done = subprocess.run(
        ["bash", "scripts/demo.sh"],
        cwd=stage,
        env=environment(stage, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_stopped_demo_resumes_and_a_finished_one_shows_its_results(stage):
    status, printed, errors = demo(stage, BREAKS="fit")
    assert status == 130 and "== 2/4 training" in printed and "== 3/4" not in printed
    assert errors.splitlines()[-1] == "== stopped; the same command resumes from here"
    status, printed, errors = demo(stage)
    assert (status, errors) == (0, ""), errors
    assert "set-up" not in printed, "installed by the first call"
    calls = (stage / "calls.txt").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["data", "fit", "data", "fit", "test", "infer"]
    assert all("--ckpt_path last" in call for call in calls if call.startswith("fit"))
    status, again, errors = demo(stage)
    assert (status, errors) == (0, ""), errors
    assert "finished demo" in again and again.endswith(printed[printed.index("accuracies") :])
    assert (stage / "calls.txt").read_text().splitlines() == calls


def test_the_set_up_says_how_far_it_is(stage):
    main, side = pty.openpty()
    process = subprocess.Popen(
        ["bash", "scripts/demo.sh"], cwd=stage, env=environment(stage, PAUSE="2"), stdout=side, stderr=side
    )
    assert process.wait(60) == 0
    os.close(side)
    printed = b""
    while True:
        try:
            printed += os.read(main, 65536)
        except OSError:
            break
    os.close(main)
    shown = [part.split("\r")[0] for part in printed.decode().split("\r\x1b[K")]
    assert any("1 packages, downloading torch-2.15.0 (531.2 MB)" in line for line in shown), shown
    assert max(len(line) for line in shown if "packages" in line) < 80


def test_a_set_up_that_fails_shows_what_pip_said(stage):
    status, _, errors = demo(stage, BREAKS="pip")
    assert status == 1
    assert "ERROR: no space left" in errors and "pip could not install" in errors.splitlines()[-1]
    assert not (stage / ".venv/.installed").exists()


def test_a_set_up_that_is_interrupted_takes_pip_with_it(stage):
    settings = {"cwd": stage, "env": environment(stage, PAUSE="30")}
    process = subprocess.Popen(["bash", "scripts/demo.sh"], stderr=subprocess.PIPE, text=True, **settings)
    log = stage / ".venv/install.log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "torch" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and "stopped; the same command installs the rest" in errors
    assert not (stage / ".venv/.installed").exists()
