"""Exports a checkpoint: the network with its preprocessing, compared with torch's before the file gets its name.

Shape letters: N clips, V views of a video, T frames, C channels or features, H, W, Y classes.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig, EvalDataset
from video_gn.errors import CheckpointError, ConfigError, DecodeError
from video_gn.export._graph import trace
from video_gn.export.engines import ONNX, EngineNet, installed_engines
from video_gn.export.reading import INPUT, OUTPUTS, checksum, find_checksum, needed
from video_gn.files import whole_path
from video_gn.lists.records import VideoRecord
from video_gn.models import VideoNet, for_inference, views_at_a_time
from video_gn.run.directory import checkpoint_of
from video_gn.weights.about import KEY
from video_gn.weights.build import load_net
from video_gn.weights.files import CHECKSUM, NO_CHECKSUM

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
PT2 = ".pt2"
SUFFIXES = (ONNX, PT2)

# uint8 views (V, T, C, H, W) -> scores (V, Y) and features (V, C).
Scorer = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Parity:
    """How near an exported file's results are to torch's.

    Args:
        clips: What was scored: a video's path, or the size of random clips.
        engine: Engine that ran the file.
        error: Largest relative error of a clip's scores or features: length of the difference by length. (A single
            feature of Instance Norm on a small map is off by more than its 1e-4 in torch's own float32.)
        same_label: Whether the best class is the same.
        own_error: If `error` would be more than `TOLERANCE`, both are counted from torch's float64, and this is torch's
            float32's own: on a last map of few cells, Instance Norm divides rounding by rounding.
    """

    clips: str
    engine: str
    error: float
    same_label: bool
    own_error: float = 0.0

    @property
    def limit(self) -> float:
        """The largest error that is taken."""
        return max(TOLERANCE, 2 * self.own_error)


def export(
    checkpoint: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str | None = None,
    labels: Sequence[str] = (),
    num_clips: int | None = None,
    crops: str | None = None,
    videos: Sequence[str] = (),
) -> list[Parity]:
    """Write a network as `.onnx`, or by torch.export as `.pt2`; an earlier file is replaced.

    Its input is "frames", uint8 (N, T, H, W, 3) in RGB, its outputs "scores" (N, Y) and "features" (N, C). Classes,
    clip, views and the rest of what a checkpoint says of itself lie in its metadata, under "video_gn".

    Args:
        checkpoint: As for `video_gn.load`.
        target: File to write.
        layout: Layout, if a zoo's file does not say.
        labels: Class names by number, as for `video_gn.load`.
        num_clips: Clips of each video; None as the checkpoint was tested.
        crops: "center", "three" or "full"; None as the checkpoint was tested.
        videos: Videos whose views are compared beside random clips.

    Returns:
        What was compared, all of it within its limit.

    Raises:
        CheckpointError: for a checkpoint that cannot be read, or a file whose results are not torch's.
        ConfigError: for another suffix, or if a package is missing.
        DecodeError: for a video that cannot be read.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"the target must end in {' or '.join(SUFFIXES)}, got {str(target)!r}. Choose one of these.")
    if target.suffix == ONNX:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            needed(module, extra="onnx")
    net, about = load_net(checkpoint_of(checkpoint), layout=layout, labels=labels)
    if net.arguments.get("nonlocal_blocks") == "softmax_4_frames":  # its graph would be of one number of frames
        raise ConfigError(
            f"export must have a net whose frames are free, got {checkpoint}: its non-local blocks look at 4 frames at "
            "a time. Label with its checkpoint."
        )
    given = {"num_clips": num_clips, "crops": crops}
    about["views"] = {**about["views"], **{name: value for name, value in given.items() if value is not None}}
    reference = _torch_scorer(net, about)
    wanted = [(name, views, _by_parts(reference, views)) for name, views in _clips(about, videos)]
    program = trace(net, mean=about["mean"], std=about["std"])
    with whole_path(target) as part:
        if target.suffix == ONNX:
            _write_onnx(program, part, about)
            scorers: dict[str, Scorer] = {
                name: EngineNet(part, name, dict(about["net"])).scores_and_embedding for name in installed_engines()
            }
        else:
            with part.open("wb") as file:
                torch.export.save(program, file, extra_files={KEY: json.dumps(about)})
            scorers = {"torch.export": _program_scorer(part)}
        found = []
        for clips, views, results in wanted:
            for engine, scorer in scorers.items():
                theirs = _by_parts(scorer, views)
                parity = _compare(clips, engine, theirs, results)
                if parity.error > TOLERANCE and parity.same_label:
                    exact = _by_parts(_torch_scorer(net, about, torch.float64), views)
                    own_error = _compare(clips, engine, results, exact).error
                    parity = replace(_compare(clips, engine, theirs, exact), own_error=own_error)
                found.append(parity)
        wrong = next((parity for parity in found if not (parity.error <= parity.limit and parity.same_label)), None)
        if wrong is not None:
            raise CheckpointError(
                f"{target}: not written: {wrong.engine} differs from torch by {wrong.error:.1e} on {wrong.clips}, more "
                f"than {wrong.limit:.1g}. Try another version of {wrong.engine} or of torch."
            )
    return found


