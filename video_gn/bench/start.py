"""`video-gn bench start`: CPU seconds that commands take before they begin to work, each in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from video_gn.bench.measuring import contender_row, describe_machine, head_lines, side_by_side, summarize, verdict
from video_gn.errors import VideoGNError

# CPU seconds of `fit` from its start to the first batch, beyond those of `import lightning`.
TARGET_SECONDS = 1.0
_COMMAND = "from video_gn.__main__ import main; raise SystemExit(main({words!r}))"
# The process ends where the training asks for its loader.
_TO_FIRST_BATCH = (
    "import os\nfrom video_gn.data.datamodule import VideoDataModule\n"
    "VideoDataModule.train_dataloader = lambda self: os._exit(0)\n" + _COMMAND
)
_LIGHTNING, _FIT = "import lightning", "fit, to the first batch"
# A network and clips so small that they cost next to nothing.
_TINY = (
    "--model.net=video_gn.models.i3d --model.net.init_args.depth=50 --model.net.init_args.width=4 "
    "--model.net.init_args.num_groups=1 --data.clip.num_frames=8 --data.augment.crop_px=32 "
    "--data.augment.short_side_px=[32,32] --data.views.crop_px=32 --data.views.short_side_px=32 "
    "--data.views.num_clips=1 --data.loader.num_workers=0 --trainer.accelerator=cpu --trainer.max_steps=1"
)


def bench_start(*, rounds: int) -> dict[str, Any]:
    """CPU seconds, user and system, of whole processes that take turns; a VideoGNError if one fails."""
    with tempfile.TemporaryDirectory() as directory:
        videos, run = f"{directory}/videos", f"{directory}/run"
        small = "--train_per_class=1 --val_per_class=1"
        _run(_COMMAND.format(words=["data", "synth", videos, *small.split()]))
        fit = ["fit", *_TINY.split(), f"--data.train={videos}", f"--run_dir={run}"]
        _run(_COMMAND.format(words=fit))
        video = str(min(Path(videos).rglob("*.mp4")))
        infer = ["infer", video, "--checkpoint", run, "--num_workers", "0", "--quiet"]
        fit[-1] += "_of_round"
        code = {
            "import torch": "import torch",
            _LIGHTNING: "import lightning",
            "fit --help": _COMMAND.format(words=["fit", "--help"]),
            "fit --help_all": _COMMAND.format(words=["fit", "--help_all"]),
            _FIT: _TO_FIRST_BATCH.format(words=fit),
            "infer, one small video": _COMMAND.format(words=infer),
        }
        contenders: dict[str, Callable[[int], float]] = {name: partial(_seconds, text) for name, text in code.items()}
        found = summarize(side_by_side(contenders, rounds))
    return {
        "machine": describe_machine(),
        "rounds": rounds,
        "contenders": found,
        "fit_beyond_lightning_seconds": (found[_FIT]["median_ms"] - found[_LIGHTNING]["median_ms"]) / 1000,
        "target_seconds": TARGET_SECONDS,
    }


def _seconds(code: str, number: int) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise VideoGNError(f"a command to be measured failed:\n{done.stderr}")


def format_page(result: dict[str, Any]) -> str:
    """The figures as text."""
    beyond = result["fit_beyond_lightning_seconds"]
    return "\n".join(
        (
            *head_lines(result),
            "CPU time, user and system, of a whole process",
            *(contender_row(name, figures) for name, figures in result["contenders"].items()),
            f"  fit to the first batch beyond `{_LIGHTNING}`: {beyond:.2f} s, "
            f"{verdict(beyond, at_most=result['target_seconds'])}\n",
        )
    )
