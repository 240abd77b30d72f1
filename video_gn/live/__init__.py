"""Labels a live source, such as a camera, window by window."""

from video_gn.live.running import watch
from video_gn.live.source import parse_source

__all__ = ["parse_source", "watch"]
