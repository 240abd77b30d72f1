"""The cost of clips in other packages and in ours, as ratios of medians measured side by side in one run.

Each contender opens the file, reads 32 frames at stride 2 and prepares them as its own published recipe does, on
one thread. The recipes:

- mmaction2 (config i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e): decord, short side 256 with OpenCV, a crop of one
  of two sizes at one of five places, 224 px with OpenCV, flip, one uint8 array.
- torchcodec: its samplers, then torchvision's transforms v2 on uint8: short side in [256, 320], crop, flip.
- pytorchvideo (what its LabeledVideoDataset does with each video): EncodedVideo by seconds, 32 frames out of them,
  float, normalized, short side in [256, 320], crop, flip.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from video_gn import sampling
from video_gn.bench._video import frames_of, records_of
from video_gn.bench.measuring import contender_row, ratio_of_medians, side_by_side, summarize, timed, verdict
from video_gn.data.crops import TestCrops, TrainTransform
from video_gn.data.dataset import ClipConfig, EvalDataset, TrainDataset
from video_gn.decoding.libraries import import_decord, import_torchcodec

# Ours against the fastest peer, in clips per second.
TRAINING_TARGET = 1.25
# Ours in one pass, against each peer: two read clip by clip, mmaction2 decodes once too.
TEN_CLIP_TARGETS = {"pytorchvideo": 4.0, "torchcodec": 4.0, "mmaction2": 1.0}
_OURS = "video_gn"
_CLIP = ClipConfig(num_frames=32, stride=2)
_NUM_CLIPS = 10
_CROP = 224
_SHORT_SIDE = 256
_SHORT_SIDES = (256, 320)
# pytorchvideo cuts by seconds: 64 frames at Kinetics' usual rate.
_CLIP_SECONDS = _CLIP.num_frames * _CLIP.stride / 30
_MEAN, _STD = 0.45, 0.225  # of pytorchvideo's transforms
# Errors of a peer that are shown in place of its figures.
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, OSError, AssertionError)

_Clips = Callable[[str], Any]


def bench_peers(videos: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Measure training clips and ten test clips of at least one video, all readable; the caller sets one thread.

    Returns:
        `training_clip` and `ten_clip_test`: for each contender its milliseconds for a video and videos per second, or
        `missing` with a reason; and ratios with their targets.

    """
    return {"training_clip": _training_clip(videos, rounds), "ten_clip_test": _ten_clip_test(videos, rounds)}


def _training_clip(paths: Sequence[str], rounds: int) -> dict[str, Any]:
    dataset = TrainDataset(records_of(paths), clip=_CLIP, transform=TrainTransform(_SHORT_SIDES, _CROP), seed=0)

    def ours(number: int) -> None:
        for index in range(len(paths)):
            frames_of(dataset[number, index])

    makers = {"mmaction2": _mmaction2_clip, "torchcodec": _torchcodec_clip, "pytorchvideo": _pytorchvideo_clip}
    result = _measure(timed(ours), makers, paths, rounds)
    ratios = result["ratios"]
    if ratios:
        best = min(ratios, key=lambda name: ratios[name])
        result.update(best_peer=best, ratio=ratios[best], target=TRAINING_TARGET)
    return result


def _ten_clip_test(paths: Sequence[str], rounds: int) -> dict[str, Any]:
    crops = TestCrops("center", _SHORT_SIDE, _SHORT_SIDE)
    dataset = EvalDataset(records_of(paths), clip=_CLIP, crops=crops, num_clips=_NUM_CLIPS)

    def ours(number: int) -> None:
        for index in range(len(paths)):
            frames_of(dataset[index])

    makers = {
        "mmaction2": _mmaction2_views,
        "torchcodec": _torchcodec_views,
        "torchcodec in one call": _torchcodec_views_at_once,
        "pytorchvideo": _pytorchvideo_views,
    }
    result = _measure(timed(ours), makers, paths, rounds)
    targets = {name: target for name, target in TEN_CLIP_TARGETS.items() if name in result["ratios"]}
    return {**result, "targets": targets}


