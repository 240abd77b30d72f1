"""Explains a label: where in a video the network looks, and which seconds change its answer."""

from video_gn.explaining.explanation import Explanation, explain
from video_gn.explaining.pictures import draw_strip, overlay, render_heat

__all__ = ["Explanation", "draw_strip", "explain", "overlay", "render_heat"]
