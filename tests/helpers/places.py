"""Where test files lie."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REAL_VIDEOS = Path(os.environ.get("VIDEO_GN_REAL_VIDEOS", ROOT.parent / "shared" / "data"))
