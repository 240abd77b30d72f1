"""`video-gn bench fit`: what a training takes beside its network, loss and optimizer, and how long it waits for videos.

The training is a `video-gn fit` of the given settings in a process of its own, with logs, guards and checkpoints. Its
first epoch reads videos. Later ones take the same batches from memory, and after each of them a bare loop takes a step
on each: clips to float, forward, cross entropy, backward, optimizer, with the same network and optimizer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from video_gn.bench.measuring import (
    contender_row,
    describe_machine,
    head_lines,
    ratio_of_medians,
    summarize,
    time_on,
    verdict,
)
from video_gn.clips import ClipBatch
from video_gn.errors import ConfigError, RunError
from video_gn.evaluation.scores import normalize_clips
from video_gn.files import write_json

# Speed of `fit` on batches in memory, divided by the bare loop's.
TARGET = 0.98
# The first and the last of an epoch's steps are not counted, and a mean needs some.
_MIN_STEPS = 4


def bench_fit(words: Sequence[str], *, steps: int, rounds: int) -> dict[str, Any]:
    """Measure a training's steps, in one process, without accumulation and validation.

    `words` are config and settings of `video-gn fit`; a round has at most the steps of an epoch. Fewer than 4 steps are
    a ConfigError.
    """
    if steps < _MIN_STEPS:
        raise ConfigError(f"steps must be at least {_MIN_STEPS}, got {steps!r}. The first and last are not counted.")
    with tempfile.TemporaryDirectory(prefix="video-gn-bench-") as directory:
        output = Path(directory) / "figures.json"
        callback = {"class_path": f"{__name__}.LoopClock", "init_args": {"output": str(output)}}
        fixed = {
            "run_dir": f"{directory}/run",
            "trainer.devices": 1,
            "trainer.num_nodes": 1,
            "trainer.accumulate_grad_batches": 1,
            "trainer.limit_train_batches": steps,
            "trainer.limit_val_batches": 0,
            "trainer.max_epochs": rounds + 2,  # one that reads videos, and one to warm up
            "trainer.max_steps": -1,
            "trainer.callbacks+": json.dumps(callback),
        }
        command = [sys.executable, "-m", "video_gn", "fit", *words]
        command += [f"--{key}={value}" for key, value in fixed.items()]
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if status != 0 or not output.is_file():
            raise RunError(f"the training must run to its end, got exit status {status}. See what it said above.")
        return {**json.loads(output.read_text()), "steps": steps, "rounds": rounds}


class LoopClock(Callback):
    """Times the steps of a training, and a bare loop's in between; writes the figures into `output`, a json file."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.seconds: dict[str, list[list[float]]] = {"fit": [], "bare": []}  # of the steps of each epoch
        self._times: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let all epochs after the first take its batches from memory."""
        data = cast(Any, trainer).datamodule
        make = data.train_dataloader

        def replayed() -> _Replay:  # Lightning asks once
            self.replay = _Replay(make(), int(trainer.limit_train_batches))
            return self.replay

        data.train_dataloader = replayed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Take the times from the start of an epoch's second batch to that of its last."""
        last = len(self.replay) - 1
        if batch_idx == 1:
            self._times = []
        if batch_idx in (1, last) or _is_cpu(pl_module):
            self._times.append(time_on(pl_module.device))
        if batch_idx == last:
            self.seconds["fit"].append(_steps(self._times, last - 1))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bare loop's turn."""
        if trainer.current_epoch > 0:
            batches = [batch.to(pl_module.device) for batch in self.replay.batches]
            self.seconds["bare"].append(_bare_loop(trainer, pl_module, batches))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures."""
        # An epoch reads videos, one warms up.
        epochs = {"fit": self.seconds["fit"][2:], "bare": self.seconds["bare"][1:]}
        summary = summarize({name: list(chain(*steps)) for name, steps in epochs.items()})
        waits = self.replay.waits[2:]  # those between the two times above
        net: Any = pl_module.net
        write_json(
            self.output,
            {
                "machine": describe_machine(str(pl_module.device)),
                "clips": list(self.replay.batches[0].frames_NKTCHW.shape),
                "net": {name: net.arguments[name] for name in ("depth", "width", "norm", "layout")},
                "precision": str(trainer.precision),
                "contenders": summary,
                "speed": ratio_of_medians(summary, "bare", "fit"),
                "from_files": {
                    "step_ms": 1000 * statistics.mean(self.seconds["fit"][0]),
                    "wait_ms": 1000 * statistics.mean(waits),
                },
            },
        )


class _Replay:
    """Batches of a loader; the same ones from memory when they are asked for again."""

    def __init__(self, loader: Any, num_batches: int) -> None:
        self._loader, self._num_batches = loader, min(num_batches, len(loader))
        if self._num_batches < _MIN_STEPS:
            raise ConfigError(f"an epoch must have at least {_MIN_STEPS} batches, got {len(loader)}. Take more videos.")
        self.batches: list[ClipBatch] = []
        self.waits: list[float] = []  # for each batch of the loader, in seconds

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[ClipBatch]:
        if self.batches:
            yield from self.batches
            return
        loader = iter(self._loader)
        for _ in range(self._num_batches):
            start = time.perf_counter()
            batch = next(loader)
            self.waits.append(time.perf_counter() - start)
            self.batches.append(batch)
            yield batch


def _bare_loop(trainer: Trainer, pl_module: Any, batches: Sequence[ClipBatch]) -> list[float]:
    """Seconds of the steps; the first is not counted."""
    net, (optimizer,) = pl_module.net, trainer.optimizers
    clip, autocast = trainer.gradient_clip_val, trainer.precision_plugin.train_step_context
    times = []
    for number, batch in enumerate(batches):
        if number == 1 or (number and _is_cpu(pl_module)):
            times.append(time_on(pl_module.device))
        optimizer.zero_grad()
        with autocast():
            x_NCTHW = normalize_clips(batch.frames_NKTCHW.flatten(0, 1), pl_module.mean, pl_module.std)
            loss = F.cross_entropy(net(x_NCTHW), batch.labels.repeat_interleave(batch.frames_NKTCHW.shape[1]))
        loss.backward()
        if clip:
            clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return _steps([*times, time_on(pl_module.device)], len(batches) - 1)


def _steps(times: Sequence[float], num_steps: int) -> list[float]:
    """Seconds of each step between times; their mean, where only the first and the last time were taken."""
    steps_between = num_steps // (len(times) - 1)
    return [(end - start) / steps_between for start, end in pairwise(times)]


def _is_cpu(pl_module: LightningModule) -> bool:
    """Whether each step can be timed: a GPU runs behind the host, and waiting for it at each step would change that."""
    return pl_module.device.type == "cpu"


def format_page(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    videos, views, frames, _, _, side = result["clips"]
    clips, net, files = videos * views, result["net"], result["from_files"]
    step, wait = files["step_ms"], files["wait_ms"]
    labels = {"fit": "fit, batches from memory", "bare": "a bare loop on the same batches"}
    found = result["contenders"]
    lines = [
        *head_lines(result),
        f"A training step on {clips} clips of {frames}x{side}x{side}, ResNet-{net['depth']} I3D of width "
        f"{net['width']}, {net['norm']} norm, precision {result['precision']}, on {result['machine']['device']}",
        *(
            contender_row(label, found[name], f"{1000 * clips / found[name]['median_ms']:.1f} clips/s")
            for name, label in labels.items()
        ),
        f"  speed of fit / of the bare loop: {result['speed']:.3f}, {verdict(result['speed'], at_least=TARGET)}",
        f"  fit, batches from files: {step:.1f} ms a step, {wait:.1f} ms of it ({wait / step:.0%}) waiting for them",
    ]
    return "\n".join(lines) + "\n"
