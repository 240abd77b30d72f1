"""Measurements of speed and memory: `video-gn bench`."""
