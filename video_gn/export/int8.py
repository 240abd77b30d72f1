"""Quantizes an exported network to int8 by NNCF, and measures on labelled videos what that costs and gains.

Convolutions and the sums of residuals are computed in int8. The head stays in floats, since softmax scores in 256 steps
no longer sum to 1, and so do a norm's scale and shift: normalized values would be rounded twice.

Shape letters: V views of a video, T frames, C channels, H, W, Y classes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from video_gn.errors import CheckpointError, ManifestError
from video_gn.export.engines import EngineNet, installed_engines
from video_gn.export.reading import INPUT, needed, read_onnx_about
from video_gn.export.writing import views_of, write_model
from video_gn.files import whole_path
from video_gn.lists.read import VideoList
from video_gn.lists.records import VideoRecord
from video_gn.models import map_views

log = logging.getLogger(__name__)

# Videos whose middle views calibrate. Demo networks: 48 videos gave the same top-1 as 144 views of them.
_NUM_CALIBRATED = 64


@dataclass
class Form:
    """A network in float32 or int8: how often it names the right label, and how long it takes.

    Args:
        net: The network.
        right: Videos whose label it named.
        seconds: Time for each video's views, decoded.
    """

    net: EngineNet
    right: int = 0
    seconds: list[float] = field(default_factory=list)

    def score(self, views_VTCHW: torch.Tensor, label: int) -> None:
        """Count a video."""
        start = time.perf_counter()
        scores_VY = map_views(self.net.forward, views_VTCHW)
        self.seconds.append(time.perf_counter() - start)
        self.right += int(scores_VY.mean(0).argmax()) == label


@dataclass(frozen=True)
class Quantized:
    """What an engine makes of the same videos before and after.

    Args:
        engine: Engine that ran both.
        num_videos: Labelled videos that were scored, none of which calibrated.
        top1: Accuracy before and after.
        seconds: Median time of a video's views before and after.
        megabytes: Size of the file before and after.
    """

    engine: str
    num_videos: int
    top1: tuple[float, float]
    seconds: tuple[float, float]
    megabytes: tuple[float, float]

    @property
    def lost(self) -> float:
        """Accuracy that int8 costs; negative for a gain."""
        before, after = (round(top1 * self.num_videos) for top1 in self.top1)
        return (before - after) / self.num_videos  # 1 - 0.99 would be more than 0.01


def quantize(
    source: Path,
    target: Path,
    listed: str | os.PathLike[str],
    *,
    most_lost: float = 0.01,
    progress: Callable[[Sequence[VideoRecord], int], Iterable[VideoRecord]] = lambda records, _: records,
) -> list[Quantized]:
    """Write an exported network in int8; an earlier file is replaced.

    Args:
        source: ONNX file that `export` has written.
        target: ONNX file to write.
        listed: Labelled list or folder of videos. With parts, `train` calibrates and `val` is scored. Without, up to
            every third video calibrates and the others are scored.
        most_lost: Accuracy that may be lost.
        progress: Shows how far the scoring of so many records is.

    Returns:
        What each engine that is installed lost and gained.

    Raises:
        CheckpointError: if more is lost; then nothing is written.
        ConfigError: if NNCF is not installed.
        ManifestError: for a list that cannot be read, or without labels or videos that can be read.
    """
    about = read_onnx_about(source)
    calibrating, scored = _parts(listed, about)
    log.info("int8: calibrating on %d videos, then scoring %d in float32 and int8", len(calibrating), len(scored))
    with whole_path(target) as part:
        write_int8(source, part, about, calibrating)
        found = _measured(source, part, about, progress(scored, len(scored)), listed)
        worst = max(found, key=lambda quantized: quantized.lost)
        if worst.lost > most_lost:
            raise CheckpointError(
                f"{target}: not written: int8 loses {worst.lost:.3f} of top-1 by {worst.engine} ({worst.top1[0]:.3f} "
                f"to {worst.top1[1]:.3f} on {worst.num_videos} videos of {listed}), more than {most_lost:g}. Calibrate "
                f"on more videos, or allow more with --most_lost."
            )
    return found


def check_list(listed: str | os.PathLike[str]) -> None:
    """Refuse a list that `quantize` would, as far as it can be told before the network is exported.

    Raises:
        ManifestError: for a list that cannot be read, or without labels.
    """
    _parts(listed, {})


def write_int8(source: Path, target: Path, about: dict[str, Any], records: Sequence[VideoRecord]) -> None:
    """Write an exported network in int8, calibrated on the middle view of each video, unmeasured.

    Args:
        source: ONNX file that `export` has written.
        target: ONNX file to write.
        about: What the file says of itself; its clip and views are those of the videos.
        records: Videos.

    Raises:
        ConfigError: if NNCF is not installed.
        ManifestError: if no video can be read.
    """
    write_model(_quantized(load_nncf(), source, _Clips(records, about)), target, about)


def load_nncf() -> Any:
    """The package; it takes seconds.

    Raises:
        ConfigError: if it is not installed.
    """
    # Without it NNCF reports each use to a server.
    os.environ.setdefault("NNCF_CI", "1")
    nncf = needed("nncf", extra="int8")
    nncf.set_log_level(logging.ERROR)
    return nncf


def _parts(
    listed: str | os.PathLike[str], about: dict[str, Any]
) -> tuple[Sequence[VideoRecord], Sequence[VideoRecord]]:
    """Videos that calibrate, and others that are scored."""
    videos = VideoList(listed)
    classes = about.get("classes") or None

    def records(part: str | None) -> list[VideoRecord]:
        return list(videos.manifest(part, classes=classes, are_lent=True).records)

    if videos.has_part("train") and videos.has_part("val"):
        calibrating, scored = records("train"), records("val")
        calibrating = calibrating[:: math.ceil(len(calibrating) / _NUM_CALIBRATED)]
    else:
        scored = records(None)
        every = max(3, math.ceil(len(scored) / _NUM_CALIBRATED))
        calibrating = scored[::every]
        scored = [record for place, record in enumerate(scored) if place % every]
    scored = [record for record in scored if record.label is not None]
    if not scored:
        raise ManifestError(f"{listed}: must hold labelled videos to calibrate on and others to score. Add some.")
    return calibrating, scored


class _Clips:
    """The middle view of each video that can be read, as NNCF asks for it; read anew each time."""

    def __init__(self, records: Sequence[VideoRecord], about: dict[str, Any]) -> None:
        self._dataset = views_of(about, records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        found = False
        for place in range(len(self._dataset)):
            views_VTCHW = self._dataset[place].frames_VTCHW
            if views_VTCHW is not None:
                found = True
                middle = len(views_VTCHW) // 2
                yield {INPUT: views_VTCHW[middle : middle + 1].permute(0, 1, 3, 4, 2).contiguous().numpy()}
        if not found:
            raise ManifestError("the list must hold videos that can be read to calibrate on, got none. Check them.")


def _quantized(nncf: Any, source: Path, clips: _Clips) -> Any:
    model = needed("onnx", extra="int8").load(source)
    nodes, constants = model.graph.node, {tensor.name for tensor in model.graph.initializer}
    # Of the last map; X3D's head has one more.
    convs = [place for place, node in enumerate(nodes) if node.op_type == "Conv"]
    last = next(place for place in range(convs[-1], len(nodes)) if nodes[place].op_type == "Relu")
    floats = [
        node.name
        for place, node in enumerate(nodes)
        if place > last or (node.op_type in ("Mul", "Add") and not constants.isdisjoint(node.input))
    ]
    # Sums of 16 bits overflow on CPUs without VNNI if weights take all 8 bits; 7 gave the same accuracy.
    safe = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    with contextlib.redirect_stdout(io.StringIO()):  # bars
        return nncf.quantize(
            model,
            nncf.Dataset(clips),
            subset_size=_NUM_CALIBRATED,
            ignored_scope=nncf.IgnoredScope(names=floats),
            advanced_parameters=safe,
        )


def _measured(
    source: Path, target: Path, about: dict[str, Any], records: Iterable[VideoRecord], listed: object
) -> list[Quantized]:
    forms = {
        engine: tuple(Form(EngineNet(path, engine, dict(about["net"]))) for path in (source, target))
        for engine in installed_engines()
    }
    dataset, num_videos = views_of(about), 0
    for record in records:
        views_VTCHW = dataset.read(0, record).frames_VTCHW
        if views_VTCHW is None:
            continue
        num_videos += 1
        assert record.label is not None
        for form in (form for pair in forms.values() for form in pair):
            form.score(views_VTCHW, record.label)
    if not num_videos:
        raise ManifestError(f"{listed}: must hold videos that can be read to score, got none.")
    megabytes = tuple(path.stat().st_size / 1e6 for path in (source, target))
    return [
        Quantized(
            engine,
            num_videos,
            (before.right / num_videos, after.right / num_videos),
            (statistics.median(before.seconds), statistics.median(after.seconds)),
            (megabytes[0], megabytes[1]),
        )
        for engine, (before, after) in forms.items()
    ]
