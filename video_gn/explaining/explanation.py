"""Why a video got its label: Grad-CAM of each clip, and the scores with a part of the video hidden.

Shape letters: V views (clips x crops), K clips, P crops, T frames of a clip, C channels, Y classes; t, h, w cells of
the last map; H, W pixels of a frame.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from video_gn.checks import check_integer, did_you_mean
from video_gn.clips import VideoInfo
from video_gn.data.dataset import EvalDataset
from video_gn.data.layout import read_views
from video_gn.decoding import VideoReader
from video_gn.errors import ConfigError, SettingError
from video_gn.explaining.grad_cam import CellPlaces, grad_cam
from video_gn.lists.records import VideoRecord
from video_gn.models import NETWORKS, VideoNet
from video_gn.shown import count

if TYPE_CHECKING:
    from video_gn.evaluation.predictor import Predictor

log = logging.getLogger(__name__)

_TOLERANCE = 1e-6  # seconds, of times that are computed in two ways
_NAMED_CLASSES = 20  # of a network with more, an error names the nearest alone


class Occluded(NamedTuple):
    """A part of the video, in seconds from its first frame, and the label's score while it is hidden.

    The score is None if no clip has a frame of the part.
    """

    start_seconds: float
    end_seconds: float
    score_without: float | None


@dataclass(frozen=True)
class Explanation:
    """Where and when a network looks for a label in a video; times are seconds from the first frame.

    Args:
        info: Facts of the video.
        label: Label that is explained.
        score: Its softmax score over all views.
        clip_seconds: Start and end of each clip.
        clip_scores: Score of each clip over its crops.
        frame_seconds_KT: When each frame of a clip is shown.
        maps_KPthw: Grad-CAM of each crop, in [0, 1]: the largest value of the video is 1, or all are 0.
        places: Where the maps' cells lie.
        occlusion: Scores without a part of the video, in the order of time.
    """

    info: VideoInfo
    label: str
    score: float
    clip_seconds: tuple[tuple[float, float], ...]
    clip_scores: np.ndarray
    frame_seconds_KT: np.ndarray
    maps_KPthw: np.ndarray
    places: CellPlaces
    occlusion: tuple[Occluded, ...]

    def heat(self, seconds: float, height: int, width: int) -> np.ndarray:
        """Heat at a time, float32 (H, W) in [0, 1], on the whole frame at the size asked for.

        It is the mean over the clips and crops that have the pixel at that time; NaN where none has it. A clip has a
        frame until its next one.
        """
        ends_KT = np.append(self.frame_seconds_KT[:, 1:], self.frame_seconds_KT[:, -1:], axis=1)
        # The last one of a clip, or of the video where the clip begins it again.
        is_last_KT = ends_KT <= self.frame_seconds_KT
        ends_KT = np.where(is_last_KT, self.frame_seconds_KT + 1 / self.info.fps, ends_KT)
        seconds += _TOLERANCE
        is_shown_KT = (self.frame_seconds_KT <= seconds) & (seconds < ends_KT)
        maps_Phw = [  # of each clip that has the time
            np.einsum("t,pthw->phw", self.places.in_frames(frames, maps_Pthw.shape[1]).mean(0), maps_Pthw)
            for maps_Pthw, is_shown_T in zip(self.maps_KPthw, is_shown_KT, strict=True)
            if len(frames := np.flatnonzero(is_shown_T))
        ]
        if not maps_Phw:
            return np.full((height, width), np.nan, np.float32)
        return self.places.on_frame(np.mean(maps_Phw, 0), height, width)

    def as_json(self) -> dict[str, Any]:
        """Label, scores, the heat of each clip over time, and the scores without each part of the video."""
        clips = []
        frames_t = self.places.middles(self.maps_KPthw.shape[2])
        for (start, end), score, seconds_T, maps_Pthw in zip(
            self.clip_seconds, self.clip_scores, self.frame_seconds_KT, self.maps_KPthw, strict=True
        ):
            heat_seconds = np.interp(frames_t, np.arange(len(seconds_T)), seconds_T)
            clips.append(
                {
                    "start_seconds": round(start, 3),
                    "end_seconds": round(end, 3),
                    "score": round(float(score), 6),
                    "heat_seconds": [round(float(value), 3) for value in heat_seconds],
                    "heat": [round(float(value), 6) for value in maps_Pthw.mean((0, 2, 3))],
                }
            )
        return {
            "path": self.info.path,
            "label": self.label,
            "score": round(self.score, 6),
            "clips": clips,
            "occlusion": [
                {
                    "start_seconds": round(start, 3),
                    "end_seconds": round(end, 3),
                    "score_without": None if without is None else round(without, 6),
                    "drop": None if without is None else round(self.score - without, 6),
                }
                for start, end, without in self.occlusion
            ],
        }


def explain(
    predictor: Predictor,
    video: str | os.PathLike[str],
    label: str | None = None,
    *,
    num_windows: int = 8,
    backend: str = "auto",
) -> Explanation:
    """Explain a label of a video: where and when the network looks for it, and which seconds it needs.

    Args:
        predictor: Network, whose clips and crops of the video are explained together.
        video: Path of the video.
        label: Name of a class, or its number if the network has no names; None takes the best one.
        num_windows: Equal parts of the video that are hidden, one after the other; at most one for each frame.
        backend: Decoder, see `video_gn.decoding.open_video`.

    Raises:
        SettingError: for a label that the network does not have.
        DecodeError: the video cannot be read.
        CheckpointError: the network's scores are not finite.
        ConfigError: another engine than torch runs the network.
    """
    check_integer("num_windows", num_windows)
    net = explained_net(predictor)
    number = None if label is None else _number_of(label, predictor)
    views = _read(predictor, os.fspath(video), backend)

    head, kept = net.blocks[-1], []
    handle = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        scores_VY = predictor.scores(views.frames_VTCHW, video=views.info.path)
    finally:
        handle.remove()
    number = int(scores_VY.mean(0).argmax()) if number is None else number
    maps_Vthw = grad_cam(head, torch.cat(kept), number).cpu().numpy()
    scores_V = scores_VY[:, number].astype(np.float64)
    num_crops = predictor.crops.num_crops
    return Explanation(
        info=views.info,
        label=predictor.classes[number] if predictor.classes else str(number),
        score=float(scores_V.mean()),
        clip_seconds=views.clip_seconds,
        clip_scores=scores_V.reshape(-1, num_crops).mean(1),
        frame_seconds_KT=views.seconds_KT,
        maps_KPthw=(maps_Vthw / (maps_Vthw.max() or 1)).reshape(-1, num_crops, *maps_Vthw.shape[1:]),
        places=CellPlaces(net.last_map, predictor.crops, height=views.info.height, width=views.info.width),
        occlusion=tuple(_hide_parts(predictor, views, scores_V, number, num_windows)),
    )


def explained_net(predictor: Predictor) -> VideoNet:
    """The network, if it can be explained.

    Raises:
        ConfigError: another engine than torch runs the network, or it is somebody's own.
    """
    if not isinstance(predictor.net, torch.nn.Module):
        raise ConfigError(
            f"explain must have torch's network, got {predictor.checkpoint}. Give the checkpoint that it is made of."
        )
    if not isinstance(predictor.net, VideoNet):
        raise ConfigError(
            f"explain must have one of {', '.join(NETWORKS)}, the places of whose cells it knows, got "
            f"{predictor.checkpoint}: {predictor.net.title}."
        )
    return predictor.net


def _hide_parts(
    predictor: Predictor, views: _Views, scores_V: np.ndarray, number: int, num_windows: int
) -> Iterator[Occluded]:
    """Scores without each part of the video: its frames are of the mean colour, which normalization makes 0."""
    colour_C11 = (255 * predictor.mean).round().to("cpu", torch.uint8).view(-1, 1, 1)
    seconds_VT = views.seconds_KT.repeat(predictor.crops.num_crops, axis=0) + _TOLERANCE
    num_parts = min(num_windows, views.info.num_frames)
    edges = np.linspace(0, views.info.duration_seconds, num_parts + 1).tolist()
    for start, end in itertools.pairwise(edges):
        # A last frame of no length is in the last part.
        is_hidden_VT = (seconds_VT >= start) & ((seconds_VT < end) | (end == edges[-1]))
        touched = np.flatnonzero(is_hidden_VT.any(1))  # the other views' scores stay
        if not len(touched):
            yield Occluded(start, end, None)
            continue
        hidden_VTCHW = views.frames_VTCHW[touched]  # a copy
        hidden_VTCHW[torch.from_numpy(is_hidden_VT[touched])] = colour_C11
        without_V = scores_V.copy()
        without_V[touched] = predictor.scores(hidden_VTCHW, video=views.info.path)[:, number]
        yield Occluded(start, end, float(without_V.mean()))


class _Views(NamedTuple):
    """A video as the predictor takes it: views, times of clips, facts, and when each frame of a clip is shown."""

    frames_VTCHW: torch.Tensor
    clip_seconds: tuple[tuple[float, float], ...]
    info: VideoInfo
    seconds_KT: np.ndarray


def _read(predictor: Predictor, path: str, backend: str) -> _Views:
    clip, crops = predictor.clip, predictor.crops
    settings: dict[str, Any] = {"num_clips": predictor.num_clips, "spacing": predictor.spacing, "backend": backend}
    seen: list[tuple[VideoInfo, np.ndarray]] = []

    def read(reader: VideoReader, indices_KT: np.ndarray, _: tuple[int, int]) -> torch.Tensor:
        frames_VTCHW = read_views(reader, indices_KT, crops.apply)
        seen.append((reader.info, reader.frame_seconds[indices_KT]))
        return frames_VTCHW

    dataset = EvalDataset((), clip=clip, crops=crops, **settings)
    frames_VTCHW, note = dataset.read_by(VideoRecord(path, None), read)
    info, seconds_KT = seen[-1]
    rate = 1.0 if clip.target_fps is None else info.fps / clip.target_fps
    span = math.ceil((clip.num_frames - 1) * clip.stride * rate) + 1
    if info.num_frames < span:
        log.warning(
            "%s has %s, and a clip takes %d: some are in it again.", path, count(info.num_frames, "frame"), span
        )
    return _Views(frames_VTCHW, note.clip_seconds, info, seconds_KT)


def _number_of(label: str, predictor: Predictor) -> int:
    names = predictor.classes or [str(number) for number in range(predictor.net.num_classes)]
    if label in names:
        return names.index(label)
    listed = len(names) <= _NAMED_CLASSES
    advice = did_you_mean(label, names) or ("Choose one of these." if listed else "infer's table has the best ones.")
    rule = f"one of {', '.join(names)}" if listed else f"one of the network's {len(names)} classes"
    raise SettingError(f"label must be {rule}, got {label!r}. {advice}")
