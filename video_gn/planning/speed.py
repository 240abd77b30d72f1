"""Time of a training step and of a forward pass on this machine, measured on random clips.

Shape letters: N clips, C channels, T frames, H, W.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from video_gn.bench.measuring import timed
from video_gn.evaluation.scores import normalize_clips
from video_gn.planning.memory import Step, build_net, count_memory, count_training_macs
from video_gn.run.memory import keep_freed_memory
from video_gn.training.optimizer import build_optimizer

# Multiply-adds of a measured step at most: some seconds of a CPU.
_MOST_MACS = 4e11
_SECONDS, _FEWEST_STEPS = 6.0, 3


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    device: str  # name of the device
    num_threads: int  # of torch on a CPU
    batch_size: int  # clips of a measured step
    seconds: float  # of a training step, a clip
    forward_seconds: float  # of a forward pass in evaluation, a clip


def memory_of_machine() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_speed(step: Step, batch_size: int) -> Speed:
    """Time training steps on this machine's GPU, or else on its CPU, as fit would compute them there.

    The batch is smaller than `batch_size` if a step of it would take long, or much of the memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = batch_size
    if device.type == "cpu":
        keep_freed_memory()
        size = min(size, max(1, int(_MOST_MACS // count_training_macs(step)[1])))
    peak = count_memory(step).peak
    memory = memory_of_machine() if device.type == "cpu" else torch.cuda.mem_get_info()[0]
    while size > 1 and peak(size) > 0.5 * memory:
        size //= 2
    net = build_net(step, device)
    optimizer = build_optimizer(net, step.optimizer, global_batch_size=size)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6  # random labels would make it diverge, and odd numbers have another speed
    frames, height, width = step.clip_THW
    frames_NTCHW = torch.randint(256, (size, frames, height, width, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    frames_NTCHW = frames_NTCHW.to(device)
    labels_N = torch.zeros(size, dtype=torch.long, device=device)
    pixels_C = torch.full((3,), 0.45, device=device)

    def loss_of() -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=step.half):
            logits_NY = net(normalize_clips(frames_NTCHW, pixels_C, pixels_C))
            return F.cross_entropy(logits_NY, labels_N)

    def train() -> None:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = _median_seconds(train, device)
    net.eval()
    with torch.inference_mode():
        forward = _median_seconds(loss_of, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Speed(name, torch.get_num_threads(), size, seconds / size, forward / size)


def _median_seconds(action: Callable[[], object], device: torch.device) -> float:
    """Median of some calls after a first one."""
    run = timed(lambda _: action(), device)
    run(0)
    taken: list[float] = []
    while len(taken) < _FEWEST_STEPS or (sum(taken) < _SECONDS / 2 and len(taken) < 200):
        taken.append(run(1))
    return statistics.median(taken)
