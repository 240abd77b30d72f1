"""Stages of the GPU check that measure in their own process: steps, norms, a test's views, and decoding.

Shape letters: N clips, K views of a video, T frames, C channels, H, W.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from video_gn.bench._gpu_runs import Outcome, Sizes
from video_gn.bench._profile import KINDS, profile_step
from video_gn.bench._train_step import (
    PRECISIONS,
    PYTORCHVIDEO,
    Contender,
    TrainSetup,
    build,
    float32_products,
    make_step,
)
from video_gn.bench.measuring import side_by_side, summarize, timed
from video_gn.bench.train import bench_train, format_page
from video_gn.evaluation.scores import score_views
from video_gn.models.norms import make_norm
from video_gn.models.resnet3d import i3d

_BEST = "channels_last_3d"


def setup_of(sizes: Sizes) -> TrainSetup:
    """The paper's batch on one GPU, in pytorchvideo's layout."""
    return TrainSetup(
        num_clips=sizes.pick(8, 2),
        frames=sizes.pick(32, 8),
        size=sizes.pick(224, 32),
        width=sizes.pick(64, 4),
        layout="slowfast",
        device=sizes.device,
    )


# ---- training steps --------------------------------------------------------------------------------


def measure_steps(sizes: Sizes, work: Path) -> Outcome:
    """Time and memory of a step: Batch and Group Norm in each precision, pytorchvideo's net as it comes and tuned."""
    # On a CPU each contender's memory is measured in a process of its own.
    return _bench(sizes, rounds=sizes.pick(8, 1), memory=not sizes.small)


def measure_compiled(sizes: Sizes, work: Path) -> Outcome:
    """A compiled step's time, in bfloat16."""
    if sizes.small:
        return Outcome(skipped="compiling takes minutes on a CPU")
    return _bench(sizes, rounds=8, precisions=["bfloat16"], compiled=True, memory=False)


def measure_autotuned(sizes: Sizes, work: Path) -> Outcome:
    """A step's time where cuDNN tries its algorithms first, in bfloat16 (`trainer.benchmark: true`)."""
    if not sizes.on_cuda:
        return Outcome(skipped="a CPU has no cuDNN")
    torch.backends.cudnn.benchmark = True
    return _bench(sizes, rounds=8, precisions=["bfloat16"], memory=False)


def _bench(sizes: Sizes, **settings: Any) -> Outcome:
    result = bench_train(setup_of(sizes), norms=["batch", "group"], formats=[_BEST], **settings)
    failures = [note for note in result["notes"] if "was not measured" in note]
    return Outcome(result, ["```text", *format_page(result).splitlines(), "```"], failures)


# ---- norms -----------------------------------------------------------------------------------------


