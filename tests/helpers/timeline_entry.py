"""An entry of `video-gn infer --every`, written by hand."""

from __future__ import annotations

from typing import Any


def entry(**more: Any) -> dict[str, Any]:
    """Twelve seconds: walk until 4, unsure until 6, run until 12, nothing from 8 to 9; scores of 0.75 and 0.25."""
    times = [0.5 + i for i in range(12)]
    best = [("walk", "run") if t < 5 else ("run", "walk") for t in times]
    return {
        "path": "v.mp4",
        "num_frames": 120,
        "fps": 10.0,
        "top": [{"label": "run", "score": 0.5}],
        "timeline": {
            "window_seconds": 1.0,
            "every_seconds": 1.0,
            "first_frame_seconds": 60.0,
            "times": times,
            "top": [[{"label": a, "score": 0.75}, {"label": b, "score": 0.25}] for a, b in best],
            "gaps": [[8.0, 9.0]],
        },
        "segments": [
            {"label": "walk", "start_seconds": 0.0, "end_seconds": 4.0, "score": 0.75},
            {"label": "unsure", "start_seconds": 4.0, "end_seconds": 6.0, "score": 0.4},
            {"label": "run", "start_seconds": 6.0, "end_seconds": 12.0, "score": 0.75},
        ],
        **more,
    }
