"""Answers uploads: labels, a timeline, and where the network looks. One video is computed at a time."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import anyio

from video_gn.clips import Failure
from video_gn.decoding import open_video
from video_gn.errors import DecodeError, VideoGNError
from video_gn.evaluation.prediction import Prediction
from video_gn.evaluation.predictor import Predictor
from video_gn.export import EngineNet
from video_gn.rendering.picture import write_picture
from video_gn.shown import count, shown
from video_gn.timelines.segments import TimelineConfig
from video_gn.timelines.timeline import label_videos

# Of a timeline; further apart in a long video, since a full-size network takes seconds for each on a CPU.
_MOST_WINDOWS = 30
# Above all cameras but those for slow motion. A short time may hold millions of tiny frames.
_MOST_FPS = 240
_FRAME_PX = 144  # short side of the frames that a page shows, on a dense screen

Answer = TypeVar("Answer")


class UploadError(VideoGNError):
    """An upload that is not labelled; its reason is a sentence without the file's name.

    Its HTTP status: 400; 408 for an upload that does not go on; 413 for too large or too long; 415 for no video; 500.
    """

    def __init__(self, reason: str, name: str = "upload", *, status: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.name = name
        self.status = status


@dataclass(frozen=True)
class Upload:
    """A file of a client's."""

    path: Path  # where it lies
    name: str  # what the client calls it


class Answers:
    """A network that answers uploads of at most `max_mb` (10^6 bytes) and `max_seconds`; the page calls it `name`."""

    def __init__(self, predictor: Predictor, *, name: str, max_mb: float, max_seconds: float, top_k: int = 5) -> None:
        self.predictor = predictor
        self.name = shown(name)
        self.max_bytes = round(max_mb * 1e6)
        self.max_seconds = max_seconds
        self.top_k = top_k
        self._one_at_a_time = anyio.CapacityLimiter(1)

    @property
    def explains(self) -> bool:
        """Whether it can show where the network looks: gradients are torch's alone."""
        return not isinstance(self.predictor.net, EngineNet)

    def about(self) -> dict[str, Any]:
        """What `GET /api/health` says."""
        return {
            "checkpoint": self.name,
            "classes": self.predictor.classes,
            "num_clips": self.predictor.num_clips,
            "max_mb": self.max_bytes / 1e6,
            "max_seconds": self.max_seconds,
        }

    async def entry(self, upload: Upload, *, timeline: bool) -> dict[str, Any]:
        """The upload's entry of `infer`'s json; an UploadError for a file that is not labelled."""
        return await self._compute(lambda: self._label(upload, timeline=timeline), upload)

    async def page(self, upload: Upload, *, explain: bool) -> str:
        """The upload's labels, timeline and explanation as HTML, with all pictures in it; errors as `entry`."""
        return await self._compute(lambda: self._page(upload, explain=explain), upload)

    async def _compute(self, work: Callable[[], Answer], upload: Upload) -> Answer:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._one_at_a_time)
        except DecodeError as error:
            raise UploadError(error.reason, upload.name, status=415) from error
        except UploadError:
            raise
        except VideoGNError as error:  # of the network: not the upload's fault
            reason = str(error).replace(str(upload.path), "the video")
            raise UploadError(reason, upload.name, status=500) from error

    def _label(self, upload: Upload, *, timeline: bool) -> Prediction:
        path = str(upload.path)
        every_seconds = self._check_length(path, upload.name)
        if timeline:
            config = TimelineConfig(every_seconds)
            found = next(label_videos(self.predictor, [path], config, top_k=self.top_k))
            if isinstance(found, Failure):
                raise DecodeError(path, found.reason)
            prediction = Prediction(found)
        else:
            prediction = self.predictor.predict(path, top_k=self.top_k)
        prediction["path"] = upload.name
        return prediction

    def _check_length(self, path: str, name: str) -> float:
        """Refuse a video that is too long; the distance of its windows, in seconds."""
        with open_video(path) as reader:
            info = reader.info
        if info.duration_seconds > self.max_seconds:
            got = f"{info.duration_seconds:.6g} s"
        elif info.num_frames > _MOST_FPS * self.max_seconds:
            got = count(info.num_frames, "frame")
        else:
            clip = self.predictor.clip
            window_seconds = clip.num_frames * clip.stride / (clip.target_fps or info.fps)
            return max(window_seconds / 2, info.duration_seconds / _MOST_WINDOWS)
        raise UploadError(
            f"a video must last at most {self.max_seconds:g} s, got {got}. Cut it, or start the app with more "
            "--max_seconds",
            name,
            status=413,
        )

    def _page(self, upload: Upload, *, explain: bool) -> str:
        prediction = self._label(upload, timeline=True)
        with open_video(upload.path, short_side_px=_FRAME_PX) as reader:
            prediction.keep_pictures(reader)
        timeline = upload.path.with_name("timeline.png")
        write_picture(prediction, timeline)
        parts = [prediction._repr_html_(), _figure("Scores over time", timeline.read_bytes(), "png")]
        if explain and self.explains:
            from video_gn.explaining import draw_strip
            from video_gn.explaining import explain as explain_video

            strip, data = draw_strip(explain_video(self.predictor, upload.path)), io.BytesIO()
            strip.save(data, "JPEG", quality=85)
            parts.append(_figure("Where it looks, and the score with a part hidden", data.getvalue(), "jpeg"))
        return "".join(parts)


def failure_html(error: UploadError) -> str:
    """A failure as the page shows it."""
    return f'<p class="failed" role="alert">{escape(shown(f"{error.name}: {error.reason}"))}</p>'


def _figure(title: str, picture: bytes, kind: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    return f'<h3>{title}</h3><img class="picture" alt="{title}" src="{source}">'
