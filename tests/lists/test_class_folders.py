"""Class folders, with and without parts."""

import os
from pathlib import Path

import pytest
from list_files import count_by_class, fails, rows, touch

from video_gn.errors import ManifestError
from video_gn.lists.manifest import write_manifest
from video_gn.lists.read import VideoList, read_manifest


def test_class_folders(tmp_path, caplog):
    touch(
        tmp_path,
        "run/b.mp4", "run/a.AVI", "run/notes.txt", "run/.hidden.mp4", "run/._a.mp4", "jump/z.webm",
        "jump/deep/er/y.mkv", ".git/x.mp4", "readme.txt", "empty/readme.txt", "loose.mp4",
    )  # fmt: skip
    (tmp_path / "jump" / "link.mp4").symlink_to(tmp_path / "run" / "b.mp4")
    (tmp_path / "jump" / "dead.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "jump" / "loop").symlink_to(tmp_path / "jump")
    manifest = read_manifest(tmp_path)
    names = ["jump/dead.mp4", "jump/link.mp4", "jump/z.webm", "jump/deep/er/y.mkv", "run/a.AVI", "run/b.mp4"]
    assert [r.path for r in manifest.records] == [str(tmp_path / name) for name in names]
    assert manifest.classes == ("jump", "run")
    assert [r.label for r in manifest.records] == [0, 0, 0, 0, 1, 1]
    assert [r.missing for r in manifest.records] == [True, False, False, False, False, False]
    assert manifest.records[3].groups == (("folder", "deep/er"),) and manifest.records[0].groups == (("folder", ""),)
    assert {r.source for r in manifest.records} == {str(tmp_path)}
    assert "1 video in no class folder is left out (loose.mp4" in caplog.text
    assert "folders without videos are left out: 'empty'" in caplog.text
    assert count_by_class(manifest) == {"jump": 4, "run": 2}


def test_links_to_folders_above_bring_no_videos(tmp_path, caplog):
    root = tmp_path / "data"
    touch(root, "a/x.mp4", "b/deep/y.mp4", "__pycache__/z.mp4")
    touch(tmp_path / "other", "c/w.mp4")
    for name, to in (("a/loop", ".."), ("b/deep/up", "../.."), ("top", ".."), ("c", "../other/c")):
        (root / name).symlink_to(to)
    (tmp_path / "other/c/back").symlink_to("..")
    names = ["a/x.mp4", "b/deep/y.mp4", "c/w.mp4"]
    assert [r.path for r in read_manifest(root).records] == [str(root / name) for name in names]
    passed = [r.getMessage().partition(":")[0] for r in caplog.records if "leads to a folder above" in r.getMessage()]
    assert passed == [str(root / name) for name in ("a/loop", "b/deep/up", "c/back", "top")]


def test_class_folders_with_parts(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "validation/run/c.mp4", "annotations/x.csv")
    train, val = (read_manifest(tmp_path, split=name) for name in ("train", "val"))
    assert rows(train) == [(f"{tmp_path}/train/jump/b.mp4", "jump"), (f"{tmp_path}/train/run/a.mp4", "run")]
    assert rows(val) == [(f"{tmp_path}/validation/run/c.mp4", "run")]
    assert rows(read_manifest(tmp_path / "train")) == rows(train)
    assert [Path(r.path).name for r in read_manifest(tmp_path, split="all").records] == ["b.mp4", "a.mp4", "c.mp4"]
    assert [VideoList(tmp_path).has_part(name) for name in ("train", "val", "test")] == [True, True, False]
    fails(tmp_path, f"{tmp_path}: split must be one of ['train', 'val'] or 'all', got None")
    fails(tmp_path, "split must be the name of a part's folder, got 'test'; it has ['train', 'val']", split="test")
    fails(tmp_path / "train", "got 'val'; it has no parts", split="val")
    assert read_manifest(tmp_path, split="val", classes=train.classes).records[0].label == 1
    fails(tmp_path, "folders must be of the 1 class ('jump'), got 'run'", split="val", classes=["jump"])


@pytest.mark.parametrize(
    ("tops", "is_sure"),
    [
        ("ucf_train hmdb_val", True), ("fold1 fold2", True), ("split_2 split_1", True), ("tr va", True),
        ("Lernen Pruefen", False), ("2 1", False),
    ],
)  # fmt: skip
def test_folders_that_hold_the_same_folders_are_no_classes(tmp_path, caplog, tops, is_sure):
    tops = tops.split()
    touch(tmp_path, *(f"{top}/{name}/{number}.mp4" for number, top in enumerate(tops) for name in ("bend", "jack")))
    touch(tmp_path, f"{tops[0]}/run/deep/x.mp4")  # validation may lack a class
    first, second = sorted(tops)[:2]
    text = (
        f"folders must be of classes, got '{first}', '{second}'",
        "which all hold the same folders ('bend', 'jack', 'run'). If they are parts",
        f"--data.train {tmp_path}/FOLDER --data.val {tmp_path}/FOLDER, or write a list; if they are the classes, name",
    )
    if is_sure:
        fails(tmp_path, *text)
    else:
        assert len(read_manifest(tmp_path)) and all(part in caplog.text for part in text)
        caplog.clear()
    assert read_manifest(tmp_path, classes=tops).classes == tuple(tops) and text[1] not in caplog.text
    assert len(read_manifest(tmp_path, split="all")) and text[1] in caplog.text  # a scan goes on
    assert read_manifest(tmp_path / first).classes[:2] == ("bend", "jack")


@pytest.mark.parametrize(
    ("tops", "below", "asked"),
    [
        ("bend jack", "person01 person02 person03", False), ("bend jack", "clips", False),
        ("bend jack", "ann bob eve", True), ("dog_training walk", "ann bob", True), ("bend jack", "train test", False),
    ],
)  # fmt: skip
def test_classes_that_hold_the_same_groups_are_classes(tmp_path, caplog, tops, below, asked):
    touch(tmp_path, *(f"{top}/{name}/a.mp4" for top in tops.split() for name in below.split()))
    assert read_manifest(tmp_path).classes == tuple(tops.split())
    assert ("which all hold the same folders" in caplog.text) == asked
    touch(tmp_path, f"{tops.split()[0]}/b.mp4")  # a video right in its class
    caplog.clear()
    read_manifest(tmp_path)
    assert "which all hold the same folders" not in caplog.text


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/a.mp4", "car/b.mp4", "test/c.mp4")
    assert read_manifest(tmp_path).classes == ("car", "test", "train")
    assert not VideoList(tmp_path).has_part("train") and not VideoList(tmp_path).has_part("test")


def test_class_folders_and_given_classes(tmp_path):
    touch(tmp_path, "jump_high/a.mp4", "run/b.mp4")
    manifest = read_manifest(tmp_path, classes=["run", "sit", "jump high"])
    assert [r.label for r in manifest.records] == [2, 0]


def test_directories_without_videos(tmp_path):
    fails(tmp_path, f"{tmp_path}: the directory must hold folders of classes with videos (.3g2", "got none")
    touch(tmp_path, "a.mp4", "b.mp4")
    fails(tmp_path, "videos must lie in a folder for each class, got 2 beside each other", "a.mp4")


def test_file_names_that_are_no_text(tmp_path):
    name = os.fsencode(tmp_path / "run") + b"/caf\xe9.mp4"
    touch(tmp_path, "run/a.mp4")
    try:
        Path(os.fsdecode(name)).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    manifest = read_manifest(tmp_path)
    assert [os.fsencode(r.path) for r in manifest.records] == [os.fsencode(tmp_path / "run" / "a.mp4"), name]
    with pytest.raises(ManifestError, match=r"out.csv: a field must be text, got 'run/caf.*Rename the file"):
        write_manifest(manifest, tmp_path / "out.csv")
    assert not list(tmp_path.glob("*.csv"))
