"""The console script `video-gn`: a table of commands. Each is a module of `commands/`, imported when it is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import video_gn
from video_gn.checks import did_you_mean
from video_gn.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    ManifestError,
    RefusedError,
    StoppedError,
    VideoGNError,
)
from video_gn.files import error_of_system
from video_gn.shown import shown_message

# Command -> (help line, module of commands/, whose `main(command, words)` returns the exit status).
COMMANDS = {
    "fit": ("train a network: video-gn fit -c configs/demo.yaml", "fit"),
    "validate": ("validation figures of a checkpoint", "fit"),
    "test": ("test a checkpoint on all views of each video", "fit"),
    "predict": ("label a data module's videos, on all ranks of a launch", "fit"),
    "infer": ("label video files with a checkpoint: table, json, csv or json lines", "infer"),
    "similar": ("most similar videos, and near-copies between sets, by embeddings of infer", "similar"),
    "data": ("data sets: scan, prepare, show, synth", "data"),
    "weights": ("weight files of any zoo: inspect, convert", "weights"),
    "export": ("a network for use outside torch: .onnx or .pt2", "weights"),
    "study": ("norms x batch sizes x clips x seeds, to a table and figures", "report"),
    "explain": ("where a network looks in a video, and which seconds its answer needs", "explain"),
    "app": ("a page and a REST route that label videos with a checkpoint", "app"),
    "report": ("a run's page, report.html, or several runs side by side", "report"),
    "card": ("a model card of a run, with what its test measured", "report"),
    "hub": ("models of the Hugging Face Hub: save, push", "weights"),
    "plan": ("what a training will need: memory, cores, hours, disk", "plan"),
    "bench": ("speed, side by side in one run: data, fit, infer, start, test, train, weights", "bench"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Words after `video-gn`; None takes the process's.

    Returns:
        The exit status: 0; 1 for a run that failed; 2 for what another start would not cure: bad arguments, lists or
        checkpoints, a full or read-only disk; 3 if some videos could not be read; 128 + N after signal N.
    """
    if argv is None:
        _take_names_for_utf8()
    words = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    _allow_open_files()
    return _with_errors_in_a_line(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview() + "\n")
        return 0 if words else 2
    command, *rest = words
    if command == "--version":
        sys.stdout.write(f"video-gn {video_gn.__version__}\n")
        return 0
    if command not in COMMANDS:
        question = did_you_mean(command, COMMANDS) or f"There are {', '.join(COMMANDS)}."
        sys.stderr.write(f"video-gn: error: there is no command {command!r}. {question}\n")
        return 2
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current directory was removed. Change to one that is there: cd /") from None
    module = COMMANDS[command][1]
    if module == "fit" and {"-h", "--help"} & set(rest):
        from video_gn.commands.run_help import short_help

        short_help(command).print_help()
        return 0
    if module in ("fit", "plan"):
        # Loading workers share the cores with torch's threads; threads that spin while they wait take the workers'
        # time (on two cores 84 clips/s against 50). It must be set before torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    status: int = importlib.import_module(f"video_gn.commands.{module}").main(command, rest)
    return status


def _overview() -> str:
    lines = ["usage: video-gn COMMAND [options]", ""]
    lines += ["Train, test and run video classifiers with Group Normalization.", ""]
    lines += [f"  {name:9s} {text}" for name, (text, _) in COMMANDS.items()]
    lines += ["", "`video-gn COMMAND --help` lists a command's options; `video-gn --version` prints the version."]
    return "\n".join(lines)


def _take_names_for_utf8() -> None:
    """Start anew in Python's UTF-8 mode where it has another encoding, as with PYTHONUTF8=0 or a Latin-1 locale.

    Libraries could not open a file by a name beyond it, and all that is written is UTF-8.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_standard_streams() -> None:
    """Have the null device in place of streams that the caller has closed.

    Otherwise the next files to be opened, such as pipes to workers, would take their numbers, and what libraries print
    would go there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _allow_open_files() -> None:
    """As many as an administrator allows: workers need several each, and shells allow 256 or 1024 at first."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < (wanted := 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _with_errors_in_a_line(run: Callable[[], int]) -> int:
    """Run a command; print errors about files and settings in one line each, without a traceback."""
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except StoppedError as error:
        sys.stderr.write(f"video-gn: {shown_message(error)}\n")
        return error.status
    except VideoGNError as error:
        return _fail(error)
    except KeyboardInterrupt:  # commands without a `StopFlag`; what is in a journal is resumed
        sys.stderr.write("video-gn: SIGINT: stopped.\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has seen enough, as in `| head`; nothing is left to flush at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        return _fail(error_of_system(error))


def _fail(error: VideoGNError) -> int:
    from video_gn.run.slurm import place

    sys.stderr.write(f"video-gn{place()}: error: {shown_message(error)}\n")
    refusals = ManifestError | CheckpointError | ConfigError | RefusedError | DiskFullError
    return 2 if isinstance(error, refusals) else 1


if __name__ == "__main__":
    sys.exit(main())
