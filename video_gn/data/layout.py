"""Memory layout of clips: decoded frames are cropped into a sample's views, and samples copied into a batch.

Shape letters: K clips (M of any kind), P crops of a clip, V = K * P views, T frames, n some frames, N different frames,
C channels, H, W; h, w cropped. In a batch N is videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import get_worker_info

from video_gn.clips import ClipBatch, Failure, VideoNote
from video_gn.decoding import VideoReader

Crop = Callable[[torch.Tensor], torch.Tensor]  # uint8 (n, H, W, 3) -> uint8 (P, n, 3, h, w)

# Frames held at full size at a time: 64, or as many as fill 200 MB (32 of 1920 x 1080, 2 of 7680 x 4320), at least one.
_FRAMES_PER_CHUNK = 64
_CHUNK_BYTES = 200_000_000
# Frames cropped at a time: few enough to stay in a core's cache from the resize to the copy. A training clip took 3%
# less time with 4 than all at once, and about the same with 8.
_FRAMES_PER_CROP = 4


@dataclass(frozen=True)
class Sample:
    """What a data set gives for one key; `frames_VTCHW` is None if nothing could be read."""

    frames_VTCHW: torch.Tensor | None
    label: int
    video_id: int
    failures: tuple[Failure, ...] = ()
    note: VideoNote | None = None


def read_views(reader: VideoReader, indices_KT: np.ndarray, crop: Crop) -> torch.Tensor:
    """Decode each frame of several clips once, crop, and lay the clips out.

    `indices_KT` are int64; clips may overlap and wrap around. `crop` must do the same to every frame.

    Returns:
        uint8 (K * P, T, 3, h, w), view k * P + p, in memory order V,T,h,w,3.
    """
    wanted, inverse = np.unique(indices_KT, return_inverse=True)
    inverse_KT = inverse.reshape(indices_KT.shape)
    num_clips, num_frames = indices_KT.shape
    is_one_in_order = num_clips == 1 and (np.diff(indices_KT[0]) > 0).all()
    out: torch.Tensor | None = None
    for first, cropped_PnHWC in _cropped(reader, wanted, crop):
        num_crops, count, height, width, channels = cropped_PnHWC.shape
        if out is None:
            shape = (num_clips, num_crops, num_frames, height, width, channels)
            # One clip is copied into a batch with others.
            out = empty_frames(shape) if num_clips > 1 else _unshared_frames(shape)
        if is_one_in_order:
            out[0, :, first : first + count] = cropped_PnHWC
        else:
            # A plain loop: advanced indexing over both sides takes four times as long.
            for clip, frame in np.argwhere((inverse_KT >= first) & (inverse_KT < first + count)).tolist():
                out[clip, :, frame] = cropped_PnHWC[:, int(inverse_KT[clip, frame]) - first]
        del cropped_PnHWC  # before the next frames are read
    assert out is not None
    return out.flatten(0, 1).permute(0, 1, 4, 2, 3)


def stream_clips(
    reader: VideoReader, indices_MT: np.ndarray, crop: Crop
) -> Generator[tuple[int, list[torch.Tensor]], None, None]:
    """Decode each frame of any number of clips once, in one pass, and give each clip as soon as its frames are there.

    A cropped frame is held from its decoding to its last use, so the memory is that of the clips that overlap.
    `indices_MT` are int64; `crop` must do the same to every frame.

    Yields:
        A clip's number and its T frames, each uint8 (P, h, w, 3); clips in the order of their last frames.
    """
    order = np.argsort(indices_MT.max(1, initial=0), kind="stable")
    wanted, inverse = np.unique(indices_MT[order], return_inverse=True)
    inverse_MT = inverse.reshape(indices_MT.shape)
    ends = inverse_MT.max(1, initial=0)
    last_use = np.zeros(len(wanted), dtype=np.int64)
    np.maximum.at(last_use, inverse_MT, np.arange(len(order))[:, None])
    held: dict[int, torch.Tensor] = {}
    place = 0
    for first, cropped_PnHWC in _cropped(reader, wanted, crop):
        # A copy: the crop is a view of pictures that are larger, and of several of them.
        held.update((first + n, cropped_PnHWC[:, n].clone()) for n in range(cropped_PnHWC.shape[1]))
        reached = first + cropped_PnHWC.shape[1]
        del cropped_PnHWC  # before the next frames are read
        while place < len(order) and ends[place] < reached:
            rows = inverse_MT[place].tolist()
            yield int(order[place]), [held[row] for row in rows]
            for row in set(rows):
                if last_use[row] == place:
                    del held[row]
            place += 1


def _cropped(reader: VideoReader, wanted: np.ndarray, crop: Crop) -> Iterator[tuple[int, torch.Tensor]]:
    """Crops of frames of ascending indices, (P, n, h, w, 3) of a few at a time; and the place of the first of them."""
    for chunk_at, frames_NHWC in _chunks(reader, wanted):
        for at, part_nHWC in enumerate(frames_NHWC.split(_FRAMES_PER_CROP)):
            yield chunk_at + at * _FRAMES_PER_CROP, crop(part_nHWC).permute(0, 1, 3, 4, 2)
        del frames_NHWC, part_nHWC  # before the next frames are read


def empty_frames(shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialized uint8 tensor, in shared memory inside a loading worker, so that sending it copies nothing."""
    if get_worker_info() is None:
        return _unshared_frames(shape)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).resize_(shape)


