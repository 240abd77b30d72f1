"""The console script: what it sets before torch is imported, and how it ends after errors and signals."""

import errno
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.summary.writer import event_file_writer

from video_gn import __main__ as script
from video_gn.commands import fit
from video_gn.commands._terminal import quieten_lightning, set_up_logging
from video_gn.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    ManifestError,
    RefusedError,
    RunError,
    StoppedError,
)


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


PERMISSIONS = "Choose a directory that this user may write to, or change its permissions."


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "video-gn: SIGINT: stopped."),
        (ConfigError("why"), 2, "video-gn: error: why"),
        (ManifestError("why"), 2, "video-gn: error: why"),
        (CheckpointError("why"), 2, "video-gn: error: why"),
        (RunError("why"), 1, "video-gn: error: why"),
        (DiskFullError("why"), 2, "video-gn: error: why"),
        (RefusedError("why"), 2, "video-gn: error: why"),
        (OSError(errno.EROFS, "Read-only", "/a/b"), 2, f"video-gn: error: /a/b: Read-only. {PERMISSIONS}"),
        (PermissionError(errno.EACCES, "Denied", "/a/b"), 2, f"video-gn: error: /a/b: Denied. {PERMISSIONS}"),
        (
            OSError(errno.EIO, "Input/output error", "/a"),
            1,
            "video-gn: error: /a: Input/output error. Run the command again.",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            2,
            "video-gn: error: the system refused: Too many open files. "
            "Allow more open files (ulimit -n 65536), or take fewer workers.",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", b"/a"),
            2,
            "video-gn: error: /a: No such file. If it was removed meanwhile, run the command again.",
        ),
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_wherever_it_shows(monkeypatch, capsys, tmp_path, number):
    def fails(*_):
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr(fit, "main", fails)
    assert script.main(["fit"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"video-gn: error: {tmp_path / 'x'} could not be written: {os.strerror(number)}. ")
    assert "Make room" in printed and printed.count("\n") == 1


def test_tensorboard_on_a_full_disk_prints_no_traceback(monkeypatch, capsys, tmp_path):
    """Its writer is a thread; the main one raises its error too."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr("time.time", lambda: 7)
    set_up_logging()
    quieten_lightning()
    (tmp_path / f"events.out.tfevents.0000000007.host.{os.getpid()}.x").symlink_to("/dev/full")
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=lambda: "x"))
    with pytest.raises(OSError, match="No space left"):
        event_file_writer.EventFileWriter(str(tmp_path))
    printed = capsys.readouterr().err
    assert "warning: TensorBoard's events could not be written: [Errno 28]" in printed and "Traceback" not in printed


def test_a_current_directory_that_is_gone(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    for command in script.COMMANDS:
        assert script.main([command, "x"]) == 2
        assert capsys.readouterr().err == (
            "video-gn: error: the current directory was removed. Change to one that is there: cd /\n"
        )


@pytest.mark.parametrize(("words", "named"), [((), "'ü'"), (("-X", "utf8=0"), r"'\udcc3\udcbc'")])
def test_names_are_utf8_whatever_the_locale(words, named):
    """Where Python takes them for ASCII, libraries cannot open a file by such a name; who insists gets it so."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, *words, "-m", "video_gn", "ü"]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 2 and f"there is no command {named}." in done.stderr


STREAMS = """
import os, sys
from video_gn import __main__ as script
from video_gn.commands import report
def main(*_):
    numbers = os.pipe()
    os.write(1, b"one"); os.write(2, b"two"); print("three"); print("four", file=sys.stderr)
    open(sys.argv[1], "w").write(repr(numbers))
    return 0
report.main = main
sys.exit(script.main(["report"]))
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_become_no_other_file(tmp_path, closed):
    """What is printed then would go into the next file that is opened, such as a pipe between processes."""
    words = ["sh", "-c", f'exec "$@" {closed}', "-", sys.executable, "-c", STREAMS, tmp_path / "numbers"]
    assert subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    assert min(eval((tmp_path / "numbers").read_text())) > 2


@pytest.mark.parametrize("words", ["--help", "bench --help"])
def test_a_reader_that_leaves_and_a_full_disk_behind_the_output(words):
    command = f"{sys.executable} -m video_gn {words}"
    # On a busy machine the reader may leave after a command has ended that does not wait for it.
    lines = f"(sleep 0.4; {command}; echo $? >&2) | exec true\n{command} >/dev/full; echo $? >&2"
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, timeout=120)
    full = "video-gn: error: the system refused: No space left on device. Make room, and run the command again.\n"
    assert done.stderr in (f"1\n{full}2\n", "0\n0\n"), done.stderr  # argparse keeps such errors to itself


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
