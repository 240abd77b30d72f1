"""`video-gn bench infer`: the time from video files to labels on a CPU, against pytorchvideo.

Each contender reads the same frames of the same videos and scores them with the same weights of one network, so that
all scores must be equal. Weights are random, running statistics near the first video's. The contenders take
turns, each in a process of its own, since `video-gn infer` keeps freed memory (`run/memory.py`):

- pytorchvideo as it comes: its hub's network, such as `i3d_r50`, and its `EncodedVideo` clip by clip. Its transforms do
  not import with a current torchvision, whose own resize, crop and normalize stand in.
- pytorchvideo's pieces used well: each video decoded once for all clips, frames resized once, all clips in one
  forward, channels_last_3d.
- video_gn: `Predictor`, as `video-gn infer` runs it; if asked for, also with each other engine that is installed, in
  bfloat16 where the CPU has it, and in int8 where NNCF is installed, calibrated on the same videos. Scores in bfloat16
  and int8 are others.

Shape letters: K clips of a video, T frames, C channels, H, W, Y classes.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from video_gn import sampling
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
from video_gn.clips import Failure
from video_gn.data.crops import TestCrops, resized_size
from video_gn.data.dataset import ClipConfig
from video_gn.decoding import open_video
from video_gn.errors import ConfigError, DecodeError
from video_gn.evaluation.predictor import Predictor
from video_gn.export import EngineNet, export, half_engines, installed_engines, load_engine, write_int8
from video_gn.export.reading import read_onnx_about
from video_gn.lists.records import VideoRecord
from video_gn.models import I3D_NETWORK, VideoNet
from video_gn.run.memory import keep_freed_memory
from video_gn.weights.build import load_net

log = logging.getLogger(__name__)

# pytorchvideo as it comes divided by ours, by torch, by the fastest engine in float32, and in int8.
TARGET, ENGINE_TARGET, INT8_TARGET = 4.0, 6.0, 10.0
# Scores are rounded to 6 digits, and kernels add in another order: 1e-6 to the softmax of logits around 10.
TOLERANCE = 1e-5
_CLASSES, _TOP_K = 400, 5
_MEAN, _STD = 0.45, 0.225  # of pytorchvideo's recipe
_SPACING = "uniform"  # no clip runs past a video's end, which EncodedVideo could not read

# Clips of the recipes of pytorchvideo's hub, and the stem's channels.
SIZES = {
    I3D_NETWORK: {"frames": 8, "size": 224, "width": 64},
    "x3d_s": {"frames": 13, "size": 160, "width": 12},
    "r2plus1d_r50": {"frames": 16, "size": 224, "width": 64},
    "slow_r50": {"frames": 8, "size": 224, "width": 64},
}

# Scores of each video, float32 (K, Y), from what a contender gives for labels alone or, if asked, for all scores.
Contender = Callable[[bool], list[np.ndarray] | None]


@dataclass(frozen=True)
class InferSetup:
    """What is labelled; a clip spans about 64 frames, 8 at stride 8 as in pytorchvideo's recipe for its `i3d_r50`."""

    network: str  # a key of SIZES
    num_videos: int
    num_clips: int
    frames: int
    size: int  # short side, and height and width of the crop, px
    width: int  # channels of the stem

    @property
    def clip(self) -> ClipConfig:
        """Frames of a clip."""
        return ClipConfig(num_frames=self.frames, stride=max(1, 64 // self.frames))

    @property
    def layout(self) -> str | None:
        """I3D's layout in pytorchvideo."""
        return "slowfast" if self.network == I3D_NETWORK else None

    def predictor(self, net: VideoNet | EngineNet) -> Predictor:
        """A network with these clips, cropped in the middle and normalized."""
        return Predictor(
            net,
            classes=(),
            clip=self.clip,
            crops=TestCrops("center", short_side_px=self.size, crop_px=self.size),
            num_clips=self.num_clips,
            spacing=_SPACING,
            mean=[_MEAN] * 3,
            std=[_STD] * 3,
        )


def bench_infer(setup: InferSetup, *, videos: Sequence[str], rounds: int, engines: bool = False) -> dict[str, Any]:
    """Measure the contenders; the figures are for `format_page` and json.

    Videos are taken in turns; if there are none, one of 340x256 and 10 s is made. With `engines` the network is also
    exported, and run by each engine that is installed.

    Raises:
        ConfigError: for a video that is shorter than a clip, or engines of which none is installed.
        DecodeError: for a file that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="video-gn-bench-") as directory, ExitStack() as stack:
        paths = given_or_made(videos, directory)
        jobs = [Reading(path, setup) for path in paths]
        jobs = [jobs[i % len(jobs)] for i in range(setup.num_videos)]
        weights = f"{directory}/weights.pyth"
        torch.save({"model_state": random_weights(setup, jobs[0])}, weights)
        names, inexact = list(CONTENDERS), []
        if engines:
            export(weights, _exported(weights), layout=setup.layout)
            if _INT8 in _engines():
                _write_int8(weights, setup, jobs)
            inexact = [_by(engine) for engine in (*half_engines(), _INT8)]
            names += map(_by, _engines())
        scores: dict[str, list[np.ndarray]] = {}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        turns = {name: stack.enter_context(_turns(name, setup, jobs, weights, scores, cpu)) for name in names}
        summary = summarize(
            {name: [s / setup.num_videos for s in taken] for name, taken in side_by_side(turns, rounds).items()}
        )
    for name, figures in summary.items():
        figures["cpu_ms"] = 1000 * statistics.median(cpu[name][1:]) / setup.num_videos
    differences = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(found, scores[OURS], strict=True))
        for name, found in scores.items()
        if name != OURS
    }
    exact = [name for name in names if name.startswith(OURS) and name not in inexact]
    fastest = min(exact, key=lambda name: summary[name]["median_ms"])
    return {
        "machine": describe_machine(),
        "setup": asdict(setup),
        "rounds": rounds,
        "contenders": summary,
        "ratios": {name: ratio_of_medians(summary, name, OURS) for name in differences},
        "target": TARGET,
        **({"fastest": fastest, "fastest_ratio": ratio_of_medians(summary, names[0], fastest)} if engines else {}),
        **({"int8_ratio": ratio_of_medians(summary, names[0], _by(_INT8))} if _by(_INT8) in names else {}),
        "largest_score": max(float(a.max()) for a in scores[OURS]),
        "largest_differences": differences,
        "same_scores": max(d for name, d in differences.items() if name not in inexact) <= TOLERANCE,
    }


class Reading:
    """What contenders read of a video: the frames of its clips, and pytorchvideo's spans of seconds around them."""

    def __init__(self, path: str, setup: InferSetup) -> None:
        self.path = path
        with open_video(path) as reader:
            info, seconds = reader.info, reader.frame_seconds
        clip = setup.clip
        span = (clip.num_frames - 1) * clip.stride + 1
        if info.num_frames < span:
            raise ConfigError(
                f"videos must have at least {span} frames, got {info.num_frames} in {path}. Leave it out."
            )
        self.indices_KT = sampling.test_clips(
            info.num_frames, num_clips=setup.num_clips, num_frames=clip.num_frames, stride=clip.stride, spacing=_SPACING
        )
        half = 0.5 / info.fps  # a frame belongs to a span that it begins in
        self.spans = [(max(0.0, float(seconds[r[0]]) - half), float(seconds[r[-1]]) + half) for r in self.indices_KT]


# ---- the contenders --------------------------------------------------------------------------------


def pytorchvideo_net(setup: InferSetup) -> nn.Module:
    """Its hub's network; the head averages over all of T and takes softmax at each position in space, as ours does."""
    from pytorchvideo.models import hub

    more: dict[str, Any] = {"head_activation": nn.Softmax}
    if setup.network == I3D_NETWORK:
        side = min(7, math.ceil(setup.size / 32))
        more["head_pool_kernel_size"] = (max(1, setup.frames // 2), side, side)
    stem = "stem_dim_in" if setup.network == "x3d_s" else "stem_dim_out"
    build = hub.i3d_r50 if setup.network == I3D_NETWORK else getattr(hub, setup.network)
    net: nn.Module = build(pretrained=False, model_num_class=_CLASSES, **{stem: setup.width}, **more)
    return net.eval()


def random_weights(setup: InferSetup, job: Reading) -> dict[str, torch.Tensor]:
    """pytorchvideo's state dict: random scales and shifts, running statistics near a video's, logits that differ."""
    torch.manual_seed(0)
    net = pytorchvideo_net(setup)
    classifier: Any = net.blocks[-1].proj  # type: ignore[index, union-attr]
    features: list[torch.Tensor] = []
    classifier.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    clips_KCTHW = _read_once(job)
    clips_NCTHW = _batch(clips_KCTHW[:: math.ceil(len(clips_KCTHW) / 5)], setup)
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, nn.BatchNorm3d):
                # The last of a block is small, as in trained networks: else 26 blocks of X3D-S amplify each rounding.
                module.weight.uniform_(*((0.0, 0.5) if name.endswith("norm_c") else (0.5, 1.5)))
                module.bias.uniform_(-0.5, 0.5)
                module.momentum = None  # the average of all batches: the first one's own
        net.train()(clips_NCTHW)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm3d) and module.running_var is not None:
                # A channel that hardly varies in one video would be amplified, and every rounding in it.
                module.running_var.lerp_(module.running_var.mean(), 0.5)
        net.eval()(clips_NCTHW)
        classifier.weight.normal_(std=2 / float(features[-1].norm(dim=-1).mean()))
    return net.state_dict()


def _as_it_comes(setup: InferSetup, jobs: Sequence[Reading], weights: str) -> Contender:
    net = _loaded(setup, weights)

    def one_by_one(job: Reading) -> torch.Tensor:
        clips = (_batch(frames_CTHW[None], setup) for frames_CTHW in _read_one_by_one(job))
        return torch.cat([net(clip_NCTHW) for clip_NCTHW in clips])

    return partial(_label_all, one_by_one, jobs)


def _used_well(setup: InferSetup, jobs: Sequence[Reading], weights: str) -> Contender:
    net = _loaded(setup, weights).to(memory_format=torch.channels_last_3d)

    def at_once(job: Reading) -> torch.Tensor:
        clips_NCTHW = _batch(_read_once(job), setup)
        return net(clips_NCTHW.contiguous(memory_format=torch.channels_last_3d))

    return partial(_label_all, at_once, jobs)


def _ours(setup: InferSetup, jobs: Sequence[Reading], weights: str, engine: str | None = None) -> Contender:
    keep_freed_memory()
    net: VideoNet | EngineNet
    if engine is None:
        net, _ = load_net(weights, layout=setup.layout)
    else:
        net, _ = load_engine(_exported(weights, engine), engine.split()[0])
    predictor = setup.predictor(net)

    def contender(wants_scores: bool) -> list[np.ndarray] | None:
        top_k = _CLASSES if wants_scores else _TOP_K
        found = list(predictor.predict_many([job.path for job in jobs], top_k=top_k))
        return [_scores_of(result) for result in found] if wants_scores else None

    return contender


OURS = "video_gn"
CONTENDERS: dict[str, Callable[[InferSetup, Sequence[Reading], str], Contender]] = {
    "pytorchvideo as it comes": _as_it_comes,
    "pytorchvideo's pieces used well": _used_well,
    OURS: _ours,
}


def _by(engine: str) -> str:
    return f"{OURS}, {engine}"


_INT8 = "openvino int8"


def _engines() -> list[str]:
    engines = installed_engines()
    return [*engines, *half_engines(), *([_INT8] if "openvino" in engines and find_spec("nncf") else [])]


def _exported(weights: str, engine: str = "") -> Path:
    return Path(weights).with_suffix(".int8.onnx" if engine == _INT8 else ".onnx")


def _write_int8(weights: str, setup: InferSetup, jobs: Sequence[Reading]) -> None:
    about = read_onnx_about(_exported(weights))
    sizes = {"short_side_px": setup.size, "crop_px": setup.size, "crops": "center", "num_clips": setup.num_clips}
    about |= {"clip": asdict(setup.clip), "views": {**about["views"], **sizes}}
    records = [VideoRecord(path, None) for path in dict.fromkeys(job.path for job in jobs)]
    write_int8(_exported(weights), _exported(weights, _INT8), about, records)


def _loaded(setup: InferSetup, weights: str) -> nn.Module:
    net = pytorchvideo_net(setup)
    net.load_state_dict(torch.load(weights, weights_only=True)["model_state"])
    return net


def _scores_of(result: Mapping[str, Any] | Failure) -> np.ndarray:
    """(K, Y) out of an entry of `predict_many` with all classes."""
    if isinstance(result, Failure):
        raise DecodeError(result.path, result.reason)
    scores_KY = np.zeros((len(result["clips"]), _CLASSES), dtype=np.float32)
    for scores_Y, clip in zip(scores_KY, result["clips"], strict=True):
        for entry in clip["top"]:
            scores_Y[int(entry["label"])] = entry["score"]
    return scores_KY


@torch.inference_mode()
def _label_all(
    score: Callable[[Reading], torch.Tensor], jobs: Sequence[Reading], wants_scores: bool
) -> list[np.ndarray] | None:
    found = []
    for job in jobs:
        scores_KY = score(job)
        scores_KY.mean(0).topk(_TOP_K)
        found.append(scores_KY.numpy())
    return found if wants_scores else None


# ---- reading by pytorchvideo -----------------------------------------------------------------------


def _read_one_by_one(job: Reading) -> Iterator[torch.Tensor]:
    """Frames of each clip, float32 (C, T, H, W), one clip after the other."""
    video = _opened(job)
    for span, indices_T in zip(job.spans, job.indices_KT, strict=True):
        yield _frames(video, span, indices_T)
    video.close()


def _read_once(job: Reading) -> torch.Tensor:
    """All clips, float32 (K, C, T, H, W), from the frames between the first and the last."""
    video = _opened(job)
    frames_CTHW = _frames(video, (job.spans[0][0], job.spans[-1][1]), np.unique(job.indices_KT))
    video.close()
    places = torch.from_numpy(np.unique(job.indices_KT, return_inverse=True)[1].reshape(job.indices_KT.shape))
    return frames_CTHW[:, places].transpose(0, 1)


def _opened(job: Reading) -> Any:
    from pytorchvideo.data.encoded_video import EncodedVideo

    return EncodedVideo.from_path(job.path, decode_audio=False)


def _frames(video: Any, span: tuple[float, float], indices: np.ndarray) -> torch.Tensor:
    frames_CTHW: torch.Tensor = video.get_clip(*span)["video"]
    return frames_CTHW[:, torch.from_numpy(indices - indices[0])]


def _batch(frames_NCTHW: torch.Tensor, setup: InferSetup) -> torch.Tensor:
    """Resized as integers, as our decoded frames are, cropped in the middle and normalized."""
    from torchvision.transforms.v2 import functional as F

    N, C, T, H, W = frames_NCTHW.shape
    height, width = resized_size(H, W, setup.size)
    x_MCHW = frames_NCTHW.transpose(1, 2).flatten(0, 1).to(torch.uint8)
    x_MCHW = F.resize(x_MCHW, [height, width], antialias=True)
    x_MCHW = F.crop(x_MCHW, (height - setup.size) // 2, (width - setup.size) // 2, setup.size, setup.size)
    x_MCHW = F.normalize(x_MCHW.float() / 255, [_MEAN] * C, [_STD] * C)
    return x_MCHW.unflatten(0, (N, T)).transpose(1, 2).contiguous()


# ---- turns -----------------------------------------------------------------------------------------


@contextmanager
def _turns(
    name: str,
    setup: InferSetup,
    jobs: Sequence[Reading],
    weights: str,
    scores: dict[str, list[np.ndarray]],
    cpu: Mapping[str, list[float]],
) -> Iterator[Callable[[int], float]]:
    """A contender of `side_by_side` in a process of its own; it notes the warm-up's scores and each turn's CPU time."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    # Not a daemon: it starts the processes that decode, and ends when its pipe is closed.
    process = context.Process(target=_work, args=(name, setup, jobs, weights, theirs))
    process.start()
    theirs.close()
    log.info("starting %s", name)

    def run(number: int) -> float:
        mine.send(number == 0)
        taken, cpu_seconds, found = mine.recv()
        cpu[name].append(cpu_seconds)
        if number == 0:
            scores[name] = found
        return float(taken)

    try:
        yield run
    finally:
        mine.close()
        process.join()


def _work(name: str, setup: InferSetup, jobs: Sequence[Reading], weights: str, pipe: Connection) -> None:
    """Label whenever the pipe says whether it wants all scores, until it is closed; answer with times and scores."""
    by_engine = {_by(engine): partial(_ours, engine=engine) for engine in _engines()}
    contender = (CONTENDERS | by_engine)[name](setup, jobs, weights)
    while True:
        try:
            wants_scores = pipe.recv()
        except EOFError:
            break
        start, cpu = time.perf_counter(), _cpu_seconds()
        found = contender(wants_scores)
        pipe.send((time.perf_counter() - start, _cpu_seconds() - cpu, found))


def _cpu_seconds() -> float:
    """CPU time of this process and of those it has started and seen end, such as the loading workers."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def format_page(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    setup = result["setup"]
    num_pixels = f"{setup['frames']}x{setup['size']}x{setup['size']}"
    lines = [
        *head_lines(result),
        f"File to labels for one of {setup['num_videos']} videos, {setup['num_clips']} clips of {num_pixels} each, "
        f"{setup['network']} of width {setup['width']} with Batch Norm, on the CPU",
        *(contender_row(name, f, f"{f['cpu_ms']:.0f} ms of CPU") for name, f in result["contenders"].items()),
    ]
    for name, ratio in result["ratios"].items():
        target = f", {verdict(ratio, at_least=result['target'])}" if name == next(iter(result["ratios"])) else ""
        lines.append(f"  {name} / {OURS}: {ratio:.2f}{target}")
    peer = next(iter(result["contenders"]))
    for ours, key, aim in (
        (result.get("fastest"), "fastest_ratio", ENGINE_TARGET),
        (_by(_INT8), "int8_ratio", INT8_TARGET),
    ):
        if key in result:
            lines.append(f"  {peer} / {ours}: {result[key]:.2f}, {verdict(result[key], at_least=aim)}")
    for name, difference in result["largest_differences"].items():
        lines.append(f"  largest difference to the scores of {name}: {difference:.1e}")
    same = "the same" if result["same_scores"] else "NOT THE SAME"
    lines.append(f"  scores, up to {result['largest_score']:.2f}, are {same} to {TOLERANCE:g}")
    return "\n".join(lines) + "\n"
