"""Everything that only a GPU can show, in one command of a few minutes; `scripts/gpu_check.sh` calls it.

Each stage runs in a process of its own with a limit of its time: none ends another. A json and a page of markdown say
what each has found.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from video_gn.bench._gpu_runs import Outcome, Sizes
from video_gn.files import write_json, write_text

# All stages together must end within this; those that it leaves no time for fail.
LIMIT_SECONDS = 470


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the check: its title, its limit, and the module and function that do it."""

    title: str
    seconds: int
    module: str
    function: str

    def run(self, sizes: Sizes, work: Path) -> Outcome:
        """Do it in this process."""
        outcome: Outcome = getattr(importlib.import_module(f"video_gn.bench.{self.module}"), self.function)(sizes, work)
        return outcome


# The most important first.
STAGES = {
    "tests": Stage("Tests that need a GPU", 60, "_gpu_runs", "run_tests"),
    "steps": Stage("Training steps", 120, "_gpu_stages", "measure_steps"),
    "norms": Stage("Norms", 60, "_gpu_stages", "measure_norms"),
    "training": Stage("A training on the device and on the CPU", 60, "_gpu_runs", "check_training"),
    "resume": Stage("A resumed training", 75, "_gpu_runs", "check_resume"),
    "test": Stage("A test of ten clips", 60, "_gpu_stages", "measure_test"),
    "decoding": Stage("Decoding", 40, "_gpu_stages", "measure_decoding"),
    "compiled": Stage("Compiled training steps", 150, "_gpu_stages", "measure_compiled"),
    "autotuned": Stage("Training steps with cuDNN's search", 60, "_gpu_stages", "measure_autotuned"),
}


# ---- one stage -------------------------------------------------------------------------------------


def run_stage(name: str, words: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a stage in a process of its own, which may take some seconds; what it says is passed on.

    Returns:
        {"status": "passed", "failed" or "skipped", "seconds", "reasons", "figures", "lines"}.
    """
    with tempfile.TemporaryDirectory(prefix="video-gn-gpu-") as work:
        result = Path(work) / "outcome.json"
        start = time.monotonic()
        stage = subprocess.Popen(
            [sys.executable, "-m", "video_gn.bench.gpu_check", *words, "--stage", name, "--work", work],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # torch.profiler's libraries would write two lines for each use.
            env={**os.environ, "KINETO_LOG_LEVEL": "99"},
            start_new_session=True,
        )
        timer = threading.Timer(seconds, _kill, [stage])
        timer.start()
        last = "it said nothing"
        try:
            assert stage.stdout is not None
            for line in stage.stdout:
                sys.stderr.write(f"    {line}")
                last = line.strip() or last
            status = stage.wait()
        finally:
            timer.cancel()
            _kill(stage)
        taken = time.monotonic() - start
        if status == 0:
            found = Outcome(**json.loads(result.read_text(encoding="utf-8")))
        elif taken >= seconds:
            found = Outcome(failures=[f"it ran longer than {seconds:.0f} s"])
        else:
            found = Outcome(failures=[f"it ended with exit status {status}: {last}"])
    return {
        "status": "failed" if found.failures else "skipped" if found.skipped else "passed",
        "seconds": round(taken, 1),
        "reasons": found.failures or ([found.skipped] if found.skipped else []),
        "figures": found.figures,
        "lines": found.lines,
    }


def _kill(stage: subprocess.Popen[str]) -> None:
    """End a stage with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(stage.pid, signal.SIGKILL)


# ---- all of them -----------------------------------------------------------------------------------


def run_check(options: argparse.Namespace) -> int:
    """Run the stages, and write the json and the page after each, so that a stopped check leaves what it has."""
    from video_gn.bench.measuring import describe_machine

    check: dict[str, Any] = {
        "machine": {**describe_machine(options.device), **describe_gpu(options.device)},
        "device": options.device,
        "small": options.small,
        "stages": {},
    }
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    words = ["--device", options.device, *(["--small"] if options.small else [])]
    start = time.monotonic()
    for number, name in enumerate(options.stages, 1):
        stage = STAGES[name]
        seconds = min(stage.seconds, LIMIT_SECONDS - (time.monotonic() - start))
        if options.small:  # how fast a CPU is does not matter
            seconds = 10 * stage.seconds
        _say(f"[{number}/{len(options.stages)}] {stage.title}, at most {max(seconds, 0):.0f} s")
        if seconds > 0:
            found = run_stage(name, words, seconds)
        else:
            reason = f"no time was left of {LIMIT_SECONDS} s"
            found = {"status": "failed", "seconds": 0.0, "reasons": [reason], "figures": {}, "lines": []}
        check["stages"][name] = found
        _say("".join((f"    {found['status']} after {found['seconds']:.0f} s", *(f"; {r}" for r in found["reasons"]))))
        write_json(output, check)
        write_text(output.with_suffix(".md"), format_check(check))
    _say(f"written: {output} and {output.with_suffix('.md')}")
    failed = [name for name, found in check["stages"].items() if found["status"] == "failed"]
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def describe_gpu(device: str) -> dict[str, Any]:
    """Versions that a GPU's figures depend on, beside those of `describe_machine`."""
    import torch

    if not device.startswith("cuda"):
        return {}
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = None
    properties = torch.cuda.get_device_properties(device)
    return {
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def format_check(check: dict[str, Any]) -> str:
    """The page, in markdown."""
    machine = check["machine"]
    lines = [f"# GPU check: {machine['device']}, {machine['date']}", ""]
    if not check["device"].startswith("cuda"):
        lines += ["**A trial on a CPU, to see that the check works. It says nothing about any GPU.**", ""]
    lines += ["; ".join(f"{name} {value}" for name, value in machine.items() if value not in (None, [])), ""]
    lines += ["| stage | | seconds | |", "|---|---|---|---|"]
    for name, found in check["stages"].items():
        reasons = "; ".join(found["reasons"]).replace("|", "/")
        lines.append(f"| {STAGES[name].title} | {found['status']} | {found['seconds']:.0f} | {reasons} |")
    for name, found in check["stages"].items():
        if found["lines"]:
            lines += ["", f"## {STAGES[name].title}", "", *found["lines"]]
    return "\n".join(lines) + "\n"


def _refused(device: str) -> str:
    """Why torch cannot compute on a device; "" if it can."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        return f"device must be one that torch has here, got {device!r} ({reason}). Without a GPU: --device cpu --small"
    return ""


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line; run all stages, or the one that `--stage` names."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description=__doc__)
    parser.add_argument("--device", default="cuda", help="device: cuda, cuda:1, cpu (cuda)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a trial on a CPU")
    parser.add_argument("--output", default="runs/gpu_check.json", metavar="FILE", help="json; the page lies beside it")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        metavar="STAGE",
        help=f"some of {', '.join(STAGES)}",
    )
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.stage is None:
        reason = _refused(options.device)
        if reason:
            parser.error(reason)
        return run_check(options)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    work = Path(options.work)
    outcome = STAGES[options.stage].run(Sizes(options.device, options.small), work)
    write_json(work / "outcome.json", asdict(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
