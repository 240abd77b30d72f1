"""A network trained for half a minute finds when people, whom it has not seen, change from one action to the next."""

import csv

import av
import numpy as np
import pytest
from places import ROOT
from runs import run

from video_gn.decoding import open_video
from video_gn.evaluation.predictor import Predictor
from video_gn.timelines.segments import TimelineConfig
from video_gn.timelines.timeline import label_videos

ACTED = (("lyova", "bend"), ("daria", "walk"), ("shahar", "jack"))
SETTINGS = [
    "--config",
    str(ROOT / "configs/weizmann.yaml"),
    "--trainer.max_epochs=60",
    "--trainer.check_val_every_n_epoch=60",
    "--model.net.dropout=0",
    "--model.net.norm=batch",  # so few steps suffice for each of three seeds; with Group Norm for one of two
    "--model.net.num_groups=null",
    "--model.optimizer.lr=0.03",
    "--model.schedule.warmup=2",
    "--data.batch_size=6",
    "--data.clip.num_frames=8",
    "--data.augment.short_side_px=[64, 72]",
    "--data.augment.crop_px=64",
    "--data.views.num_clips=4",
    "--data.views.short_side_px=68",
    "--data.views.crop_px=64",
    "--data.loader.num_workers=1",
]


@pytest.mark.slow
@pytest.mark.needs_real_videos
def test_boundaries_between_three_peoples_actions(real_videos, tmp_path):
    directory = real_videos / "weizmann"
    with (directory / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in dict(ACTED).values()]
    text = [f"{directory / row['path']},{row['label']},{row['person']}" for row in rows]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,person", *text]) + "\n")
    status, printed = run(["fit", "--run_dir=run", "--data.train=list.csv", *SETTINGS], tmp_path)
    assert status == 0, printed
    counts = join([directory / f"{label}/{person}_{label}.avi" for person, label in ACTED], tmp_path / "joined.mp4")

    predictor = Predictor.from_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    config = TimelineConfig(0.2, min_seconds=1.0, unsure=0)
    (entry,) = label_videos(predictor, [str(tmp_path / "joined.mp4")], config)
    assert [segment["label"] for segment in entry["segments"]] == [label for _, label in ACTED]
    changes = [segment["start_seconds"] for segment in entry["segments"][1:]]
    np.testing.assert_allclose(changes, np.cumsum(counts)[:-1] / 25, atol=0.5)


def join(paths, target):
    """Write videos one after the other into one, and return their numbers of frames."""
    counts = []
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "18", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 180, 144, "yuv420p"
        for path in paths:
            with open_video(path) as reader:
                frames = reader.frames_at(range(reader.info.num_frames)).numpy()
            counts.append(len(frames))
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return counts
