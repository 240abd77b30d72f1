"""`video-gn bench test`: the time that several processes save in a test, each with one thread.

One process scores all views of every video; then several share the videos and gather their scores. They take turns
and are started once. The start does not count: reading, scoring, gathering and counting do.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed

from video_gn.bench._video import given_or_made
from video_gn.bench.measuring import (
    contender_row,
    describe_machine,
    head_lines,
    ratio_of_medians,
    side_by_side,
    summarize,
    verdict,
)
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig, EvalDataset
from video_gn.data.layout import collate
from video_gn.data.samplers import EvalSampler
from video_gn.decoding import open_video
from video_gn.errors import ConfigError
from video_gn.evaluation.accuracy import MultiViewAccuracy
from video_gn.evaluation.scores import score_views
from video_gn.lists.records import VideoRecord
from video_gn.models.resnet3d import i3d

log = logging.getLogger(__name__)

# For two processes on two idle cores.
TARGET = 0.6
_CLASSES = 400
_ALONE, _TOGETHER = "1 process", "{} processes"


@dataclass(frozen=True)
class EvalSetup:
    """What is tested."""

    num_videos: int
    num_clips: int
    frames: int
    size: int  # height and width, px
    width: int  # channels of the stem
    num_processes: int  # processes that share the videos


def bench_test(setup: EvalSetup, *, videos: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure tests in one process and in several; the figures are for `format_page` and json.

    Videos are taken in turns; if there are none, one of 340x256 and 10 s is made.

    Raises:
        ConfigError: for fewer than 2 processes.
        DecodeError: for a file that cannot be read.
    """
    if setup.num_processes < 2:
        raise ConfigError(f"num_processes must be at least 2, got {setup.num_processes!r}. Give 2 or more.")
    together = _TOGETHER.format(setup.num_processes)
    with tempfile.TemporaryDirectory(prefix="video-gn-bench-") as directory:
        paths = given_or_made(videos, directory)
        for path in paths:
            open_video(path).close()  # a file that cannot be read would take no time
        found: list[str] = []
        with _workers(setup, paths, directory) as pipes:
            seconds = side_by_side({_ALONE: _turn(pipes[:1], found), together: _turn(pipes, found)}, rounds)
    summary = summarize(seconds)
    return {
        "machine": {**describe_machine(), "num_threads": 1},
        "setup": asdict(setup),
        "rounds": rounds,
        "contenders": summary,
        "ratio": ratio_of_medians(summary, together, _ALONE),
        "target": TARGET if setup.num_processes == 2 else None,
        "same_results": len(set(found)) == 1,
    }


@contextmanager
def _workers(setup: EvalSetup, paths: Sequence[str], directory: str) -> Iterator[list[Connection]]:
    """Pipes to the processes of one group, which wait for their turn."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(setup.num_processes)]
    processes = [
        context.Process(target=_work, args=(rank, setup, paths, directory, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(ends)
    ]
    for process, (_, theirs) in zip(processes, ends, strict=True):
        process.start()
        theirs.close()
    log.info("starting %d processes", setup.num_processes)
    try:
        yield [mine for mine, _ in ends]
    finally:
        for mine, _ in ends:
            mine.close()
        for process in processes:
            process.join(10)
            process.kill()


def _turn(pipes: Sequence[Connection], results: list[str]) -> Callable[[int], float]:
    """A contender of `side_by_side`: a test by some processes; it adds what each has found to the results."""

    def run(number: int) -> float:
        for pipe in pipes:
            pipe.send(len(pipes))
        found = [pipe.recv() for pipe in pipes]
        results.extend(text for _, text in found)
        return max(taken for taken, _ in found)

    return run


def _work(rank: int, setup: EvalSetup, paths: Sequence[str], directory: str, pipe: Connection) -> None:
    """Test whenever the pipe gives a number of processes, until it is closed; answer with seconds and results."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = f"file://{directory}/store"
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=setup.num_processes, timeout=timedelta(minutes=30)
    )
    groups = math.gcd(32, setup.width)
    net = i3d(50, norm="group", num_groups=groups, width=setup.width, num_classes=_CLASSES).eval()
    net = net.to(memory_format=torch.channels_last_3d)
    records = [VideoRecord(paths[i % len(paths)], i % _CLASSES) for i in range(setup.num_videos)]
    dataset = EvalDataset(
        records,
        clip=ClipConfig(num_frames=setup.frames),
        crops=TestCrops("center", short_side_px=setup.size, crop_px=setup.size),
        num_clips=setup.num_clips,
    )
    while True:
        try:
            num_processes = pipe.recv()
        except EOFError:
            break
        if num_processes > 1:
            distributed.barrier()
        start = time.perf_counter()
        found = _test(net, dataset, EvalSampler(len(records), rank=rank, world_size=num_processes), num_processes > 1)
        pipe.send((time.perf_counter() - start, found))
    distributed.destroy_process_group()


@torch.inference_mode()
def _test(net: Any, dataset: EvalDataset, keys: EvalSampler, is_shared: bool) -> str:
    """Results of all processes, to the last bit."""
    metric = MultiViewAccuracy(_CLASSES, distributed_available_fn=lambda: is_shared)
    mean_C, std_C = torch.full((3,), 0.45), torch.full((3,), 0.225)
    for key in keys:
        batch = collate([dataset[key]])
        for frames, video_id, label in zip(batch.frames_NKTCHW, batch.video_ids, batch.labels, strict=True):
            scores_KY = score_views(net, frames, mean_C=mean_C, std_C=std_C, views_per_forward=len(frames))
            metric.update(video_id[None], scores_KY.sum(0, keepdim=True), label[None], len(scores_KY))
    return repr(metric.compute())


def format_page(result: dict[str, Any]) -> str:
    """The figures as text."""
    setup, ratio = result["setup"], result["ratio"]
    lines = [
        *head_lines(result),
        f"A test of {setup['num_videos']} videos, {setup['num_clips']} clips of {setup['frames']}x{setup['size']}x"
        f"{setup['size']} each, ResNet-50 I3D of width {setup['width']}, one thread in each process",
        *(contender_row(name, figures) for name, figures in result["contenders"].items()),
    ]
    target = "" if result["target"] is None else f", {verdict(ratio, at_most=result['target'])} (on as many idle cores)"
    lines.append(f"  time of several / of one: {ratio:.2f}{target}")
    lines.append(f"  results {'are the same to the last bit' if result['same_results'] else 'DIFFER'}")
    return "\n".join(lines) + "\n"
