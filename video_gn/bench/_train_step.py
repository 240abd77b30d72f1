"""One contender of `video-gn bench train`: its net, its training step, and the step's memory in its own process.

Shape letters: N clips, C channels, T frames, H, W, Y classes.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from video_gn.bench.measuring import reset_peak, resident_bytes
from video_gn.models.resnet3d import I3D, i3d

PYTORCHVIDEO = "pytorchvideo"
# The layout with the stem and pools of pytorchvideo's i3d_r50: the same arithmetic, layer by layer.
PYTORCHVIDEO_LAYOUT = "slowfast"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
# TF32 is float32 whose products a CUDA device rounds to 10 bits.
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_PRECISIONS = ("float32", "bfloat16")
_NUM_CLASSES = 400
# So small that weights hardly change: a diverging net computes with numbers (inf, subnormal) of another speed.
_LEARNING_RATE = 1e-5


@dataclass(frozen=True, slots=True)
class TrainSetup:
    """Settings that all contenders share."""

    num_clips: int
    frames: int
    size: int  # height and width, px
    width: int  # channels of the stem
    layout: str
    device: str  # "auto" becomes "cuda" if there is a CUDA device, else "cpu"

    def __post_init__(self) -> None:
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if torch.cuda.is_available() else "cpu")

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured."""

    net: str  # kind of `NORMS`, or "pytorchvideo"
    memory_format: str  # key of `FORMATS`
    precision: str  # key of `PRECISIONS`; those of 16 bits by autocast, float16 with a gradient scaler
    compiled: bool = False
    checkpointed: bool = False

    @property
    def name(self) -> str:
        """Its key among the figures."""
        extra = [word for word in ("compiled", "checkpointed") if getattr(self, word)]
        return " ".join([self.net, self.memory_format, self.precision, *extra])


def build(contender: Contender, setup: TrainSetup) -> nn.Module:
    """The contender's net with new weights, in training mode on its device."""
    if contender.net == PYTORCHVIDEO:
        net = _pytorchvideo(setup)
    else:
        arguments: dict[str, Any] = {"layout": setup.layout, "norm": contender.net}
        if contender.net == "group":
            arguments["num_groups"] = math.gcd(32, setup.width)
        net = i3d(50, num_classes=_NUM_CLASSES, width=setup.width, **arguments)
    return net.train().to(setup.device).to(memory_format=FORMATS[contender.memory_format])


def _pytorchvideo(setup: TrainSetup) -> nn.Module:
    from pytorchvideo.models.hub import i3d_r50

    side = math.ceil(setup.size / 32)
    # The default for 32 frames of 224 px; a smaller clip needs a smaller window.
    window = (min(4, max(1, setup.frames // 2)), min(7, side), min(7, side))
    net: nn.Module = i3d_r50(
        pretrained=False, stem_dim_out=setup.width, model_num_class=_NUM_CLASSES, head_pool_kernel_size=window
    )
    return net


def make_step(net: nn.Module, contender: Contender, setup: TrainSetup) -> Callable[[], None]:
    """A training step on random clips: forward, cross entropy, backward, SGD."""
    generator = torch.Generator().manual_seed(0)
    shape = (setup.num_clips, 3, setup.frames, setup.size, setup.size)
    clip_NCTHW = torch.randn(shape, generator=generator)
    clip_NCTHW = clip_NCTHW.to(setup.device).contiguous(memory_format=FORMATS[contender.memory_format])
    labels_N = torch.randint(_NUM_CLASSES, (setup.num_clips,), generator=generator).to(setup.device)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=_LEARNING_RATE)
    kind, dtype = torch.device(setup.device).type, PRECISIONS[contender.precision]
    scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)

    def step() -> None:
        with float32_products(contender, setup):
            with torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32):
                logits_NY = net(clip_NCTHW)
            scaler.scale(F.cross_entropy(logits_NY.float(), labels_N)).backward()
            scaler.step(optimizer)
            scaler.update()
        # Nets hold no gradients while other contenders run.
        optimizer.zero_grad(set_to_none=True)

    return step


@contextmanager
def float32_products(contender: Contender, setup: TrainSetup) -> Iterator[None]:
    """Let a CUDA device compute float32 products as the precision says; torch's own choice is TF32 for convolutions."""
    kinds = {"float32": "ieee", "tf32": "tf32"}
    backends: Any = torch.backends
    settings = (backends.cudnn.conv, backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings if setup.on_cuda and contender.precision in kinds else ():
            setting.fp32_precision = kinds[contender.precision]
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def peak_bytes(contender: Contender, setup: TrainSetup) -> int | None:
    """The highest memory of a training step, with net and gradients but without the clips.

    Returns:
        On CUDA what torch allocated. On a CPU the growth of the memory in RAM since before the net was built, in a
        process of its own. None for lack of memory, if the process failed, or if the system has no /proc.
    """
    if setup.on_cuda:
        return _peak_on_cuda(contender, setup)
    request = {"contender": asdict(contender), "setup": asdict(setup), "num_threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, "-m", "video_gn.bench._train_step", json.dumps(request)],
        stdout=subprocess.PIPE,
        text=True,
        # glibc gives blocks above this limit back to the system when they are freed. Its own limit grows to 32 MiB, and
        # the memory in RAM would then include freed blocks. Other systems ignore the variable.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    if done.returncode != 0:
        return None
    return json.loads(done.stdout.splitlines()[-1])


def _peak_on_cuda(contender: Contender, setup: TrainSetup) -> int | None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(setup.device)
    try:
        net = build(contender, setup)
        set_checkpointing(net, contender)
        step = make_step(net, contender, setup)
        step()  # it allocates the libraries' workspaces
        torch.cuda.reset_peak_memory_stats(setup.device)
        step()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(setup.device) - before - _clip_bytes(setup)


def _peak_of_this_process(contender: Contender, setup: TrainSetup) -> int | None:
    gc.collect()
    before = resident_bytes()
    net = build(contender, setup)
    set_checkpointing(net, contender)
    step = make_step(net, contender, setup)
    if before is None or not reset_peak():  # building the net is no part of a step
        return None
    step()
    peak = resident_bytes(peak=True)
    return None if peak is None else peak - before - _clip_bytes(setup)


def _clip_bytes(setup: TrainSetup) -> int:
    return 4 * setup.num_clips * 3 * setup.frames * setup.size**2


def set_checkpointing(net: nn.Module, contender: Contender) -> None:
    """Turn the contender's activation checkpointing on or off; pytorchvideo's net has none."""
    if isinstance(net, I3D):
        net.activation_checkpointing = contender.checkpointed


def main(words: list[str]) -> None:
    """Measure the memory of the contender that the first word describes as json; write it to stdout."""
    request = json.loads(words[0])
    torch.set_num_threads(request["num_threads"])
    peak = _peak_of_this_process(Contender(**request["contender"]), TrainSetup(**request["setup"]))
    sys.stdout.write(json.dumps(peak) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