def measure_norms(sizes: Sizes, work: Path) -> Outcome:
    """The norms' share of a step, and single layers: time, copies, memory format, and whether they are right."""
    outcome = Outcome({"shares": {}, "layers": {}})
    setup = setup_of(sizes)
    kinds = (*KINDS, "other")
    outcome.lines += [
        "Shares of a step's time on the device, by torch.profiler:",
        "",
        f"| step | ms | {' | '.join(kinds)} | copies inside norms |",
        f"|---|---|{'---|' * len(kinds)}---|",
    ]
    for net, precision in [(n, p) for p in ("bfloat16", "float32") for n in ("batch", "group", PYTORCHVIDEO)]:
        contender = Contender(net, _BEST, precision)
        shares = profile_step(make_step(build(contender, setup), contender, setup), on_cuda=sizes.on_cuda)
        outcome.figures["shares"][contender.name] = shares
        cells = " | ".join(f"{shares[kind]:.1%}" for kind in kinds)
        outcome.lines.append(
            f"| {contender.name} | {shares['milliseconds']:.1f} | {cells} | {shares['copies_in_norms']:.0f} |"
        )
    outcome.lines += [
        "",
        "One layer forward and backward in bfloat16 by autocast, channels_last_3d. `torch` is its own Group Norm under "
        "autocast. Memory is the highest above the input, in inputs' sizes.",
        "",
        "| map | norm | ms | against Batch Norm | memory | output |",
        "|---|---|---|---|---|---|",
    ]
    scale = sizes.pick(1, 8)
    for channels, frames, side in ((64, 16, 112), (256, 8, 56), (512, 4, 28), (2048, 4, 7)):
        shape = (setup.num_clips, channels, frames, max(2, side // scale), max(2, side // scale))
        _measure_layer(shape, sizes, outcome)
    return outcome


def _measure_layer(shape_NCTHW: tuple[int, ...], sizes: Sizes, outcome: Outcome) -> None:
    layers: dict[str, nn.Module] = {
        "batch": make_norm("batch", shape_NCTHW[1]),
        "group": make_norm("group", shape_NCTHW[1], num_groups=32),
        "torch": nn.GroupNorm(32, shape_NCTHW[1]),
    }
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape_NCTHW, generator=generator).to(
        sizes.device, torch.bfloat16, memory_format=torch.channels_last_3d
    )
    x.requires_grad_()
    gradient = torch.randn(shape_NCTHW, generator=generator).to(x)
    found: dict[str, dict[str, Any]] = {}
    actions = {}
    for name, layer in layers.items():
        layer.to(sizes.device)
        found[name] = _layer_figures(layer, x, gradient, sizes)
        step = partial(_layer_step, layer, x, gradient, sizes)
        actions[name] = timed(lambda _, step=step: step(), sizes.device)  # type: ignore[misc]
    times = summarize(side_by_side(actions, sizes.pick(10, 1)))
    for name, figures in found.items():
        figures |= {"median_ms": times[name]["median_ms"]}
        figures["to_batch"] = figures["median_ms"] / times["batch"]["median_ms"]
        memory = "-" if figures["memory"] is None else f"{figures['memory']:.2f}"
        layout = "channels_last_3d" if figures["keeps_format"] else "contiguous"
        outcome.lines.append(
            f"| {'x'.join(map(str, shape_NCTHW))} | {name} | {figures['median_ms']:.3f} | {figures['to_batch']:.2f} "
            f"| {memory} | {figures['dtype']}, {layout} |"
        )
    outcome.figures["layers"]["x".join(map(str, shape_NCTHW))] = found
    group = found["group"]
    if not group["keeps_format"]:
        outcome.failures.append(f"Group Norm of {shape_NCTHW} leaves channels_last_3d: torch's kernel copies")
    if group["dtype"] != "bfloat16":
        outcome.failures.append(f"Group Norm of {shape_NCTHW} gives {group['dtype']} under autocast")
    # A value is rounded to 8 bits, and so is what it is computed from.
    if not group["error"] < 2**-6:
        outcome.failures.append(f"Group Norm of {shape_NCTHW} is off by {group['error']:.1e} of its largest value")


def _layer_step(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    with torch.autocast(torch.device(sizes.device).type, dtype=torch.bfloat16):
        y: torch.Tensor = layer(x)
    torch.autograd.grad(y, (x, *layer.parameters()), gradient.to(y.dtype))
    return y.detach()


def _layer_figures(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor, sizes: Sizes) -> dict[str, Any]:
    y = _layer_step(layer, x, gradient, sizes)
    figures: dict[str, Any] = {
        "dtype": str(y.dtype).removeprefix("torch."),
        "keeps_format": y.is_contiguous(memory_format=torch.channels_last_3d),
        "memory": None,
    }
    # Against float64 of a few channels' groups: scale is 1 and shift 0, and each group is by itself.
    if not isinstance(layer, nn.BatchNorm3d):
        some = 2 * x.shape[1] // 32
        wanted = nn.functional.group_norm(x[:1, :some].detach().double().cpu(), 2)
        figures["error"] = float((y[:1, :some].double().cpu() - wanted).abs().max() / wanted.abs().max())
    del y
    if sizes.on_cuda:
        before = torch.cuda.memory_allocated(sizes.device)
        torch.cuda.reset_peak_memory_stats(sizes.device)
        _layer_step(layer, x, gradient, sizes)
        highest = torch.cuda.max_memory_allocated(sizes.device) - before
        figures["memory"] = highest / (x.numel() * x.itemsize)
    return figures


# ---- a test's views --------------------------------------------------------------------------------


def measure_test(sizes: Sizes, work: Path) -> Outcome:
    """Score a video's ten clips in each precision; compare the scores to float64 on the CPU; label whole videos."""
    setup = setup_of(sizes)
    net = _speaking_net(setup)
    outcome = Outcome({"scores": {}, "views": {}})
    frames_KTCHW = _frames(2, sizes.pick(16, 8), sizes.pick(112, 32))
    wanted = _scores(net.double(), frames_KTCHW, torch.float64)
    net = net.float().to(sizes.device).to(memory_format=torch.channels_last_3d)
    views_KTCHW = _frames(10, setup.frames, setup.size)
    if sizes.on_cuda:
        views_KTCHW = views_KTCHW.pin_memory()
    outcome.lines += ["| precision | scores off by | ten clips, ms | memory, MB |", "|---|---|---|---|"]
    for precision in PRECISIONS if sizes.on_cuda else ("float32", "bfloat16"):
        with _precision(precision, setup):
            found = _scores(net, frames_KTCHW.to(sizes.device), torch.float32).double().cpu()
            error = float((found - wanted).abs().max())
            if sizes.on_cuda:
                torch.cuda.reset_peak_memory_stats(sizes.device)
            score = timed(
                lambda _: _scores(net, views_KTCHW.to(sizes.device, non_blocking=True), torch.float32), sizes.device
            )
            times = [score(number) for number in range(sizes.pick(6, 2))][1:]
        memory = torch.cuda.max_memory_allocated(sizes.device) / 1e6 if sizes.on_cuda else None
        milliseconds = 1000 * statistics.median(times)
        outcome.figures["scores"][precision] = error
        outcome.figures["views"][precision] = {"median_ms": milliseconds, "peak_mb": memory}
        outcome.lines.append(
            f"| {precision} | {error:.1e} | {milliseconds:.1f} | {'-' if memory is None else format(memory, '.0f')} |"
        )
    # Scores lie in [0, 1]; float32 rounds by 6e-8, and fifty layers add that up.
    if not outcome.figures["scores"]["float32"] < 1e-4:
        outcome.failures.append(f"float32 scores are off by {outcome.figures['scores']['float32']:.1e} from float64's")
    _label_videos(net, setup, sizes, work, outcome)
    return outcome


def _label_videos(net: nn.Module, setup: TrainSetup, sizes: Sizes, work: Path, outcome: Outcome) -> None:
    from video_gn.bench._video import write_typical_video
    from video_gn.data.crops import TestCrops
    from video_gn.data.dataset import ClipConfig
    from video_gn.evaluation.predictor import Predictor

    video = work / "video.mp4"
    write_typical_video(video, num_frames=sizes.pick(300, 60))
    predictor = Predictor(
        net,  # type: ignore[arg-type]
        classes=(),
        clip=ClipConfig(num_frames=setup.frames, stride=2),
        crops=TestCrops("center", short_side_px=setup.size, crop_px=setup.size),
        num_clips=10,
        spacing="uniform",
        mean=[0.45] * 3,
        std=[0.225] * 3,
        device=sizes.device,
    )
    videos = [str(video)] * sizes.pick(48, 2)
    start = time.perf_counter()
    with torch.autocast(torch.device(sizes.device).type, dtype=torch.bfloat16, enabled=sizes.on_cuda):
        labelled = sum(isinstance(result, dict) for result in predictor.predict_many(videos))
    seconds = time.perf_counter() - start
    outcome.figures["videos_per_second"] = labelled / seconds
    outcome.lines += [
        "",
        f"Decoded by the loader's workers and labelled: {labelled / seconds:.1f} videos/s, ten clips each.",
    ]
    if labelled < len(videos):
        outcome.failures.append(f"{len(videos) - labelled} of {len(videos)} videos could not be labelled")


@contextmanager
def _precision(precision: str, setup: TrainSetup) -> Iterator[None]:
    dtype = PRECISIONS[precision]
    kind = torch.device(setup.device).type
    with float32_products(Contender("group", _BEST, precision), setup):
        with torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32):
            yield


def _speaking_net(setup: TrainSetup) -> nn.Module:
    """A net whose scores differ between clips: at the start its blocks are the identity and its classifier near 0."""
    torch.manual_seed(0)
    net = i3d(50, width=setup.width, num_groups=math.gcd(32, setup.width), zero_init_last_norm=False)
    nn.init.normal_(net.classifier.weight, std=0.1)
    return net.eval()


def _frames(num_views: int, num_frames: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num_views, num_frames, side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 1, 4, 2, 3)


@torch.inference_mode()
def _scores(net: nn.Module, frames_KTCHW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mean_C, std_C = (torch.full((3,), v, dtype=dtype, device=frames_KTCHW.device) for v in (0.45, 0.225))
    if dtype == torch.float64:  # `score_views` gives float32
        from video_gn.evaluation.scores import normalize_clips

        return net(normalize_clips(frames_KTCHW, mean_C, std_C))
    return score_views(net, frames_KTCHW, mean_C=mean_C, std_C=std_C, views_per_forward=10)


# ---- decoding --------------------------------------------------------------------------------------


def measure_decoding(sizes: Sizes, work: Path) -> Outcome:
    """Read a video's ten clips with PyAV, and with torchcodec on the CPU and on the GPU."""
    from video_gn.bench._video import write_typical_video
    from video_gn.decoding import open_video
    from video_gn.errors import DecodeError
    from video_gn.sampling import test_clips

    video = work / "video.mp4"
    num_frames = sizes.pick(300, 60)
    write_typical_video(video, num_frames=num_frames)
    clips = test_clips(num_frames, num_clips=10, num_frames=sizes.pick(32, 8), stride=2)
    wanted = sorted({int(index) for index in clips.flatten()})
    readers: dict[str, dict[str, Any]] = {"PyAV": {"backend": "pyav"}, "torchcodec, CPU": {"backend": "torchcodec"}}
    if sizes.on_cuda:
        readers["torchcodec, GPU"] = {"backend": "torchcodec", "device": sizes.device}
    outcome = Outcome({"num_frames": len(wanted), "readers": {}})
    actions, reference = {}, None
    for name, options in readers.items():

        def read(number: int, options: dict[str, Any] = options) -> torch.Tensor:
            with open_video(video, **options) as reader:
                return reader.frames_at(wanted)

        try:
            frames = read(0).cpu().float()
        except (ImportError, DecodeError) as error:
            outcome.figures["readers"][name] = {"reason": str(error)}
            continue
        reference = frames if reference is None else reference
        # A GPU interpolates chroma in its own way; the picture is noise in part, where that shows most.
        off = float((frames - reference).abs().mean())
        outcome.figures["readers"][name] = {"mean_difference": off}
        if not off < (8 if "GPU" in name else 0.5):
            outcome.failures.append(f"{name}: its pixels differ from PyAV's by {off:.1f} levels in the mean")
        actions[name] = timed(read, sizes.device)
    times = summarize(side_by_side(actions, sizes.pick(5, 1)))
    outcome.lines += [
        f"{len(wanted)} frames of ten clips of a video of 340x256, decoded once each, one thread:",
        "",
        "| reader | ms | mean difference from PyAV, levels of 255 |",
        "|---|---|---|",
    ]
    for name, figures in outcome.figures["readers"].items():
        if name in times:
            figures |= times[name]
            outcome.lines.append(f"| {name} | {figures['median_ms']:.0f} | {figures['mean_difference']:.2f} |")
        else:
            outcome.lines.append(f"| {name} | cannot: {figures['reason']} | |")
    return outcome
