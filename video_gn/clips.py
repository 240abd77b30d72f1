"""Frozen containers for videos and batches; a batch checks its shapes.

Shape letters: N videos of a batch, K views, T frames, C channels, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a reader knows of a video.

    Args:
        path: Path of the video.
        num_frames: Number of frames that a pass over the packets promises, at least 1.
        fps: Average frames per second, above 0.
        width: Pixels, after rotation.
        height: Pixels, after rotation.
        rotation_degrees: Clockwise rotation that the reader has applied: 0, 90, 180 or 270.
        codec: FFmpeg's name of the codec.
        duration_seconds: Time from the start of the first frame to the end of the last one.
        is_mirrored: Whether the reader has mirrored the frames left to right, before rotation.
        pixel_aspect: Width of a pixel as it is to be shown, divided by its height, after rotation. Frames have the
            pixels that are stored: nothing is stretched.
        first_frame_seconds: Where a player shows the first frame: its time in the file, counted from the beginning of
            the file's earliest stream. 0 if the file has no times.
    """

    path: str
    num_frames: int
    fps: float
    width: int
    height: int
    rotation_degrees: int
    codec: str
    duration_seconds: float
    is_mirrored: bool = False
    pixel_aspect: float = 1.0
    first_frame_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A video that could not be read.

    Args:
        video_id: Index in the manifest.
        path: Path as the manifest has it.
        reason: One line.
    """

    video_id: int
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class VideoNote:
    """What reports say of a video beside its scores.

    Args:
        path: Path as the manifest has it.
        num_frames: Number of frames of the video (or of its segment) that clips were sampled from.
        fps: Average frames per second.
        clip_seconds: For each clip (not each crop), start of its first frame and end of its last one, in seconds from
            the first frame of the video. A clip that runs past the end of the video ends there.
    """

    path: str
    num_frames: int
    fps: float
    clip_seconds: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """A batch on its way to the network. N is 0 if no video of the batch could be read.

    Args:
        frames_NKTCHW: uint8, in memory order N,K,T,H,W,C, so that the network's channels_last_3d needs no copy.
        labels: int64 (N,); -1 for a video without a label.
        video_ids: int64 (N,), indices in the manifest.
        failures: Videos of this batch that could not be read.
        notes: One for each of the N videos, or none at all.
    """

    frames_NKTCHW: torch.Tensor
    labels: torch.Tensor
    video_ids: torch.Tensor
    failures: tuple[Failure, ...] = ()
    notes: tuple[VideoNote, ...] = ()

    def __post_init__(self) -> None:
        import torch

        frames = self.frames_NKTCHW
        if frames.ndim != 6 or frames.dtype != torch.uint8 or frames.shape[3] != 3:
            raise ValueError(
                f"frames_NKTCHW must be uint8 of shape (N, K, T, 3, H, W), got {frames.dtype} {tuple(frames.shape)}"
            )
        num_videos = frames.shape[0]
        for name in ("labels", "video_ids"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int64 or tuple(tensor.shape) != (num_videos,):
                raise ValueError(
                    f"{name} must be int64 of shape ({num_videos},), got {tensor.dtype} {tuple(tensor.shape)}"
                )
        if self.notes and len(self.notes) != num_videos:
            raise ValueError(f"notes must be {num_videos} or none, got {len(self.notes)}")

    def __len__(self) -> int:
        return int(self.frames_NKTCHW.shape[0])

    @property
    def num_clips(self) -> int:
        """N times K."""
        return int(self.frames_NKTCHW.shape[0] * self.frames_NKTCHW.shape[1])

    def to(self, device: Any, non_blocking: bool = False, **kwargs: Any) -> ClipBatch:
        """The batch on another device; name and arguments are those that Lightning calls.

        The copy to a GPU is only queued, which page-locked memory allows: Lightning asks for that with plain tensors
        alone, and would have the host wait here until the step before is computed.
        """
        import torch

        non_blocking = non_blocking or torch.device(device).type == "cuda"
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ClipBatch:
        """The batch in page-locked memory; the DataLoader calls this."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, function: Any) -> ClipBatch:
        names = ("frames_NKTCHW", "labels", "video_ids")
        return replace(self, **{name: function(getattr(self, name)) for name in names})
