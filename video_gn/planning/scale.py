"""What one rank of a large run holds and waits for: `python -m video_gn.planning.scale`, without a network.

Each part is what rank R of WORLD_SIZE really runs, in a process of its own: reading the list, comparing it with other
ranks', the order of an epoch, and gathering the scores of a test, whose other ranks' rows are made up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from video_gn.bench.measuring import reset_peak, resident_bytes
from video_gn.checks import positive
from video_gn.lists.parquet import write_parquet
from video_gn.lists.read import read_manifest

_CLASSES = 400
_BATCH = 8
_CHUNK = 100_000


def _paths(number: int) -> Iterator[str]:
    """Names as long as those of Kinetics."""
    for i in range(number):
        yield f"class_number_{i % _CLASSES:03d}/{i:011d}_{i % 300:06d}_{i % 300 + 10:06d}.mp4"


def write_csv(path: Path, number: int) -> None:
    """Write a list `path,label`."""
    with path.open("w", encoding="utf-8") as file:
        file.write("path,label\n")
        file.writelines(f"{name},class {i % _CLASSES:03d}\n" for i, name in enumerate(_paths(number)))


def _batches(number: int) -> Iterator[tuple[list[str], list[str]]]:
    """The same list as columns, some rows at a time."""
    names = _paths(number)
    for start in range(0, number, _CHUNK):
        places = range(start, min(start + _CHUNK, number))
        yield [next(names) for _ in places], [f"class {i % _CLASSES:03d}" for i in places]


# ---- what a rank runs ----------------------------------------------------------------------------


def _read(setup: argparse.Namespace, suffix: str) -> tuple[Callable[[], Any], str]:
    return lambda: read_manifest(Path(setup.directory) / f"list{suffix}", check_files=False), "videos"


def _compare(setup: argparse.Namespace) -> tuple[Callable[[], Any], str]:
    manifest = read_manifest(Path(setup.directory) / "list.csv", check_files=False)
    return lambda: manifest.digest(of_copies=True), "videos"


def _order(setup: argparse.Namespace, *, balanced: bool) -> tuple[Callable[[], Any], str]:
    from video_gn.data.samplers import TrainSampler, epoch_order

    order = partial(epoch_order, labels=np.arange(setup.videos, dtype=np.int32) % _CLASSES) if balanced else None
    sampler = TrainSampler(
        setup.videos, batch_size=_BATCH, seed=0, rank=setup.rank, world_size=setup.world_size, order=order
    )
    return lambda: [key for key in sampler], "videos"  # noqa: C416 - a list keeps what a rank's workers are given


def _scores(setup: argparse.Namespace) -> tuple[Callable[[], Any], str]:
    import torch

    from video_gn.evaluation.accuracy import MultiViewAccuracy

    number = setup.test_videos // setup.world_size
    rows = torch.full((number, _CLASSES), 1 / _CLASSES)
    ids = torch.arange(number) * setup.world_size

    def gather(mine: Any, group: Any) -> list[Any]:
        """This rank's rows, and as many of every other rank, with their own ids."""
        is_ids = mine.dtype == torch.int64 and len(mine) == number and torch.equal(mine, ids)
        return [mine + rank if is_ids else mine.clone() for rank in range(setup.world_size)]

    metric = MultiViewAccuracy(_CLASSES, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(ids, rows * 10, ids % _CLASSES, 10)
    return metric.compute, "test_videos"


PARTS: dict[str, Callable[[argparse.Namespace], tuple[Callable[[], Any], str]]] = {
    "read the list, csv": lambda setup: _read(setup, ".csv"),
    "read the list, parquet": lambda setup: _read(setup, ".parquet"),
    "compare it with rank 0's": _compare,
    "an epoch's order": lambda setup: _order(setup, balanced=False),
    "an epoch's order, classes balanced": lambda setup: _order(setup, balanced=True),
    "a test's figures, of all ranks' videos": _scores,
}


def measure_part(setup: argparse.Namespace) -> dict[str, float]:
    """Seconds of a core, the highest memory above that before, and what stays, of a part in this process."""
    run, _ = PARTS[setup.part](setup)
    before = resident_bytes() or 0
    reset_peak()
    start = time.process_time()
    kept = run()
    seconds = time.process_time() - start
    peak, after = resident_bytes(peak=True) or 0, resident_bytes() or 0
    del kept
    return {"seconds": seconds, "peak_bytes": max(0, peak - before), "kept_bytes": max(0, after - before)}


# ---- all parts -----------------------------------------------------------------------------------


def simulate(videos: int, test_videos: int, world_size: int, rank: int, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Measure each part, in a process of its own."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="video-gn-scale-") as directory:
        write_csv(Path(directory) / "list.csv", videos)
        write_parquet(Path(directory) / "list.parquet", {"path": str, "label": str}, _batches(videos))
        for part in parts or PARTS:
            words = {"part": part, "directory": directory, "videos": videos, "test_videos": test_videos}
            words |= {"world_size": world_size, "rank": rank}
            command = [sys.executable, "-m", "video_gn.planning.scale"]
            command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[part] = json.loads(done.stdout)
    return found


def main(words: Sequence[str]) -> None:
    """Print a table of all parts, or one part's figures as json."""
    parser = argparse.ArgumentParser(prog="python -m video_gn.planning.scale", description=__doc__)
    parser.add_argument("--videos", type=positive, default=10_000_000, help="videos of the training list")
    parser.add_argument("--test_videos", type=positive, default=100_000, help="videos of a test")
    parser.add_argument("--world_size", type=positive, default=512, help="processes")
    parser.add_argument("--rank", type=int, default=511, help="the one that is played")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    setup = parser.parse_args(words)
    if setup.part is not None:
        sys.stdout.write(json.dumps(measure_part(setup)) + "\n")
        return
    sys.stdout.write(
        "| rank {rank} of {world_size} | seconds | MB at most | MB kept |\n|---|---|---|---|\n".format(**vars(setup))
    )
    for part, figures in simulate(setup.videos, setup.test_videos, setup.world_size, setup.rank).items():
        memory = " | ".join(f"{figures[name] / 1e6:,.0f}" for name in ("peak_bytes", "kept_bytes"))
        sys.stdout.write(f"| {part} | {figures['seconds']:.2f} | {memory} |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
