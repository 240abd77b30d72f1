"""Contact sheet of what training and tests read: clips after augmentation, and all views of test videos.

Shape letters: V views, T frames, C channels, H, W.

The clips come from the data sets themselves, which record what they read: the frames, times and crops in the
picture are the real ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from video_gn.checks import check_integer
from video_gn.clips import VideoNote
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipDataset, ClipTransform, Draw, EvalDataset, Read, TrainDataset
from video_gn.data.layout import Sample
from video_gn.data.samplers import TrainSampler
from video_gn.errors import SettingError
from video_gn.files import whole_path
from video_gn.lists.records import VideoRecord

if TYPE_CHECKING:
    from video_gn.data.datamodule import VideoDataModule
    from video_gn.decoding import VideoReader

# px
_THUMB_HEIGHT, _MARGIN, _GAP, _LINE, _FONT, _LEAST_WIDTH = 112, 12, 8, 18, 13, 760
_INK, _GREY, _RULE, _PAPER, _RED = "#1a1a1a", "#5a5a5a", "#c8c8c8", "#ffffff", "#b00020"


@dataclass(frozen=True)
class Row:
    """One clip of the picture."""

    title: str
    path: str
    class_name: str  # empty without a label
    details: str  # size, crop and other changes of all frames; or why there is no clip
    frames_THWC: np.ndarray | None = None  # uint8, the frames shown; None if the video could not be read
    indices: tuple[int, ...] = ()  # places of these frames in the video
    seconds: tuple[float, ...] = ()  # times of these frames, from the video's first frame


def show(
    datamodule: VideoDataModule,
    target_png: str | os.PathLike[str],
    *,
    num_train: int = 8,
    num_test: int = 2,
    epoch: int = 0,
    frames_per_clip: int = 8,
) -> list[Row]:
    """Write a picture of training clips as an epoch begins, and of all views of some test videos.

    Args:
        datamodule: its lists are read if they are not yet.
        target_png: path of the picture.
        num_train: training clips, the first ones of the epoch on one process.
        num_test: test videos, evenly spaced over the list.
        epoch: epoch of the training clips.
        frames_per_clip: frames shown of each clip, evenly spaced, with the first and the last.

    Returns:
        What is shown, row by row.

    Raises:
        ValueError: for a count out of its range.
        ManifestError: without a list, or for one that cannot be read.
        DiskFullError, UnwritableError: for a picture that cannot be written.
    """
    for name, count in (("num_train", num_train), ("num_test", num_test), ("epoch", epoch)):
        check_integer(name, count, least=0)
    check_integer("frames_per_clip", frames_per_clip)
    datamodule.read()
    rows = train_rows(datamodule, num_train, epoch=epoch, frames_per_clip=frames_per_clip)
    rows += view_rows(datamodule, num_test, frames_per_clip=frames_per_clip)
    with whole_path(target_png) as part:
        contact_sheet(rows).save(part, format="PNG")
    return rows


# ---- clips ---------------------------------------------------------------------------------------


class _Watched(ClipDataset):
    """Data set that records the size of its last video, and which frames of it are read."""

    size = (0, 0)  # height, width
    pixel_aspect = 1.0
    indices_KT = np.zeros((0, 0), dtype=np.int64)
    frame_seconds = np.zeros(0)

    def _read(self, record: VideoRecord, draw: Draw, read: Read) -> tuple[torch.Tensor, VideoNote]:
        def watched_read(reader: VideoReader, indices_KT: np.ndarray) -> torch.Tensor:
            self.size, self.pixel_aspect = (reader.info.height, reader.info.width), reader.info.pixel_aspect
            self.indices_KT, self.frame_seconds = indices_KT, reader.frame_seconds
            return read(reader, indices_KT)

        return super()._read(record, draw, watched_read)


class _WatchedTrain(_Watched, TrainDataset):
    """Training set that records what it reads."""


class _WatchedEval(_Watched, EvalDataset):
    """Test set that records what it reads."""


class _WatchedTransform:
    """Transform that keeps its last draw."""

    def __init__(self, transform: ClipTransform) -> None:
        self.apply = transform.apply
        self.transform = transform
        self.params: Any = None

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Any:
        self.params = self.transform.draw(rng, height, width)
        return self.params


def train_rows(datamodule: VideoDataModule, count: int, *, epoch: int, frames_per_clip: int) -> list[Row]:
    """The first training clips of an epoch on one process, as training gets them; at most as many as are listed."""
    if "train" not in datamodule.manifests or count == 0:
        return []
    records = datamodule.manifests["train"].records
    transform = _WatchedTransform(datamodule.train_transform)
    dataset = _WatchedTrain(
        records, clip=datamodule.clip, transform=transform, seed=datamodule.seed, backend=datamodule.backend
    )
    sampler = TrainSampler(
        len(records), batch_size=1, seed=datamodule.seed, start_epoch=epoch, order=datamodule.train_order()
    )
    rows = []
    for number, key in zip(range(count), sampler, strict=False):
        sample = dataset[key]
        details = describe_params(transform.params)
        if sample.failures:
            details += f"; in place of {', '.join(shorten(f.path, 60) for f in sample.failures)}"
        rows += _rows_of(
            sample, dataset, datamodule, [(f"train, epoch {epoch}, clip {number}", details)], frames_per_clip
        )
    return rows


def view_rows(datamodule: VideoDataModule, count: int, *, frames_per_clip: int) -> list[Row]:
    """All views of some test videos, evenly spaced over the list; at most as many as are listed."""
    if "test" not in datamodule.manifests or count == 0:
        return []
    records, views, crops = datamodule.manifests["test"].records, datamodule.views, datamodule.test_crops
    dataset = _WatchedEval(
        records,
        clip=datamodule.clip,
        crops=crops,
        num_clips=views.num_clips,
        spacing=views.spacing,
        backend=datamodule.backend,
    )
    rows = []
    for index in _evenly(len(records), count):
        sample = dataset[index]
        if sample.frames_VTCHW is None:
            reason = f"could not be read: {sample.failures[0].reason}"
            rows.append(Row("test", records[index].path, _class_name(datamodule, records[index]), reason))
            continue
        captions = [
            (
                f"test, clip {clip + 1} of {views.num_clips}"
                + (f", crop {crop + 1} of {crops.num_crops}" if crops.num_crops > 1 else ""),
                _describe_crop(crops, dataset.size, crop),
            )
            for clip in range(views.num_clips)
            for crop in range(crops.num_crops)
        ]
        rows += _rows_of(sample, dataset, datamodule, captions, frames_per_clip)
    return rows


def _rows_of(
    sample: Sample,
    dataset: _Watched,
    datamodule: VideoDataModule,
    captions: Sequence[tuple[str, str]],
    frames_per_clip: int,
) -> list[Row]:
    """A row for each view of a sample that was read; `captions` are their titles and details."""
    assert sample.frames_VTCHW is not None
    assert sample.note is not None
    record, (height, width) = dataset.records[sample.video_id], dataset.size
    pixels = "" if dataset.pixel_aspect == 1 else f" (pixels {dataset.pixel_aspect:.3g} times as wide as high)"
    source = f"{width} x {height}{pixels}, {sample.note.num_frames} frames at {sample.note.fps:.4g} fps"
    crops_per_clip = len(sample.frames_VTCHW) // len(dataset.indices_KT)
    rows = []
    for view, (frames_TCHW, (title, details)) in enumerate(zip(sample.frames_VTCHW, captions, strict=True)):
        chosen = _evenly(len(frames_TCHW), frames_per_clip)
        indices = dataset.indices_KT[view // crops_per_clip][chosen]
        rows.append(
            Row(
                title,
                record.path,
                _class_name(datamodule, record),
                f"{source}; {details}",
                frames_TCHW[chosen].permute(0, 2, 3, 1).contiguous().numpy(),
                tuple(indices.tolist()),
                tuple(dataset.frame_seconds[indices].tolist()),
            )
        )
    return rows


def _class_name(datamodule: VideoDataModule, record: VideoRecord) -> str:
    return "" if record.label is None else datamodule.classes[record.label]


def _evenly(length: int, count: int) -> list[int]:
    """At most `count` places in [0, length), evenly spaced, with both ends; a single place is the first."""
    count = min(length, count)
    return [i * (length - 1) // max(1, count - 1) for i in range(count)]


def _describe_crop(crops: TestCrops, size: tuple[int, int], number: int) -> str:
    (height, width), boxes = crops.boxes(*size)
    text, (top, left, *_) = f"resized to {width} x {height}", boxes[number]
    return text if crops.crops == "full" else f"{text}, crop {crops.crop_px} x {crops.crop_px} at ({left}, {top})"


def describe_params(params: Any) -> str:
    """A transform's draw in words, without the parts that are off."""
    if hasattr(params, "crop"):
        parts = [describe_params(params.crop)]
        if params.rand_augment is not None:
            names = [f"{n} {v:.3g}" if v else n for n, v in params.rand_augment.operations]
            parts.append(f"RandAugment: {' + '.join(names)}")
        if params.color is not None and params.color.changes:
            parts.append("jitter: " + ", ".join(f"{name} {factor:.2f}" for name, factor in params.color.changes))
        if params.grey:
            parts.append("grey")
        if params.erasing is not None and params.erasing.box_height:
            box = params.erasing
            parts.append(f"erased {box.box_width} x {box.box_height} at ({box.left}, {box.top})")
        return "; ".join(parts)
    size, place = f"{params.crop_px} x {params.crop_px}", f"({params.left}, {params.top})"
    if hasattr(params, "box_height"):
        text = f"box {params.box_width} x {params.box_height} at {place} to {size}"
    else:
        text = f"resized to {params.resized_width} x {params.resized_height}, crop {size} at {place}"
    return text + (", flipped" if params.flip else "")