def _unshared_frames(shape: tuple[int, ...]) -> torch.Tensor:
    # numpy asks the system for huge pages, torch does not: page faults were a fifth of a test video's time.
    return torch.from_numpy(np.empty(shape, dtype=np.uint8))


def read_repeats(reader: VideoReader, indices_KT: np.ndarray, crops: Sequence[Crop]) -> torch.Tensor:
    """Decode each frame of several clips once, and crop each clip once with its own function: uint8 (K, T, 3, h, w)."""
    wanted, inverse = np.unique(indices_KT, return_inverse=True)
    rows_KT = inverse.reshape(indices_KT.shape)
    out: torch.Tensor | None = None
    for chunk_at, frames_NHWC in _chunks(reader, wanted):
        for clip, (crop, rows_T) in enumerate(zip(crops, rows_KT - chunk_at, strict=True)):
            places = np.flatnonzero((rows_T >= 0) & (rows_T < len(frames_NHWC)))
            for at in range(0, len(places), _FRAMES_PER_CROP):
                part = places[at : at + _FRAMES_PER_CROP]
                cropped_nCHW = crop(frames_NHWC[torch.from_numpy(rows_T[part])])[0]
                if out is None:
                    _, channels, height, width = cropped_nCHW.shape
                    out = _unshared_frames((*indices_KT.shape, height, width, channels)).permute(0, 1, 4, 2, 3)
                out[clip, torch.from_numpy(part)] = cropped_nCHW
        del frames_NHWC  # before the next frames are read
    assert out is not None
    return out


def _chunks(reader: VideoReader, wanted: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
    """Frames of ascending indices, as many at a time as are held at full size; and the place of the first of them."""
    frame_bytes = 3 * reader.info.height * reader.info.width
    step = min(_FRAMES_PER_CHUNK, max(1, _CHUNK_BYTES // frame_bytes))
    for first in range(0, len(wanted), step):
        yield first, reader.frames_at(wanted[first : first + step])


def collate(samples: Sequence[Sample]) -> ClipBatch:
    """Copy samples into a batch of memory order N,V,T,H,W,C; of those without frames only the failures are kept.

    Raises:
        ValueError: for frames of different shapes.
    """
    read = [s for s in samples if s.frames_VTCHW is not None]
    failures = tuple(f for s in samples for f in s.failures)
    if not read:
        empty = torch.zeros(0, dtype=torch.int64)
        frames = torch.zeros((0, 0, 1, 3, 1, 1), dtype=torch.uint8)
        return ClipBatch(frames, empty, empty, failures)
    clips = [s.frames_VTCHW for s in read if s.frames_VTCHW is not None]
    shapes = {tuple(c.shape) for c in clips}
    if len(shapes) > 1:
        raise ValueError(f"the clips of a batch must have one shape, got {sorted(shapes)}. Use one video per batch.")
    num_views, num_frames, channels, height, width = clips[0].shape
    first_VTHWC = clips[0].permute(0, 1, 3, 4, 2)
    if len(clips) == 1 and first_VTHWC.is_contiguous() and (get_worker_info() is None or first_VTHWC.is_shared()):
        out_NVTHWC = first_VTHWC[None]  # ten views of a test video are 48 MB
    else:
        out_NVTHWC = empty_frames((len(clips), num_views, num_frames, height, width, channels))
        for row, clip in zip(out_NVTHWC, clips, strict=True):
            row.copy_(clip.permute(0, 1, 3, 4, 2))
    return ClipBatch(
        out_NVTHWC.permute(0, 1, 2, 5, 3, 4),
        torch.tensor([s.label for s in read], dtype=torch.int64),
        torch.tensor([s.video_id for s in read], dtype=torch.int64),
        failures,
        tuple(s.note for s in read if s.note is not None),
    )
