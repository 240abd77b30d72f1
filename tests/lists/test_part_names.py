"""Parts of a data set by the names of their folders, and of a list's rows."""

import shutil
from pathlib import Path

import pytest
from list_files import fails, rows, touch, write

from video_gn.lists.part_names import part_of
from video_gn.lists.read import VideoList, read_manifest

NAMES = {
    "train": "train Train TRAINING train_set train-split trainset training_data videos_train rawframes_train train_256",
    "val": "val Val valid validate Validation val_set val-split valset val2017 dev DEV eval evaluation val_videos",
    "test": "test Testing test_set test-split testset Test-Videos",
}
NO_PARTS = [
    "trains",
    "tests",
    "test1",
    "train_1",
    "dog_training",
    "devices",
    "evaluate",
    "value",
    "train val",
    "1" * 99,
]


def test_names_of_parts():
    for part, names in NAMES.items():
        assert {name: part_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)
    assert [part_of(name) for name in NO_PARTS] == [None] * len(NO_PARTS)


@pytest.mark.parametrize(
    ("train", "other", "part"),
    [
        ("Train", "Val", "val"),
        ("train", "dev", "val"),
        ("TRAINING", "eval", "val"),
        ("train_set", "val_set", "val"),
        ("train-split", "test-split", "test"),
        ("videos_train", "videos_val", "val"),
        ("train2017", "val2017", "val"),
        ("01_train", "02_val", "val"),
        ("1-train", "2-val", "val"),
        ("1. Training", "3. Test", "test"),
        ("trainset1", "testset1", "test"),
        ("train_1", "val_2", "val"),
        ("ucf_train_1", "ucf_test_1", "test"),  # they differ in the part's name alone
    ],
)
def test_folders_of_parts_are_no_classes(tmp_path, train, other, part):
    touch(tmp_path, f"{train}/run/a.mp4", f"{train}/jump/b.mp4", f"{other}/run/c.mp4", "notes/readme.txt")
    videos = VideoList(tmp_path)
    assert videos.parts == ["train", part]
    assert rows(videos.manifest("train")) == [
        (f"{tmp_path}/{train}/jump/b.mp4", "jump"),
        (f"{tmp_path}/{train}/run/a.mp4", "run"),
    ]
    assert rows(videos.manifest(part)) == [(f"{tmp_path}/{other}/run/c.mp4", "run")]
    assert {name: len(manifest) for name, manifest in videos.manifests().items()} == {"train": 2, part: 1}
    listed = [f"x/{name}.mp4,run,{split}" for name, split in (("a", train), ("b", other))]
    table = VideoList(write(tmp_path / "list.csv", "\n".join(["path,label,split", *listed])))
    assert table.parts == (["train", part] if part_of(train) else sorted((train, other)))


def test_one_part_alone(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "logs/x.txt", "__MACOSX/._a")
    assert VideoList(tmp_path).parts == ["train"]
    assert read_manifest(tmp_path).classes == ("jump", "run")
    assert rows(read_manifest(tmp_path)) == rows(read_manifest(tmp_path, split="train"))
    fails(tmp_path, "got 'val'; it has ['train']", split="val")


@pytest.mark.parametrize("name", ["train", "Test", "dev_set", "eval"])
def test_a_class_may_have_a_parts_name(tmp_path, name):
    touch(tmp_path, f"{name}/a.mp4", "car/b.mp4", "bus/c.mp4")
    assert read_manifest(tmp_path).classes == tuple(sorted((name, "car", "bus")))
    touch(tmp_path / "val", "notes/x.txt")  # folders without a video
    assert VideoList(tmp_path).parts == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["Train/ann/a.mp4", "car/ann/b.mp4", "bus/c.mp4"],
            "must be either parts or classes, got the part 'Train' beside 'bus', 'car'. Move it or them away; if it is "
            "a class, give its folder another name",
        ),
        (["train/run/a.mp4", "val/b.mp4"], "must be either parts or classes, got the part 'train' beside 'val'"),
        (
            ["train/run/a.mp4", "training/run/b.mp4", "val/run/c.mp4"],
            "a part must have one folder, got 'train' and 'training' for 'train'. Merge them, or move one away",
        ),
        (
            ["train_1/run/a.mp4", "train_2/run/b.mp4", "test_1/run/c.mp4"],
            "a part must have one folder, got 'train_1' and 'train_2' for 'train'",
        ),
        (
            ["train/a.mp4", "val/b.mp4"],
            "the parts 'train', 'val' must hold a folder for each class, got videos beside each other. Move them into "
            "class folders, or write a list; if these are the classes",
        ),
    ],
)
def test_what_may_be_parts_or_classes_is_asked(tmp_path, files, message):
    touch(tmp_path, *files)
    assert str(tmp_path) in fails(tmp_path, message)


