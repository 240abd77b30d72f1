"""The predictor that `video_gn.load` gives: with timelines, which lie above the plain one."""

from __future__ import annotations

import os

from video_gn.clips import Failure
from video_gn.errors import DecodeError
from video_gn.evaluation.prediction import Prediction
from video_gn.evaluation.predictor import Predictor, Video, check_file_rate
from video_gn.timelines.segments import TimelineConfig
from video_gn.timelines.timeline import label_reader, label_videos


class VideoPredictor(Predictor):
    """A predictor that also says what happens when."""

    def timeline(
        self,
        video: Video,
        *,
        every_seconds: float = 0.5,
        smooth_seconds: float | None = None,
        min_seconds: float | None = None,
        unsure: float = 0.5,
        fps: float | None = None,
        top_k: int = 5,
        backend: str = "auto",
    ) -> Prediction:
        """`predict` with the keys "timeline" and "segments", as `infer --every` writes them.

        Args:
            video: As for `predict`. An iterator is read to its end, and the network's crops of all its frames are kept;
                a stream without an end is for `infer --live`.
            every_seconds: Distance of windows.
            smooth_seconds: See `TimelineConfig`, as the next two.
            min_seconds: Shortest segment.
            unsure: Score below which a segment is "unsure".
            fps: Frames per second of frames in memory; a file has its own.
            top_k: Number of labels.
            backend: Decoder of a file, see `video_gn.decoding.open_video`.

        Raises:
            DecodeError: the video cannot be read.
            CheckpointError: the network's scores are not finite.
            SettingError: a number is out of its range.
            TypeError: the frames are not uint8.
            ValueError: their shape or their rate is wrong, or there are none.
        """
        config = TimelineConfig(every_seconds, smooth_seconds, min_seconds, unsure)
        if isinstance(video, str | os.PathLike):
            check_file_rate(video, fps)
            found = next(label_videos(self, [os.fspath(video)], config, top_k=top_k, backend=backend))
            if isinstance(found, Failure):
                raise DecodeError(found.path, found.reason)
            return Prediction(found)
        held = self.hold(video, fps)
        prediction = Prediction(label_reader(held.predictor, held.reader, config, top_k=top_k))
        prediction.keep_pictures(held.shown)
        return prediction
