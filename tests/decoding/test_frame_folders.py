"""Folders of frames as videos: in lists, class folders, scans, `prepare`, `show`, training and inference."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from media import decode_in_order, read_numbers, write_numbered_video
from PIL import Image
from runs import TINY, run

import video_gn
from video_gn.data.configs import AugmentConfig, LoaderConfig, ViewsConfig
from video_gn.data.datamodule import VideoDataModule
from video_gn.data.dataset import ClipConfig
from video_gn.data.show import show
from video_gn.decoding import open_video
from video_gn.decoding.frame_folders import Folders, folder_state, is_frame
from video_gn.errors import ManifestError
from video_gn.lists import file_names
from video_gn.lists.file_names import walk_videos
from video_gn.lists.manifest import write_manifest
from video_gn.lists.read import find_videos, read_manifest
from video_gn.prepare.prepare import prepare
from video_gn.prepare.probe import probe
from video_gn.prepare.scan import _read_rows, scan

SIZE = (48, 40)


def extract(video, folder):
    """Write a video's frames without loss."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(decode_in_order(video), 1):
        Image.fromarray(np.ascontiguousarray(frame)).save(folder / f"img_{number:05d}.png", compress_level=1)
    return folder


def put(folder, num_frames=3):
    """A frame folder that nobody looks into."""
    folder.mkdir(parents=True)
    for number in range(1, num_frames + 1):
        (folder / f"img_{number:05d}.jpg").touch()
    return folder


def write(path, text):
    path.write_text(text)
    return path


