"""Video classifiers whose normalization does not depend on the batch size.

Importing this package is cheap: torch and the decoders are imported where they are used.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from video_gn.errors import (
    CheckpointError,
    ConfigError,
    DecodeError,
    FrameCountError,
    ManifestError,
    RunError,
    VideoGNError,
)

if TYPE_CHECKING:
    from video_gn.timelines.predictor import VideoPredictor

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DecodeError",
    "FrameCountError",
    "ManifestError",
    "RunError",
    "VideoGNError",
    "__version__",
    "load",
]


def load(path: str | PathLike[str], **kwargs: Any) -> VideoPredictor:
    """Load a checkpoint as a predictor: `predict(video)`, `timeline(video)` and `embed(video)`.

    Args:
        path: Checkpoint of this package, a run's directory (its best checkpoint), or a video network's weights from any
            zoo.
        **kwargs: See `video_gn.evaluation.predictor.Predictor.from_checkpoint`; `net=MyNet(...)` for a network of your
            own.
    """
    from video_gn.timelines.predictor import VideoPredictor

    return VideoPredictor.from_checkpoint(path, **kwargs)
