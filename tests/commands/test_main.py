"""The console script: what it sets before torch is imported, and how it ends after errors and signals."""

import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from video_gn import __main__ as script
from video_gn.commands import fit
from video_gn.commands._terminal import set_up_logging
from video_gn.errors import CheckpointError, ConfigError, ManifestError, RunError, StoppedError


def test_threads_that_wait_sleep(monkeypatch):
    name, seen = "OMP_WAIT_POLICY", []
    monkeypatch.setattr(fit, "main", lambda *_: seen.append(os.environ[name]) or 0)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != name})
    assert script.main(["fit"]) == 0
    # Whoever sets it knows better.
    os.environ[name] = "ACTIVE"
    assert script.main(["test"]) == 0
    assert seen == ["PASSIVE", "ACTIVE"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stopped_study_says_how_to_resume(monkeypatch, capsys, number):
    monkeypatch.setattr("video_gn.study.run_study", lambda *_, **__: signal.raise_signal(number))
    study = Path(__file__).parents[2] / "configs/study/weizmann.yaml"
    assert script.main(["study", "-c", str(study)]) == 128 + number
    told = f"video-gn: {number.name}: stopped. The same command resumes from the last checkpoint.\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "video-gn: SIGINT: stopped."),
        (ConfigError("why"), 2, "video-gn: error: why"),
        (ManifestError("why"), 2, "video-gn: error: why"),
        (CheckpointError("why"), 2, "video-gn: error: why"),
        (RunError("why"), 1, "video-gn: error: why"),
        (StoppedError("SIGTERM: stopped.", status=143), 143, "video-gn: SIGTERM: stopped."),
    ],
)
def test_errors_in_a_line(monkeypatch, capsys, error, status, line):
    def fails(*_):
        raise error

    monkeypatch.setattr(fit, "main", fails)
    assert script.main(["fit"]) == status
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert script.main(["fit"]) == status
    assert (os.uname().nodename in capsys.readouterr().err) == (status < 128)


def test_fit_imports_neither_the_report_nor_the_unpickler_before_it_needs_them():
    code = (
        "import sys, video_gn.commands.fit\n"
        "late = [name for name in sys.modules if name.startswith(('video_gn.report', 'video_gn.weights._unpickle'))]\n"
        "assert not late, late"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lines_go_where_standard_error_goes_now(monkeypatch):
    """A progress bar replaces it, and loses lines that are written behind its back."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    set_up_logging()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    logging.getLogger("video_gn.x").warning("a line")
    logging.getLogger("video_gn.x").info("another")
    assert sys.stderr.getvalue() == "warning: a line\nanother\n"
    assert warnings.formatwarning("no place in the code", UserWarning, "x.py", 3) == "warning: no place in the code\n"