def rows(manifest):
    return [(r.path, None if r.label is None else manifest.classes[r.label], r.missing) for r in manifest.records]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same videos as files, and as frame folders."""
    root = tmp_path_factory.mktemp("both")
    for number in range(6):
        label = ("one", "two")[number % 2]
        path = root / "videos" / label / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_numbered_video(path, 16 + number, fps=30, size=SIZE, first_number=50 * number)
        extract(path, root / "frames" / label / str(number))
    return root


def module(path, **changes):
    settings = {
        "clip": ClipConfig(num_frames=6, stride=2),
        "augment": AugmentConfig(short_side_px=(40, 44), crop_px=32),
        "views": ViewsConfig(num_clips=3, short_side_px=40),
        "loader": LoaderConfig(num_workers=0),
        "batch_size": 2,
    }
    return VideoDataModule(str(path), **{**settings, **changes})


class TestFolders:
    def test_class_folders(self, tmp_path):
        for name in ("b/v1", "b/v2.mp4", "b/group/v3", "a/v4"):
            put(tmp_path / name)
        (tmp_path / "a" / "v5.mp4").touch()
        manifest = read_manifest(tmp_path)
        want = [("a", "a/v5.mp4"), ("a", "a/v4"), ("b", "b/group/v3"), ("b", "b/v1"), ("b", "b/v2.mp4")]
        assert rows(manifest) == [(str(tmp_path / path), label, False) for label, path in want]
        assert [dict(r.groups)["folder"] for r in manifest.records] == ["", "", "group", "", ""]

    def test_parts(self, tmp_path):
        for part in ("train", "val"):
            for name in ("a/v1", "b/v2"):
                put(tmp_path / part / name)
        assert rows(read_manifest(tmp_path, split="val")) == [
            (str(tmp_path / "val/a/v1"), "a", False),
            (str(tmp_path / "val/b/v2"), "b", False),
        ]

    def test_a_class_may_be_called_train(self, tmp_path):
        for name in ("train/v1", "test/v2", "bus/v3"):
            put(tmp_path / name)
        assert read_manifest(tmp_path).classes == ("bus", "test", "train")

    def test_each_directory_is_listed_once(self, tmp_path, monkeypatch):
        for name in ("a/v1", "a/v2", "b/v3"):
            put(tmp_path / name)
        listed = []
        real = os.scandir
        monkeypatch.setattr(file_names.os, "scandir", lambda path: listed.append(str(path)) or real(path))
        assert len(read_manifest(tmp_path)) == 3
        below = [path for path in listed if path.count("/v")]
        assert sorted(below) == sorted(str(tmp_path / name) for name in ("a/v1", "a/v2", "b/v3"))

    def test_pictures_beside_or_above_videos_are_no_frames(self, tmp_path, caplog):
        put(tmp_path / "a")
        put(tmp_path / "b")
        (tmp_path / "a" / "v.mp4").touch()
        (tmp_path / "b" / "deeper").mkdir()
        (tmp_path / "b" / "deeper" / "v.mp4").touch()
        assert [r.path for r in read_manifest(tmp_path).records] == [
            str(tmp_path / "a/v.mp4"),
            str(tmp_path / "b/deeper/v.mp4"),
        ]
        assert f"{tmp_path / 'b'}: its numbered pictures are left out, since videos lie below it" in caplog.text

    def test_pictures_below_frames_are_no_videos(self, tmp_path):
        put(tmp_path / "v")
        put(tmp_path / "v" / "flow_u.mp4")
        assert list(walk_videos(tmp_path)) == [("", "v", True)]

    def test_depth_counts_for_frame_folders_as_for_files(self, tmp_path):
        for name in ("v1", "x/v2", "x/y/v3"):
            put(tmp_path / name)
        (tmp_path / "x" / "y" / "v4.mp4").touch()
        assert [name for _, name, _ in walk_videos(tmp_path, max_depth=0)] == ["v1"]
        assert [name for _, name, _ in walk_videos(tmp_path, max_depth=1)] == ["v1", "v2"]
        assert [name for _, name, _ in walk_videos(tmp_path)] == ["v1", "v2", "v4.mp4", "v3"]

    def test_kinetics(self, tmp_path):
        put(tmp_path / "data" / "train" / "a b" / "abcdefghijk_000010_000020")
        path = write(tmp_path / "k.csv", "label,youtube_id,time_start,time_end,split\na b,abcdefghijk,10,20,train\n")
        (record,) = read_manifest(path, root=tmp_path / "data").records
        assert record.path == str(tmp_path / "data/train/a b/abcdefghijk_000010_000020") and not record.missing

    def test_errors(self, tmp_path, caplog):
        put(tmp_path / "v1")
        for given, match in (
            (tmp_path / "v1", "videos must lie in a folder for each class, got numbered pictures, the frames of one"),
            (tmp_path, r"in a folder for each class, got 1 frame folders beside each other \(v1, ...\)"),
        ):
            with pytest.raises(ManifestError, match=match):
                read_manifest(given)
        put(tmp_path / "a" / "v2")
        assert read_manifest(tmp_path).classes == ("a",)
        assert "frame folders in no class folder are left out: 'v1'" in caplog.text


class TestLists:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("some/dir", "some/other dir", "third"):
            put(tmp_path / name)
        (tmp_path / "x.mp4").touch()
        return tmp_path

    @pytest.mark.parametrize("separator", [" ", ",", "\t", ";"])
    def test_two_and_three_fields(self, root, separator):
        text = "some/dir|163|1\nsome/other dir|3|0\nthird|1\n".replace("|", separator)
        manifest = read_manifest(write(root / "list.txt", text))
        assert rows(manifest) == [
            (str(root / "some/dir"), "1", False),
            (str(root / "some/other dir"), "0", False),
            (str(root / "third"), "1", False),
        ]
        assert read_manifest(root / "list.txt", separator=separator).records == manifest.records

    @pytest.mark.parametrize(
        ("text", "want"),
        [
            ("some/dir\nthird\n", [("some/dir", None), ("third", None)]),
            ("some/dir/ 1\nthird/ 5 0\n", [("some/dir", "1"), ("third", "0")]),
            ("path,label\nsome/dir/,b\nthird/,a\n", [("some/dir", "b"), ("third", "a")]),
            ("path,label\nsome/dir,b\nthird,a\n", [("some/dir", "b"), ("third", "a")]),
            ("x.mp4 1\nsome/dir 163 0\nthird 0\n", [("x.mp4", "1"), ("some/dir", "0"), ("third", "0")]),
        ],
    )
    def test_other_lists(self, root, text, want):
        assert rows(read_manifest(write(root / "list.txt", text))) == [(str(root / p), x, False) for p, x in want]

    def test_root(self, root):
        (root / "lists").mkdir()
        path = write(root / "lists" / "list.txt", "dir 163 0\n")
        assert [r.path for r in read_manifest(path, root=root / "some").records] == [str(root / "some/dir")]

    def test_missing_folders_stay(self, root, caplog):
        manifest = read_manifest(write(root / "list.txt", "some/dir 5 1\nthird 5 0\ngone/far 5 0\n"))
        assert [(r.path, r.missing) for r in manifest.records][2] == (str(root / "gone/far"), True)
        assert manifest.missing == 1 and len(manifest.drop_missing()) == 2
        manifest = read_manifest(write(root / "list.csv", "path,label\nsome/dir,1\nthird,0\ngone/far,0\n"))
        assert [r.missing for r in manifest.records] == [False, False, True]
        assert read_manifest(root / "list.csv", check_files=False).missing == 0

    def test_a_folder_called_like_a_video(self, root):
        put(root / "v.mp4")
        (root / "empty.mp4").mkdir()
        path = write(root / "list.txt", "v.mp4 1\nempty.mp4 0\nx.mp4 0\n")
        assert [r.missing for r in read_manifest(path).records] == [False, True, False]

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            (
                "some/dir 163 1\n",
                [":1: a folder must be named in one way", "'some/dir 163' and 'some/dir' are folders"],
            ),
            ("some/dir 5 1\nthird 2.5 1\nthird 7\nfar 1\ngone 1\n", [":2: ", "got 'third 2.5'", ":4: ", "got 'gone'"]),
            ("x.mp4 163 1\n", [":1: a video must have one label, got several in 'x.mp4 163 1'"]),
            ("gone 163 1\n", [":1: a line `folder num_frames label` must name a folder that is there"]),
            ("third,\nsome/dir,1", [":1: a line must end in a label"]),
            (
                "path,label\nthird,1\ngone,0\nfar,0\n",
                [":3: path must end in one of", "or be a folder of frames", ":4:"],
            ),
            ("third 1\nthird 5 1\n", [":2: a video must be listed once"]),
        ],
    )
    def test_errors_name_file_and_line(self, root, text, parts):
        put(root / "some" / "dir 163")
        path = write(root / "list.txt", text)
        with pytest.raises(ManifestError) as caught:
            read_manifest(path)
        assert str(path) in str(caught.value)
        for part in parts:
            assert part in str(caught.value)

    def test_each_parent_is_listed_once(self, root, monkeypatch):
        listed = []
        real = os.scandir
        monkeypatch.setattr(
            "video_gn.decoding.frame_folders.os.scandir", lambda path: listed.append(str(path)) or real(path)
        )
        folders = Folders(root)
        names = ["some/dir", "some/none", "some/other dir", "third", "x.mp4", "gone/a", "gone/b", "", "a\0b"]
        assert [name in folders for name in names] == [True, False, True, True, False, False, False, False, False]
        assert sorted(listed) == sorted(str(root / name) for name in ("some", "", "gone"))
        assert "." in folders and "some/.." in folders

    def test_a_written_manifest_reads_back(self, root):
        manifest = read_manifest(write(root / "list.txt", "some/dir 163 1\nthird 2 0\n"))
        write_manifest(manifest, root / "out.csv")
        assert rows(read_manifest(root / "out.csv")) == rows(manifest)


class TestPrediction:
    def test_a_frame_folder_or_a_folder_of_them(self, tmp_path):
        for name in ("v1", "deeper/v2"):
            put(tmp_path / name)
        (tmp_path / "v3.mp4").touch()
        for given, want in (
            ("", ["v3.mp4", "deeper/v2", "v1"]), ("v1", ["v1"]), ("deeper", ["deeper/v2"]), ("v*", ["v1", "v3.mp4"]),
        ):  # fmt: skip
            got = [r.path for r in find_videos([str(tmp_path / given)]).records]
            assert got == [str(tmp_path / name) for name in want]


class TestScan:
    def test_facts(self, both, tmp_path):
        folder = both / "frames" / "one" / "0"
        for depth in ("headers", "packets", "full"):
            facts = probe(str(folder), depth)
            assert facts._replace(size_bytes=None, mtime_ns=None) == (
                16, 30.0, pytest.approx(16 / 30), *SIZE, "frames", 0, 1, None, "", None,
            )  # fmt: skip
            assert facts.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "img_00004.png").unlink()
        assert probe(str(copy), "headers").error.startswith("picture 4 is missing")
        (copy / "img_00004.png").write_bytes(b"x")
        assert probe(str(copy), "packets").error == ""
        assert "img_00004.png cannot be read" in probe(str(copy), "full").error

    def test_a_picture_that_changed_is_seen(self, tmp_path):
        folder = put(tmp_path / "v")
        before = folder_state(str(folder))
        os.utime(folder / "img_00002.jpg", ns=(0, before[1] + 10**9))
        assert folder_state(str(folder)) == (before[0], before[1] + 10**9)

    def test_class_folders_and_loose_ones(self, both, tmp_path):
        summary = scan(str(both / "frames"), tmp_path / "classes.csv", num_workers=1)
        assert (summary.listed, summary.readable) == (6, 6)
        manifest = read_manifest(tmp_path / "classes.csv")
        assert manifest.classes == ("one", "two")
        assert [r.num_frames for r in manifest.records] == [16, 18, 20, 17, 19, 21]
        with (tmp_path / "classes.csv").open() as file:
            assert {row["codec"] for row in csv.DictReader(file)} == {"frames"}
        for given, want in ((both / "frames" / "one", "024"), (both / "frames" / "one" / "2", "2")):
            rows_ = _read_rows(str(given), root=None, format="auto")
            assert [Path(path).name for path in rows_.files.values] == list(want)
            assert rows_.classes == ()


def test_clips_are_those_of_the_video(both):
    of_videos, of_frames = module(both / "videos"), module(both / "frames")
    for data in (of_videos, of_frames):
        data.setup("fit")
        assert len(data.manifests["train"]) == 4
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        ours, theirs = (next(iter(getattr(data, name)())) for data in (of_frames, of_videos))
        assert not ours.failures and len(ours) > 0
        torch.testing.assert_close(ours.frames_NKTCHW, theirs.frames_NKTCHW, rtol=0, atol=0)
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [n.clip_seconds for n in ours.notes] == [tuple(map(pytest.approx, n.clip_seconds)) for n in theirs.notes]


def test_show_reads_frame_folders(both, tmp_path):
    shown = show(module(both / "frames"), tmp_path / "clips.png", num_train=1, num_test=1, frames_per_clip=2)
    assert len(shown) == 1 + 3 and all(row.frames_THWC is not None for row in shown)
    assert f"{SIZE[0]} x {SIZE[1]}" in shown[0].details


def test_prepare_encodes_them(both, tmp_path):
    summary = prepare(read_manifest(both / "frames").subset(classes=["one"]), tmp_path / "out", num_workers=1, crf=10)
    assert (summary.num_new, summary.failed) == (3, ())
    assert summary.num_source_bytes == sum(p.stat().st_size for p in (both / "frames" / "one").rglob("*.png"))
    for record, number in zip(read_manifest(summary.manifest_path).records, (0, 2, 4), strict=True):
        with open_video(record.path) as reader:
            assert (reader.info.num_frames, reader.info.fps) == (16 + number, 30)
            got = reader.frames_at(range(16 + number)).numpy()
        assert read_numbers(got) == list(range(50 * number, 50 * number + 16 + number))


def test_training_test_and_inference(both, tmp_path):
    run_dir = tmp_path / "run"
    data = [
        f"--data.train={both / 'frames'}",
        "--data.batch_size=2",
        "--data.views.num_clips=2",
        f"--run_dir={run_dir}",
    ]
    arguments = [a for a in TINY if "batch_size=4" not in a] + data
    status, text = run(["fit", *arguments, "--trainer.max_epochs=1"], tmp_path)
    assert status == 0, text
    status, text = run(["test", *arguments, "--ckpt_path=last"], tmp_path)
    assert status == 0, text
    metrics = json.loads((run_dir / "test" / "metrics.json").read_text())
    assert (metrics["num_videos"], metrics["num_failed"], metrics["coverage"]) == (2, 0, 1.0)
    predictor = video_gn.load(run_dir / "checkpoints" / "last.ckpt")
    found = find_videos([both / "frames" / "two" / "1"])
    results = list(predictor.predict_many(found.records, num_workers=0))
    assert [(Path(r["path"]).name, r["num_frames"], r["fps"]) for r in results] == [("1", 17, 30.0)]


def test_extensions_of_pictures_and_videos_differ():
    assert not [ending for ending in file_names.VIDEO_EXTENSIONS if is_frame(f"1{ending}")]
