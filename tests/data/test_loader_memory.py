"""Workers that read for long hold no more memory than after a while.

Decoders leak, and lists of objects are copied page by page into forked workers as they are read.
"""

import multiprocessing
import os
from pathlib import Path

import pytest

from video_gn.data.datamodule import build_datamodule

# The whole proof takes 10,000 clips: VIDEO_GN_MEMORY_CLIPS=10000.
NUM_CLIPS = int(os.environ.get("VIDEO_GN_MEMORY_CLIPS", "3000"))
WARM_UP = 1000
LINES = 240_000


def pss_bytes(pid):
    """Memory of a process, pages that it shares counted by their share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc here")
def test_workers_do_not_grow(tiny_videos, tmp_path):
    videos = sorted(tiny_videos.rglob("*.mp4"))
    rows = (
        f"{videos[i % 30]},{videos[i % 30].parent.name},0,{0.5 + i * 1e-6:.6f}" for i in range(LINES)
    )  # segments, each another one: a line that is repeated would count once
    (tmp_path / "list.csv").write_text("path,label,start_seconds,end_seconds\n" + "\n".join(rows) + "\n")
    data = build_datamodule(
        {
            "train": str(tmp_path / "list.csv"),
            "val": str(tiny_videos),
            "clip": {"num_frames": 8},
            "augment": {"short_side_px": (32, 36), "crop_px": 32},
            "views": {"short_side_px": 32},
            "loader": {"num_workers": 2},
            "batch_size": 10,
        }
    )
    data.read("fit")
    assert len(data.manifests["train"].records) == LINES
    iterator = iter(data.train_dataloader())
    sizes = []
    for batch in range(1, NUM_CLIPS // 10 + 1):
        next(iterator)
        if 10 * batch in (WARM_UP, NUM_CLIPS):
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            sizes.append(sum(pss_bytes(worker.pid) for worker in workers))
    del iterator
    before, after = sizes
    assert after < 1.01 * before, f"{before / 1e6:.1f} MB after {WARM_UP} clips, {after / 1e6:.1f} after {NUM_CLIPS}"