# ---- the picture ---------------------------------------------------------------------------------


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw rows of frames with their captions, from top to bottom, as an RGB picture."""
    if not rows:
        raise SettingError(
            "rows must not be empty: neither training nor test clips were asked for, or their lists lack"
        )
    font = ImageFont.load_default(size=_FONT)
    thumbs = [_thumbnails(row, font) for row in rows]
    width = max(_LEAST_WIDTH, *(2 * _MARGIN + sum(t.width + _GAP for t in line) for line in thumbs))
    inside = width - 2 * _MARGIN
    texts = [_texts(row, font, inside) for row in rows]
    heights = [
        _LINE * (len(text) + (1 if line else 0)) + (_THUMB_HEIGHT + 4 if line else 0) + 2 * _GAP
        for text, line in zip(texts, thumbs, strict=True)
    ]
    sheet = Image.new("RGB", (width, sum(heights) + 2 * _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    y = _MARGIN
    for row, text, line, height in zip(rows, texts, thumbs, heights, strict=True):
        _draw_row(sheet, pen, row, text, line, y=y, font=font)
        y += height
        pen.line((_MARGIN, y - _GAP, width - _MARGIN, y - _GAP), fill=_RULE)
    return sheet


def _draw_row(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Row,
    text: Sequence[str],
    thumbs: Sequence[Image.Image],
    *,
    y: int,
    font: Any,
) -> None:
    for i, line in enumerate(text):
        ink = _INK if i == 0 else (_GREY if thumbs else _RED)
        pen.text((_MARGIN, y), line, fill=ink, font=font)
        y += _LINE
    x = _MARGIN
    for thumb, index, seconds in zip(thumbs, row.indices, row.seconds, strict=True):
        sheet.paste(thumb, (x, y))
        label = f"{index}  {seconds:.2f} s"
        pen.text((x, y + thumb.height + 2), label, fill=_GREY, font=font)
        x += thumb.width + _GAP


def _thumbnails(row: Row, font: Any) -> list[Image.Image]:
    if row.frames_THWC is None:
        return []
    widest = max(font.getlength(f"{i}  {s:.2f} s") for i, s in zip(row.indices, row.seconds, strict=True))
    thumbs = []
    for frame_HWC in row.frames_THWC:
        thumb = Image.fromarray(frame_HWC)
        width = max(1, round(thumb.width * _THUMB_HEIGHT / thumb.height))
        thumb = thumb.resize((width, _THUMB_HEIGHT), Image.Resampling.BILINEAR)
        # At least as wide as its caption.
        room = Image.new("RGB", (max(width, int(widest) + 1), _THUMB_HEIGHT), _PAPER)
        room.paste(thumb, (0, 0))
        thumbs.append(room)
    return thumbs


def _texts(row: Row, font: Any, width: int) -> list[str]:
    """Title line and lines of details, none wider than the picture."""
    head = f"{row.title}   {shorten(row.class_name, 40)}   " if row.class_name else f"{row.title}   "
    room = int((width - font.getlength(head)) / font.getlength("m"))
    path = row.path
    while font.getlength(head + path) > width and len(path) > 8:
        path = shorten(row.path, max(8, min(len(path) - 1, room + len(path) // 2)))
    lines, line = [], ""
    for word in row.details.split(" "):
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > width and line:
            lines.append(line)
            longer = word
        line = shorten(longer, 100) if font.getlength(longer) > width else longer
    return [head + path, *lines, line]


def shorten(text: str, length: int) -> str:
    """At most `length` characters: "..." replaces the middle, and more of the end is kept, which says more."""
    if len(text) <= length:
        return text
    kept = max(0, length - 3)
    end = kept - kept // 3
    return f"{text[: kept // 3]}...{text[len(text) - end :]}"