# ---- files ---------------------------------------------------------------------------------------


def _write_onnx(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=list(OUTPUTS)
        )
    assert written is not None
    model = written.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]  # lines of source code, and where they lie
    del graph.value_info[:]
    dims = graph.input[0].type.tensor_type.shape.dim
    for dim, name in zip(dims, ("batch", "time", "height", "width"), strict=False):
        dim.dim_param = name
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    write_model(model, path, about)


def write_model(model: Any, path: Path, about: dict[str, Any]) -> None:
    """Write an ONNX model with what `load_net` says of its network, and a checksum, as its metadata."""
    del model.metadata_props[:]
    for key, value in ((KEY, json.dumps(about)), (CHECKSUM, NO_CHECKSUM)):
        model.metadata_props.add(key=key, value=value)
    data = bytearray(model.SerializeToString())
    place = find_checksum(bytes(data))
    assert place is not None
    data[place : place + 8] = b"%08x" % checksum(bytes(data), place)
    path.write_bytes(data)


def _program_scorer(path: Path) -> Scorer:
    with path.open("rb") as file:  # it was just written here: one from elsewhere could run code
        module = torch.export.load(file).module()

    @torch.inference_mode()
    def score(views_VTCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            scores_VY, features_VC = module(views_VTCHW.permute(0, 1, 3, 4, 2).contiguous())
        except AssertionError as error:  # a guard
            size = "x".join(str(length) for length in (views_VTCHW.shape[1], *views_VTCHW.shape[3:]))
            raise CheckpointError(
                f"clips of {size} leave a single cell on a map, which torch.export does not take. Write {ONNX} instead."
            ) from error
        return scores_VY, features_VC

    return score


# ---- comparison ----------------------------------------------------------------------------------


def _torch_scorer(net: VideoNet, about: dict[str, Any], dtype: torch.dtype = torch.float32) -> Scorer:
    fast = for_inference(net).to(dtype)
    mean, std = (torch.tensor(about[name], dtype=dtype).view(-1, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def score(views_VTCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_VCTHW = ((views_VTCHW.to(dtype) / 255 - mean) / std).transpose(1, 2)
        return fast.scores_and_embedding(x_VCTHW)

    return score


def _by_parts(scorer: Scorer, views_VTCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and features of views, about as many at a time as `infer` takes: all of a video's may take gigabytes."""
    num_views = max(2, views_at_a_time(10, views_VTCHW.shape[1:], views_VTCHW.device))  # two, to test a free batch
    parts = views_VTCHW.split(num_views)
    scores, features = zip(*map(scorer, parts), strict=True)
    return torch.cat(scores), torch.cat(features)


def _clips(about: dict[str, Any], videos: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """A random clip of the checkpoint's own size, two that are longer and wider, and all views of the videos."""
    views, num_frames = about["views"], about["clip"]["num_frames"]
    side = views["short_side_px" if views["crops"] == "full" else "crop_px"]
    generator = torch.Generator().manual_seed(0)
    for number, frames, width in ((1, num_frames, side), (2, num_frames + 4, side * 4 // 3)):
        drawn = torch.randint(256, (number, frames, 3, side, width), generator=generator, dtype=torch.uint8)
        yield f"random {number}x{frames}x{side}x{width}", drawn
    dataset = views_of(about)
    for video in videos:
        sample = dataset.read(0, VideoRecord(video, None))
        if sample.frames_VTCHW is None:
            raise DecodeError(video, sample.failures[0].reason)
        yield video, sample.frames_VTCHW


def views_of(about: dict[str, Any], records: Sequence[VideoRecord] = ()) -> EvalDataset:
    """The views of videos that a checkpoint asks for."""
    views = about["views"]
    return EvalDataset(
        records,
        clip=ClipConfig(**about["clip"]),
        crops=TestCrops(views["crops"], short_side_px=views["short_side_px"], crop_px=views["crop_px"]),
        num_clips=views["num_clips"],
        spacing=views["spacing"],
    )


def _compare(
    clips: str, engine: str, found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]
) -> Parity:
    errors = [((a - b).norm(dim=1) / b.norm(dim=1)).max() for a, b in zip(found, wanted, strict=True)]
    labels = [int(scores_VY.mean(0).argmax()) for scores_VY, _ in (found, wanted)]
    return Parity(clips, engine, float(torch.stack(errors).max()), labels[0] == labels[1])