def _measure(
    ours: Callable[[int], float], makers: Mapping[str, Callable[[], _Clips]], paths: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Milliseconds for a video of each contender, `missing` with a reason in place of them, and ratios to ours."""
    contenders = {_OURS: ours}
    missing: dict[str, dict[str, str]] = {}
    for name, make in makers.items():
        try:
            clips = make()
            for path in paths:
                clips(path)
        except ImportError as error:
            missing[name] = {"missing": str(error)}
        except _FAILURES as error:
            missing[name] = {"missing": f"fails on {path}: {type(error).__name__}: {str(error).strip()[:200]}"}
        else:
            contenders[name] = timed(partial(_seeded, clips, paths))
    summary = summarize(
        {name: [s / len(paths) for s in values] for name, values in side_by_side(contenders, rounds).items()}
    )
    ratios = {name: ratio_of_medians(summary, name, _OURS) for name in summary if name != _OURS}
    figures = {name: {**found, "per_second": 1000 / found["median_ms"]} for name, found in summary.items()}
    return {**figures, **missing, "ratios": ratios}


def _seeded(clips: _Clips, paths: Sequence[str], number: int) -> None:
    random.seed(number)
    torch.manual_seed(number)
    for path in paths:
        clips(path)


# ---- mmaction2 ---------------------------------------------------------------------------------


def _mmaction2_frames() -> tuple[Any, Callable[[str, Callable[[int], np.ndarray]], list[np.ndarray]]]:
    cv2: Any = importlib.import_module("cv2")
    decord: Any = import_decord()
    cv2.setNumThreads(1)

    def read(path: str, draw: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        reader = decord.VideoReader(path, num_threads=1)
        batch = reader.get_batch(draw(len(reader)).tolist())
        frames = list(batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch))
        height, width = frames[0].shape[:2]
        scale = _SHORT_SIDE / min(height, width)
        size = round(width * scale), round(height * scale)
        return [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames]

    return cv2, read


def _mmaction2_clip() -> _Clips:
    cv2, read = _mmaction2_frames()

    def draw(num_frames: int) -> np.ndarray:
        start = random.randint(0, max(0, num_frames - _CLIP.num_frames * _CLIP.stride))
        return (start + _CLIP.stride * np.arange(_CLIP.num_frames)) % num_frames

    def clip(path: str) -> torch.Tensor:
        frames = read(path, draw)
        height, width = frames[0].shape[:2]
        side = int(_SHORT_SIDE * random.choice((1.0, 0.8)))
        down, right = height - side, width - side
        corners = [(top, left) for top in (0, down) for left in (0, right)]
        top, left = random.choice([*corners, (down // 2, right // 2)])
        crops = [
            cv2.resize(frame[top : top + side, left : left + side], (_CROP, _CROP), interpolation=cv2.INTER_LINEAR)
            for frame in frames
        ]
        if random.random() < 0.5:
            crops = [cv2.flip(crop, 1) for crop in crops]
        return torch.from_numpy(np.ascontiguousarray(np.stack(crops).transpose(3, 0, 1, 2)))

    return clip


def _mmaction2_views() -> _Clips:
    """Its test pipeline with one crop: decodes and resizes each frame of the union once, then lays out the clips."""
    _, read = _mmaction2_frames()

    def views(path: str) -> torch.Tensor:
        places: list[np.ndarray] = []

        def draw(num_frames: int) -> np.ndarray:
            wanted, inverse = np.unique(_test_indices(num_frames), return_inverse=True)
            places.append(inverse.reshape(-1))
            return wanted

        frames = read(path, draw)
        height, width = frames[0].shape[:2]
        top, left = (height - _SHORT_SIDE) // 2, (width - _SHORT_SIDE) // 2
        crops = [frame[top : top + _SHORT_SIDE, left : left + _SHORT_SIDE] for frame in frames]
        views = np.stack([crops[place] for place in places[0]])
        return torch.from_numpy(views.reshape(_NUM_CLIPS, _CLIP.num_frames, *views.shape[1:]))

    return views


def _test_indices(num_frames: int) -> np.ndarray:
    return sampling.test_clips(num_frames, num_clips=_NUM_CLIPS, num_frames=_CLIP.num_frames, stride=_CLIP.stride)


# ---- torchcodec --------------------------------------------------------------------------------


def _torchcodec_opener(seek_mode: str) -> tuple[Any, Callable[[str], Any]]:
    # It says what is missing: the package, or FFmpeg's libraries.
    decoders = import_torchcodec()
    samplers: Any = importlib.import_module("torchcodec.samplers")
    return samplers, lambda path: decoders.VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=seek_mode)


def _torchcodec_clip() -> _Clips:
    samplers, opened = _torchcodec_opener("approximate")
    from torchvision.transforms import v2

    crop, flip = v2.RandomCrop(_CROP), v2.RandomHorizontalFlip()

    def clip(path: str) -> torch.Tensor:
        frames_TCHW = samplers.clips_at_random_indices(
            opened(path), num_clips=1, num_frames_per_clip=_CLIP.num_frames, num_indices_between_frames=_CLIP.stride
        ).data[0]
        return flip(crop(v2.functional.resize(frames_TCHW, random.randint(*_SHORT_SIDES), antialias=True)))

    return clip


def _torchcodec_test_crop(frames_TCHW: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.center_crop(F.resize(frames_TCHW, _SHORT_SIDE, antialias=True), [_SHORT_SIDE, _SHORT_SIDE])


def _torchcodec_views() -> _Clips:
    """One open decoder, read clip by clip."""
    _, opened = _torchcodec_opener("exact")

    def views(path: str) -> torch.Tensor:
        decoder = opened(path)
        clips = (decoder.get_frames_at(row.tolist()).data for row in _test_indices(len(decoder)))
        return torch.stack([_torchcodec_test_crop(clip) for clip in clips])

    return views


def _torchcodec_views_at_once() -> _Clips:
    """Its own sampler of regular clips, which reads all of them in one call."""
    samplers, opened = _torchcodec_opener("exact")

    def views(path: str) -> torch.Tensor:
        clips_KTCHW = samplers.clips_at_regular_indices(
            opened(path),
            num_clips=_NUM_CLIPS,
            num_frames_per_clip=_CLIP.num_frames,
            num_indices_between_frames=_CLIP.stride,
        ).data
        return torch.stack([_torchcodec_test_crop(clip) for clip in clips_KTCHW])

    return views


# ---- pytorchvideo ------------------------------------------------------------------------------


def _pytorchvideo_clip() -> _Clips:
    encoded: Any = importlib.import_module("pytorchvideo.data.encoded_video")
    sampling_of: Any = importlib.import_module("pytorchvideo.data.clip_sampling")
    from torchvision.transforms import RandomCrop, RandomHorizontalFlip

    crop, flip = RandomCrop(_CROP), RandomHorizontalFlip()

    def clip(path: str) -> torch.Tensor:
        video = encoded.EncodedVideo.from_path(path, decode_audio=False)
        drawn = sampling_of.RandomClipSampler(clip_duration=_CLIP_SECONDS)(0, video.duration, {})
        span = float(drawn.clip_start_sec), float(drawn.clip_end_sec)
        scaled_CTHW = _pytorchvideo_scale(video.get_clip(*span)["video"], random.randint(*_SHORT_SIDES))
        video.close()
        return flip(crop(scaled_CTHW))

    return clip


def _pytorchvideo_scale(frames_CTHW: torch.Tensor, short_side: int) -> torch.Tensor:
    last = frames_CTHW.shape[1] - 1
    places = torch.linspace(0, last, _CLIP.num_frames).clamp(0, last).long()
    frames_CTHW = frames_CTHW[:, places]  # this frees the other half of them
    x_CTHW = (frames_CTHW.float() / 255 - _MEAN) / _STD
    height, width = x_CTHW.shape[-2:]
    scale = short_side / min(height, width)
    size = int(height * scale), int(width * scale)
    return torch.nn.functional.interpolate(x_CTHW, size=size, mode="bilinear", align_corners=False)


def _pytorchvideo_views() -> _Clips:
    """One open video, read clip by clip, as its data set does in a test."""
    encoded: Any = importlib.import_module("pytorchvideo.data.encoded_video")
    sampling_of: Any = importlib.import_module("pytorchvideo.data.clip_sampling")
    from torchvision.transforms.functional import center_crop

    def views(path: str) -> torch.Tensor:
        video = encoded.EncodedVideo.from_path(path, decode_audio=False)
        sampler = sampling_of.ConstantClipsPerVideoSampler(clip_duration=_CLIP_SECONDS, clips_per_video=_NUM_CLIPS)
        clips: list[torch.Tensor] = []
        end, is_last = 0.0, False
        while not is_last:
            start, end, _, _, is_last = sampler(end, video.duration, {})
            scaled_CTHW = _pytorchvideo_scale(video.get_clip(float(start), float(end))["video"], _SHORT_SIDE)
            clips.append(center_crop(scaled_CTHW, [_SHORT_SIDE, _SHORT_SIDE]))
        video.close()
        return torch.stack(clips)

    return views


# ---- the page ----------------------------------------------------------------------------------


def peer_lines(result: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    training, test = result["training_clip"], result["ten_clip_test"]
    lines = [f"One training clip of {_CLIP.num_frames} frames, stride {_CLIP.stride}, to {_CROP} px"]
    lines += _rows(training, "clips/s")
    if "ratio" in training:
        wanted = verdict(training["ratio"], at_least=training["target"])
        lines.append(f"  ratio to the best peer ({training['best_peer']}) {training['ratio']:.2f}, {wanted}")
    lines += ["", f"{_NUM_CLIPS} test clips of a video, to {_SHORT_SIDE} px"]
    lines += _rows(test, "videos/s")
    for name, ratio in test["ratios"].items():
        target = test["targets"].get(name)
        wanted = "" if target is None else f", {verdict(ratio, at_least=target)}"
        lines.append(f"  ratio to {name} {ratio:.2f}{wanted}")
    return lines


def _rows(result: Mapping[str, Any], unit: str) -> list[str]:
    rows = []
    for name, figures in result.items():
        if isinstance(figures, Mapping) and "missing" in figures:
            rows.append(f"  {name:24s}not measured: {figures['missing']}")
        elif isinstance(figures, Mapping) and "median_ms" in figures:
            rows.append(contender_row(name, figures, f"{figures['per_second']:.1f} {unit} and core"))
    return rows
