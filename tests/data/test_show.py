"""What a picture shows is what the data sets gave: frames say their numbers."""

import numpy as np
import pytest
from media import read_number, read_numbers, with_pixel_aspect, write_numbered_video
from PIL import Image

from video_gn.data.augment import (
    Augmentation,
    ColorJitter,
    RandAugment,
    RandomErasing,
    RandomGreyscale,
    RandomResizedCrop,
)
from video_gn.data.datamodule import AugmentConfig, VideoDataModule, ViewsConfig
from video_gn.data.dataset import ClipConfig, TrainDataset
from video_gn.data.show import Row, contact_sheet, describe_params, shorten, show, train_rows, view_rows


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Square videos, so that a crop of the whole frame still shows its number."""
    root = tmp_path_factory.mktemp("show")
    for label in ("juggling_balls", "skiing"):
        for number in range(4):
            path = root / "train" / label / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_numbered_video(path, 30 + number, size=(64, 64), first_number=100)
    path = root / "val" / "skiing" / "test.mp4"
    path.parent.mkdir(parents=True)
    write_numbered_video(path, 40, size=(64, 64))
    (root / "val" / "juggling_balls").mkdir()
    (root / "val" / "juggling_balls" / "broken.mp4").write_bytes(b"no video")
    return root


def module(root, **changes):
    settings = {
        "clip": ClipConfig(num_frames=6, stride=2),
        "augment": AugmentConfig(short_side_px=(64, 64), crop_px=64, flip=0.0),
        "views": ViewsConfig(num_clips=3, short_side_px=64),
        "batch_size": 2,
    }
    return VideoDataModule(str(root), **{**settings, **changes})


def test_rows_show_the_frames_that_they_name(videos, tmp_path):
    datamodule = module(videos)
    rows = show(datamodule, tmp_path / "out.png", num_train=3, num_test=2, epoch=1, frames_per_clip=4)
    read = [row for row in rows if row.frames_THWC is not None]
    assert len(read) == 3 + 3
    for row in read:
        offset = 100 if row.title.startswith("train") else 0
        assert read_numbers(row.frames_THWC) == [i + offset for i in row.indices]
        assert row.seconds == pytest.approx([i / 25 for i in row.indices])
        assert len(row.indices) == 4
    assert [row.title for row in read][3:] == [f"test, clip {i} of 3" for i in (1, 2, 3)]
    assert [row.indices[0] for row in read][3:] == [0, 13, 26]
    (failed,) = [row for row in rows if row.frames_THWC is None]
    assert failed.path.endswith("broken.mp4") and "could not be read" in failed.details
    assert failed.class_name == "juggling_balls"
    assert "64 x 64, 40 frames at 25 fps; resized to 64 x 64, crop 64 x 64 at (0, 0)" in read[-1].details


def test_pixels_that_are_not_square_are_told(tmp_path):
    for label in ("a", "b"):
        path = tmp_path / label / "video.mp4"
        path.parent.mkdir(parents=True)
        with_pixel_aspect(write_numbered_video(path, 20, size=(64, 64)), "4/3").replace(path)
        path.with_name("other.mp4").write_bytes(path.read_bytes())
    (row,) = show(module(tmp_path), tmp_path / "out.png", num_train=1, num_test=0, epoch=0, frames_per_clip=2)
    assert "64 x 64 (pixels 1.33 times as wide as high), 20 frames" in row.details


def test_training_clips_are_those_of_the_epoch(videos):
    datamodule = module(videos)
    datamodule.read()
    rows = train_rows(datamodule, 100, epoch=2, frames_per_clip=6)
    batches = datamodule.train_dataloader()
    batches.sampler.set_epoch(2)
    paths = [note.path for batch in batches for note in batch.notes]
    assert [row.path for row in rows] == paths
    records = datamodule.manifests["train"].records
    dataset = TrainDataset(records, clip=datamodule.clip, transform=datamodule.train_transform, seed=0)
    for row, key in zip(rows, [(2, [r.path for r in records].index(p)) for p in paths], strict=True):
        frames = dataset[key].frames_VTCHW[0].permute(0, 2, 3, 1).numpy()
        assert (frames == row.frames_THWC).all()


def test_the_picture_can_be_read(videos, tmp_path):
    target = tmp_path / "out.png"
    rows = show(module(videos), target, num_train=2, num_test=0, frames_per_clip=3)
    picture = Image.open(target)
    assert picture.format == "PNG" and picture.mode == "RGB"
    pixels = np.asarray(picture)
    # Margin 12; two lines of 18, frames of 112 x 112 with 8 between them; then a line, and 16 to the next row.
    for r, row in enumerate(rows):
        top = 12 + 36 + r * (3 * 18 + 112 + 4 + 16)
        for t in range(3):
            left = 12 + t * 120
            assert read_number(pixels[top : top + 112, left : left + 112]) == row.indices[t] + 100


@pytest.mark.parametrize(("crops", "num_crops"), [("center", 1), ("three", 3), ("full", 1)])
def test_all_views_of_a_test_video(tiny_videos, crops, num_crops):
    views = ViewsConfig(num_clips=2, crops=crops, short_side_px=40, crop_px=32)
    datamodule = module(tiny_videos, views=views)
    datamodule.read()
    rows = view_rows(datamodule, 2, frames_per_clip=2)
    assert len(rows) == 2 * 2 * num_crops and len({row.path for row in rows}) == 2
    records = datamodule.manifests["test"].records
    assert {row.path for row in rows} == {records[0].path, records[-1].path}
    if crops == "three":
        assert [row.details.split("; ")[1] for row in rows[:3]] == [
            f"resized to 48 x 40, crop 32 x 32 at ({left}, 4)" for left in (0, 8, 16)
        ]
    assert rows[0].frames_THWC.shape[1:] == ((40, 48, 3) if crops == "full" else (32, 32, 3))


def test_a_part_of_a_video(videos, tmp_path):
    listing = tmp_path / "list.csv"
    path = videos / "val" / "skiing" / "test.mp4"
    listing.write_text(f"path,label,start_seconds,end_seconds\n{path},0,0.8,1.4\n{path},0,0.4,1.4\n")
    datamodule = module(listing, val=str(listing), source=type(module(videos).source)(classes=["skiing"]))
    datamodule.read()
    rows = view_rows(datamodule, 1, frames_per_clip=6)
    assert read_numbers(rows[0].frames_THWC) == list(rows[0].indices)
    assert rows[0].indices[0] == 20 and rows[0].seconds[0] == pytest.approx(0.8)


def test_augmentation_in_words():
    transform = Augmentation(
        RandomResizedCrop(24), RandAugment(), ColorJitter(0.4, 0, 0, 0.1), RandomGreyscale(1.0), RandomErasing(1.0)
    )
    text = describe_params(transform.draw(np.random.default_rng(0), 40, 50))
    for words in ("box ", " to 24 x 24", "RandAugment: ", "jitter: ", "brightness ", "hue ", "; grey", "erased "):
        assert words in text
    plain = describe_params(module("unused").train_transform.draw(np.random.default_rng(0), 80, 100))
    assert plain == "resized to 80 x 64, crop 64 x 64 at (6, 0)" or plain.startswith("resized to 80 x 64, crop 64 x 64")
    assert "None" not in describe_params(Augmentation(RandomResizedCrop(24)).draw(np.random.default_rng(0), 40, 50))


def test_long_names_stay_inside_the_picture():
    frames = np.zeros((1, 20, 20, 3), dtype=np.uint8)
    long = Row(
        "train", "/" + "very/long/" * 60 + "end.mp4", "a class " * 20, "word " * 100 + "x" * 300, frames, (0,), (0.0,)
    )
    picture = np.asarray(contact_sheet([long]))
    assert picture.shape[1] == 760
    assert (picture[:, -6:] == 255).all()  # nothing runs out at the right


def test_shorten():
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdefghijkl", 9) == "ab...ijkl"
    assert all(len(shorten("x" * 50, n)) <= n for n in range(3, 60))


def test_bad_arguments(videos, tmp_path):
    for name, message in (
        ("num_train", "num_train must be at least 0"),
        ("num_test", "num_test must be at least 0"),
        ("epoch", "epoch must be at least 0"),
        ("frames_per_clip", "frames_per_clip must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            show(module(videos), tmp_path / "x.png", **{name: -1})
    with pytest.raises(ValueError, match="rows must not be empty"):
        show(module(videos), tmp_path / "x.png", num_train=0, num_test=0)
