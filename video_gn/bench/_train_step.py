"""One contender of `video-gn bench train`: its net, its training step, and the step's memory in a process of its own.

Shape letters: N clips, C channels, T frames, H, W, Y classes.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from video_gn.models.resnet3d import i3d

PYTORCHVIDEO = "pytorchvideo"
# Whose stem and pools are those of pytorchvideo's i3d_r50: the same arithmetic, layer by layer.
PYTORCHVIDEO_LAYOUT = "slowfast"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHECKPOINTING = "activation_checkpointing"
_NUM_CLASSES = 400
# So small that weights stay where they are: a net that blows up computes with numbers of another speed.
_LEARNING_RATE = 1e-5


@dataclass(frozen=True, slots=True)
class TrainSetup:
    """What all contenders share.

    Args:
        num_clips: N.
        frames: T.
        size: H and W, in px.
        width: channels of the stem.
        layout: of the nets' stem and pools; pytorchvideo's net is of the layout "slowfast".
        device: "auto" for a CUDA device where there is one, or what torch calls the device.
    """

    num_clips: int = 2
    frames: int = 32
    size: int = 224
    width: int = 64
    layout: str = PYTORCHVIDEO_LAYOUT
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_clips", "frames", "size", "width"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}. The targets hold for 2, 32, 224 and 64.")
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if torch.cuda.is_available() else "cpu")

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return torch.device(self.device).type == "cuda"


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured.

    Args:
        net: a kind of `NORMS`, or "pytorchvideo".
        memory_format: a key of `FORMATS`.
        precision: a key of `PRECISIONS`; all but float32 by autocast.
        compiled: by `net.compile()`.
        checkpointed: with activation checkpointing.
    """

    net: str
    memory_format: str
    precision: str
    compiled: bool = False
    checkpointed: bool = False

    @property
    def name(self) -> str:
        """Its key in the figures."""
        extra = [word for word in ("compiled", "checkpointed") if getattr(self, word)]
        return " ".join([self.net, self.memory_format, self.precision, *extra])


def build(contender: Contender, setup: TrainSetup) -> nn.Module:
    """The contender's net, in training mode on its device; freshly drawn."""
    if contender.net == PYTORCHVIDEO:
        net = _pytorchvideo(setup)
    else:
        groups = {"num_groups": math.gcd(32, setup.width)} if contender.net == "group" else {}
        arguments: dict[str, Any] = {"layout": setup.layout, "norm": contender.net, **groups}
        net = i3d(50, num_classes=_NUM_CLASSES, width=setup.width, **arguments)
    return net.train().to(setup.device).to(memory_format=FORMATS[contender.memory_format])


def _pytorchvideo(setup: TrainSetup) -> nn.Module:
    from pytorchvideo.models.hub import i3d_r50

    side = math.ceil(setup.size / 32)
    # As it comes at 32 frames of 224 px; a smaller clip needs a smaller window.
    window = (min(4, max(1, setup.frames // 2)), min(7, side), min(7, side))
    net: nn.Module = i3d_r50(
        pretrained=False, stem_dim_out=setup.width, model_num_class=_NUM_CLASSES, head_pool_kernel_size=window
    )
    return net


def make_step(net: nn.Module, contender: Contender, setup: TrainSetup) -> Callable[[], float]:
    """A training step on random clips: forward, cross entropy, backward, SGD. It returns the seconds it took."""
    generator = torch.Generator().manual_seed(0)
    shape = (setup.num_clips, 3, setup.frames, setup.size, setup.size)
    clip_NCTHW = torch.randn(shape, generator=generator)
    clip_NCTHW = clip_NCTHW.to(setup.device).contiguous(memory_format=FORMATS[contender.memory_format])
    labels_N = torch.randint(_NUM_CLASSES, (setup.num_clips,), generator=generator).to(setup.device)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=_LEARNING_RATE)
    kind, dtype = torch.device(setup.device).type, PRECISIONS[contender.precision]

    def step() -> None:
        with torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32):
            logits_NY = net(clip_NCTHW)
        F.cross_entropy(logits_NY.float(), labels_N).backward()
        optimizer.step()
        # Nets that wait for their turn hold no gradients.
        optimizer.zero_grad(set_to_none=True)

    def timed() -> float:
        if not setup.on_cuda:
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(setup.device)
        before.record()
        step()
        after.record()
        torch.cuda.synchronize(setup.device)
        return float(before.elapsed_time(after)) / 1000

    return timed


def peak_bytes(contender: Contender, setup: TrainSetup) -> int | None:
    """The highest memory of a training step, net and gradients included, clips not; in a process of its own.

    Returns:
        On a CPU the growth of the memory in RAM since before the net was built, on CUDA what torch allocated;
        None where the system does not tell, or the process came to its end before (of too little memory, say).
    """
    request = {"contender": asdict(contender), "setup": asdict(setup), "num_threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, "-m", "video_gn.bench._train_step", json.dumps(request)],
        stdout=subprocess.PIPE,
        text=True,
        # glibc gives larger blocks back to the system when they are freed; its own limit grows to 32 MiB, and the
        # memory in RAM would then tell of its holes, not of what is in use. Other systems ignore the variable.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    if done.returncode != 0:
        return None
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak_of_this_process(contender: Contender, setup: TrainSetup) -> int | None:
    clip_bytes = 4 * setup.num_clips * 3 * setup.frames * setup.size**2
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not setup.on_cuda and not clear.exists():
        return None
    gc.collect()
    before = 0 if setup.on_cuda else _bytes(status, "VmRSS")
    net = build(contender, setup)
    set_checkpointing(net, contender)
    step = make_step(net, contender, setup)
    if setup.on_cuda:
        step()  # the libraries' workspaces are there from then on
        torch.cuda.reset_peak_memory_stats(setup.device)
        step()
        return torch.cuda.max_memory_allocated(setup.device) - clip_bytes
    try:
        clear.write_text("5")  # the highest mark starts anew: building and drawing are no part of a step
    except OSError:
        return None
    step()
    return _bytes(status, "VmHWM") - before - clip_bytes


def set_checkpointing(net: nn.Module, contender: Contender) -> None:
    """Turn the contender's activation checkpointing on or off; pytorchvideo's net has none."""
    if contender.net != PYTORCHVIDEO:
        setattr(net, CHECKPOINTING, contender.checkpointed)


def _bytes(status: Path, name: str) -> int:
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{name}:"))


def main(words: list[str]) -> None:
    """Measure the memory of the contender that the first word describes in json, and write it to stdout."""
    request = json.loads(words[0])
    torch.set_num_threads(request["num_threads"])
    peak = _peak_of_this_process(Contender(**request["contender"]), TrainSetup(**request["setup"]))
    sys.stdout.write(json.dumps(peak) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
