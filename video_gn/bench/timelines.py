"""`video-gn bench infer --every`: the time of a timeline, against its parts: reading the frames, and the network.

The contenders take turns in this process: `label_videos`, as `video-gn infer --every` runs it; the same with a network
that does nothing; and the network alone, on the same batches.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_gn.bench._video import given_or_made, repeat_video
from video_gn.bench.infer import InferSetup
from video_gn.bench.measuring import (
    contender_row,
    describe_machine,
    head_lines,
    side_by_side,
    summarize,
    timed,
    verdict,
)
from video_gn.clips import Failure
from video_gn.errors import DecodeError
from video_gn.evaluation.predictor import Predictor
from video_gn.models import build_network
from video_gn.run.memory import keep_freed_memory
from video_gn.timelines.segments import TimelineConfig
from video_gn.timelines.timeline import label_videos

# A timeline divided by reading and network, one after the other.
TARGET = 1.1
_CLASSES = 400
_TIMES = 6  # that the made video of 10 s is repeated: timelines are of longer ones


def bench_timelines(setup: InferSetup, every_seconds: float, *, videos: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure the contenders; the figures are for `format_page` and json. Arguments and errors as `bench_infer`.

    If there are no videos, one of a minute is made.
    """
    keep_freed_memory()
    torch.manual_seed(0)
    arguments = {"network": setup.network, "norm": "batch", "width": setup.width, "num_classes": _CLASSES}
    predictor = setup.predictor(build_network(arguments | ({"layout": setup.layout} if setup.layout else {})))
    kept: list[torch.Tensor] = []
    reads = copy.copy(predictor)
    reads.scores = lambda frames_VTCHW, **_: np.zeros((len(frames_VTCHW), _CLASSES), np.float32)  # type: ignore[method-assign]
    keeps = copy.copy(predictor)
    keeps.scores = lambda frames_VTCHW, **_: kept.append(frames_VTCHW) or reads.scores(frames_VTCHW)  # type: ignore
    with tempfile.TemporaryDirectory(prefix="video-gn-bench-") as directory:
        paths = list(videos)
        if not paths:
            [short] = given_or_made((), directory)
            paths = [f"{directory}/long.mp4"]
            repeat_video(Path(short), Path(paths[0]), times=_TIMES)
        paths = [paths[i % len(paths)] for i in range(setup.num_videos)]

        def label(predictor: Predictor) -> list[dict[str, Any]]:
            return [_entry(e) for e in label_videos(predictor, paths, TimelineConfig(every_seconds))]

        num_windows = sum(len(entry["timeline"]["times"]) for entry in label(keeps))
        seconds = side_by_side(
            {
                "reading alone": timed(lambda _: label(reads)),
                "network alone": timed(lambda _: [predictor.scores(frames_VTCHW) for frames_VTCHW in kept]),
                "timeline": timed(lambda _: label(predictor)),
            },
            rounds,
        )
    summary = summarize(seconds)
    alone = summary["reading alone"]["median_ms"] + summary["network alone"]["median_ms"]
    return {
        "machine": describe_machine(),
        "setup": {**asdict(setup), "every_seconds": every_seconds},
        "rounds": rounds,
        "num_windows": num_windows,
        "contenders": summary,
        "ratio": summary["timeline"]["median_ms"] / alone,
        "target": TARGET,
    }


def _entry(result: dict[str, Any] | Failure) -> dict[str, Any]:
    if isinstance(result, Failure):
        raise DecodeError(result.path, result.reason)
    return result


def format_page(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    setup, ratio = result["setup"], result["ratio"]
    pixels = f"{setup['frames']}x{setup['size']}x{setup['size']}"
    lines = [
        *head_lines(result),
        f"{result['num_windows']} windows, one every {setup['every_seconds']:g} s, and {setup['num_clips']} clips of "
        f"{setup['num_videos']} video(s), {pixels} each,",
        f"{setup['network']} of width {setup['width']} with Batch Norm, on the CPU",
        *(contender_row(name, figures) for name, figures in result["contenders"].items()),
        f"  timeline / (reading + network): {ratio:.2f}, {verdict(ratio, at_most=result['target'])}",
    ]
    return "\n".join(lines) + "\n"
