#!/usr/bin/env python3
"""Clip-level inference: python scripts/infer.py VIDEOS... --checkpoint FILE. The same as `video-gn infer`."""

import sys

from video_gn.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
