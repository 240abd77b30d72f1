"""Explains a label: where in a video the network looks, and which seconds change its answer."""

from video_gn.explaining.explanation import Explanation, explain, explained_net
from video_gn.explaining.pictures import draw_strip, overlay, render_heat

__all__ = ["Explanation", "draw_strip", "explain", "explained_net", "overlay", "render_heat"]