def test_folders_beside_several_parts_are_named(tmp_path, caplog):
    touch(tmp_path, "train/run/a.mp4", "val/run/b.mp4", "replacement/c.mp4", "notes/x.txt")
    assert VideoList(tmp_path).parts == ["train", "val"]
    assert caplog.text.count("folders beside its parts 'train', 'val' are left out: 'replacement'") == 1


def test_frame_folders_in_a_part(tmp_path):
    for path in ("Train/run/v1", "Dev/run/v2"):
        touch(tmp_path / path, "img_00001.jpg", "img_00002.jpg")
    assert rows(read_manifest(tmp_path, split="val")) == [(f"{tmp_path}/Dev/run/v2", "run")]
    shutil.move(tmp_path / "Dev/run", tmp_path / "Dev2")
    touch(tmp_path / "Dev/v3", "img_00001.jpg")  # a frame folder, so that "Dev" is a class
    fails(tmp_path, "got the part 'Train' beside 'Dev', 'Dev2'")


def test_parts_of_a_list(tmp_path, caplog):
    text = "path,label,split\nx.mp4,b,Training\ny.mp4,a,dev\ny.mp4,a,Training\nz.mp4,b,fold_3\nw.mp4,a,val\n"
    videos = VideoList(write(tmp_path / "list.csv", text))
    assert videos.parts == ["train", "val", "fold_3"]
    got = {name: [Path(r.path).stem for r in m.records] for name, m in videos.manifests().items()}
    assert got == {"train": ["x", "y"], "val": ["y", "w"], "fold_3": ["z"]}
    assert "the parts ['dev', 'val'] are taken as one, 'val'" in caplog.text
    assert {m.classes for m in videos.manifests().values()} == {("a", "b")}
    plain = VideoList(write(tmp_path / "plain.txt", "a.mp4 0\nb.mp4 1\n"))
    assert plain.parts == [] and {name: len(m) for name, m in plain.manifests().items()} == {"": 2}


@pytest.mark.parametrize(
    ("column", "values", "asked"),
    [
        ("subset", ("Training", "validation", ""), True), ("phase", ("test", "train", "test"), True),
        ("view", ("train", "car", "bus"), False), ("session", ("test", "test", "test"), False),
        ("split", ("train", "val", "val"), False),
    ],
)  # fmt: skip
def test_a_column_of_parts_that_is_called_otherwise_is_asked_about(tmp_path, caplog, column, values, asked):
    lines = [f"{name}.mp4,{name},{value}" for name, value in zip("abc", values, strict=True)]
    videos = VideoList(write(tmp_path / "list.csv", "\n".join([f"path,label,{column}", *lines])))
    for part in ("all", "all"):
        videos.manifest(part)
    assert caplog.text.count(f"do fields of its column {column!r} name each video's part") == asked


def test_rows_of_other_parts_are_counted_once(tmp_path, caplog):
    parts = ("train", "holdout", "Val", "", "holdout")
    lines = [f"{number}.mp4,a,{part}" for number, part in enumerate(parts)]
    videos = VideoList(write(tmp_path / "list.csv", "\n".join(["path,label,split", *lines])))
    for part in ("all", "holdout"):
        videos.manifest(part)
    assert "rows are left out" not in caplog.text
    for part in ("train", "val"):
        videos.manifest(part, classes=["a"])
    text = "list.csv: 3 rows are left out: their part is neither train, val nor test, but '', 'holdout'"
    assert caplog.text.count(text) == caplog.text.count("rows are left out") == 1


@pytest.mark.parametrize(
    ("header", "ends", "asked"),
    [("path,label\n", (",a", ",b"), 1), ("", (" 0", " 1"), 1), ("path,label,split\n", (",a,train", ",a,val"), 0)],
)
def test_paths_that_begin_with_parts_are_asked_about(tmp_path, caplog, header, ends, asked):
    for tops in (("train", "val"), ("videos/Training", "videos/test_set"), ("train", "car"), ("train", "train")):
        lines = [f"{top}/x{number}.mp4{ends[number]}" for number, top in enumerate(tops)]
        videos = VideoList(write(tmp_path / "list.csv", header + "\n".join(lines)))
        caplog.clear()
        for _ in range(2):
            videos.manifest("all")
        count = caplog.text.count("that its paths begin with name each video's part? They are not read so")
        assert count == (asked if tops[1] not in ("car", "train") else 0)


def test_parts_below_classes_are_asked_about(tmp_path, caplog):
    touch(tmp_path, "run/Train/a.mp4", "run/test/b.mp4", "sit/Train/ann/c.mp4")
    assert len(read_manifest(tmp_path)) == 3
    text = "do folders below its classes name each video's part (Train, test)? They are not read so: put them above"
    assert caplog.text.count(text) == 1
    touch(tmp_path, "sit/other/d.mp4")
    read_manifest(tmp_path)
    assert caplog.text.count(text) == 1
