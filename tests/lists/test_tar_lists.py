"""Tars in WebDataset's layout, made by others, as lists: their labels, parts, patterns and damage."""

import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
from list_files import fails, rows, touch

from video_gn.decoding import tar_members
from video_gn.decoding.tar_members import read_member
from video_gn.errors import ManifestError, SettingError
from video_gn.lists.read import VideoList, find_videos, read_manifest


@pytest.fixture(autouse=True)
def _no_memory():
    tar_members._indices.clear()


def pack(path, members, form=tarfile.USTAR_FORMAT):
    """A tar of members by name: bytes, text, an object for json, or None for a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
                tar.addfile(info)
                continue
            data = content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else b""
            data = data or json.dumps(content).encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def labels_of(path, **settings):
    return [label for _, label in rows(read_manifest(path, **settings))]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        # What stands beside two videos, and their labels.
        (({"cls": "0"}, {"cls": "1"}), ["0", "1"]),
        (({"cls": "1\n"}, {"cls": " 0 "}), ["1", "0"]),
        (({"cls": "jump"}, {"cls": "run"}), ["jump", "run"]),
        (({"json": {"label": "jump", "url": "u"}}, {"json": {"label": "run"}}), ["jump", "run"]),
        (({"json": {"label": 0}}, {"json": {"label": 1.0}}), ["0", "1"]),
        (({"json": {"class": "1"}}, {"json": {"class": "0"}}), ["1", "0"]),
        (({"json": 1}, {"json": [0]}), ["1", "0"]),
        # A name counts, whatever its number; so does a number, whatever the description.
        (({"cls": "7", "json": {"label": "jump"}}, {"cls": "3", "json": {"label": "run"}}), ["jump", "run"]),
        (({"json": {"label": 7, "class_name": "jump"}}, {"json": {"label": 3, "class_name": "run"}}), ["jump", "run"]),
        (({"cls": "1", "txt": "A man jumps."}, {"cls": "0", "txt": "She\nruns."}), ["1", "0"]),
        (({"json": {"url": "u"}, "txt": "jump"}, {"json": {"url": "v"}, "txt": "run\n"}), ["jump", "run"]),
        (({"CLS": "jump"}, {"Json": {"label": "run"}}), ["jump", "run"]),
        (({}, {}), [None, None]),
        (({"json": {"url": "u"}}, {"json": {"url": "v"}}), [None, None]),
    ],
)
@pytest.mark.parametrize("start", ["", "./", "clips/"])
def test_labels_stand_beside_videos(tmp_path, caplog, beside, expected, start):
    members = {}
    for key, labels in zip(("000", "001"), beside, strict=True):
        members |= {f"{start}{key}.mp4": f"video {key}"} | {f"{start}{key}.{e}": label for e, label in labels.items()}
    path = pack(tmp_path / "shards/x-000.tar", members)
    folder = start.removeprefix("./")
    want = [(f"{path}::{folder}{key}.mp4", label) for key, label in zip(("000", "001"), expected, strict=True)]
    for given in (path, path.parent, tmp_path / "shards/x-{000..000}.tar", tmp_path / "shards/*.tar"):
        manifest = read_manifest(given)
        assert rows(manifest) == want and manifest.missing == 0
    assert [read_member(r.path) for r in manifest.records] == [b"video 000", b"video 001"]
    assert ("no video has a label" in caplog.text) == (expected[0] is None)
    assert "left out" not in caplog.text
    assert [(r.path, r.label) for r in find_videos([path]).records] == [(name, None) for name, _ in want]
    assert [r.path for r in find_videos([want[0][0]]).records] == [want[0][0]]


def test_several_videos_of_a_key_and_dots_in_names(tmp_path):
    members = {
        "k.left.MP4": "l",
        "k.right.webm": "r",
        "k.cls": "1",
        "v_1.5_x.mp4": "v",
        "v_1.5_x.cls": "0",
        "v_1.cls": "9",
    }
    manifest = read_manifest(pack(tmp_path / "a.tar", members), classes=["x", "y"])
    assert [(Path(r.path).name, r.label) for r in manifest.records] == [
        ("a.tar::k.left.MP4", 1),
        ("a.tar::k.right.webm", 1),
        ("a.tar::v_1.5_x.mp4", 0),
    ]


def test_what_is_left_out_is_counted_by_its_ending(tmp_path, caplog):
    members = {"a.mp4": "v", "a.cls": "0", "a.jpg": "i", "b.mp4": "v", "b.cls": "1", "b.jpg": "i", "c.json": {},
               "r": "x", "link.mp4": None, "._a.mp4": "x", "__MACOSX/._b.mp4": "x"}  # fmt: skip
    path = pack(tmp_path / "a.tar", members)
    assert len(read_manifest(path)) == 2
    expected = "a.tar: what is no video by its ending is left out: 2 .jpg, 1 .json, 1 link"
    assert f"{expected} or sparse file, 1 without an ending" in caplog.text
    caplog.clear()
    assert len(find_videos([path]).records) == 2
    assert expected in caplog.text


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.mp4": "v", "a.cls": "0", "b.mp4": "v"}, "a label or none, got none for 'a.tar::b.mp4'"),
        ({"a.mp4": "v", "a.cls": "0", "b.mp4": "v", "b.cls": "run"}, "must all be names or all be numbers"),
        ({"a.mp4": "v", "a.cls": "0", "a.json": {"label": 1}}, "a.json: a video must have one label, got 0 and 1"),
        ({"a.mp4": "v", "a.json": {"label": ["x", "y"]}}, "a.json: a video must have one label, got ['x', 'y']"),
        ({"a.mp4": "v", "a.cls": "two\nlines"}, "a.tar::a.cls: a label must be one line, got 'two\\nlines'"),
        ({"a.mp4": "v", "a.json": "{no json"}, "a.tar::a.json: the label must be text or json"),
        ({"a.mp4": "v", "a.cls": b"\xff\xfe0"}, "a.tar::a.cls: the label must be text or json"),
        ({"a.mp4": "v", "a.txt": "two\nlines"}, "a label must be one line, got 'two\\nlines' for 'a.tar::a.mp4'"),
        (
            {"a.mp4": "v", "a.cls": "0", "a.json": {"label": "x"}, "b.mp4": "v", "b.cls": "1", "b.json": '"x"'},
            "a class must have one name and one number, got 'x' with 1 for 'a.tar::b.mp4', and 'x' with 0 before",
        ),
        ({"../a.mp4": "v"}, "a.tar: a member's name must not lead out of the tar, got '../a.mp4'"),
        ({"x/../../a.mp4": "v"}, "must not lead out of the tar"),
        ({"/etc/a.mp4": "v"}, "must not lead out of the tar, got '/etc/a.mp4'"),
        ({"a.txt": "x"}, "tars must have at least one video, got none"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(tmp_path, members, message):
    fails(pack(tmp_path / "a.tar", members), message)


def test_descriptions_are_no_classes(tmp_path, caplog):
    members = {f"{i:02d}.{ending}": f"Somebody does thing {i}." for i in range(30) for ending in ("mp4", "txt")}
    assert labels_of(pack(tmp_path / "a.tar", members)) == [None] * 30
    assert "each .txt differs, so they are descriptions, not labels ('Somebody does thing 0.', ...)" in caplog.text


@pytest.mark.parametrize("damage", ["cut in a member", "cut between members", "page", "empty", "two in one"])
def test_a_damaged_tar_is_an_error_that_names_it(tmp_path, damage):
    good = pack(tmp_path / "0.tar", {f"{key}.{e}": "1" for key in "abc" for e in ("mp4", "cls")})
    data = good.read_bytes()
    bad = tmp_path / "1.tar"
    bad.write_bytes(
        {"cut in a member": data[:600], "cut between members": data[:2048], "page": b"<html>" * 500, "empty": b"",
         "two in one": data * 2}[damage]
    )  # fmt: skip
    for given in (bad, tmp_path, tmp_path / "{0..1}.tar"):
        assert str(bad) in fails(given, "the shard ")
        with pytest.raises(ManifestError, match=r"1\.tar: the shard "):
            find_videos([given])


def test_parts_come_from_the_names_of_tars_and_their_folders(tmp_path):
    for layout in (
        ("k-train-0.tar", "k-train-1.tar", "k-val-0.tar"),
        ("train/0.tar", "train/1.tar", "validation/0.tar"),
        ("Trainset1/0.tar", "Trainset1/1.tar", "dev_split/0.tar"),
    ):
        root = tmp_path / layout[0].replace("/", "-")
        for number, name in enumerate(layout):
            pack(root / name, {f"{number}.mp4": "v", f"{number}.cls": "ab"[number % 2]})
        videos = VideoList(root)
        assert videos.has_part("train") and videos.has_part("val") and not videos.has_part("test")
        assert [label for _, label in rows(videos.manifest("train"))] == ["a", "b"]
        assert rows(videos.manifest("val")) == [(f"{root / layout[2]}::2.mp4", "a")]
        assert len(videos.manifest("all")) == 3
        assert len(find_videos([root]).records) == 3
    # Of one part alone, and of none, the list is one whole.
    assert len(read_manifest(root / "Trainset1")) == 2
    assert len(read_manifest(tmp_path / "k-train-0.tar/k-{train,val}-0.tar", split="train")) == 1
    pack(root / "0.tar", {"9.mp4": "v", "9.cls": "a"})
    fails(root, "all tars or none must be named after a part, got '0.tar::9.mp4' beside others of ['train', 'val']")


def test_patterns_name_tars_that_are_there(tmp_path, monkeypatch):
    for number in (8, 9, 10):
        pack(tmp_path / f"s/x-{number:03d}.tar", {f"{number}.mp4": "v", f"{number}.cls": "0"})
    monkeypatch.chdir(tmp_path)
    for pattern in ("s/x-{008..010}.tar", "s/x-{008,009,010}.tar", "s/x-*.tar", "s/x-0{08..10}.tar", "s/x-0[01]*.tar"):
        assert [Path(r.path).name for r in read_manifest(pattern).records] == [
            "x-008.tar::8.mp4",
            "x-009.tar::9.mp4",
            "x-010.tar::10.mp4",
        ]
    fails("s/x-{008..012}.tar", "got 2 of 5 that are not (s/x-011.tar, ...)")
    fails("s/y-*.tar", "got 1 of 1 that are not (s/y-*.tar, ...)")
    with pytest.raises(ManifestError, match=r"got 2 of 5 that are not"):
        find_videos(["s/x-{008..012}.tar"])
    assert len(find_videos(["s/*"]).records) == 3
    touch(tmp_path, "a.tar.gz", "t.tgz")
    fails("a.tar.gz", "a.tar.gz: a tar must not be compressed")
    fails("s", "format 'list' must have a file", format="list")
    fails(touch(tmp_path, "d/x.mp4") or "d", "format 'webdataset' must have a tar", format="webdataset")
    with pytest.raises(SettingError, match="root must be None for class folders and tars"):
        VideoList("s", root=tmp_path)


def test_a_folder_of_videos_stays_one(tmp_path):
    """Tars beside class folders, as after a download, are no list of theirs."""
    pack(tmp_path / "all.tar", {"a.mp4": "v", "a.cls": "0"})
    touch(tmp_path, "run/1.mp4", "jump/2.mp4")
    assert labels_of(tmp_path) == ["jump", "run"]


def test_names_are_read_once_where_no_index_can_be_kept(tmp_path, monkeypatch, caplog):
    path = pack(tmp_path / "a.tar", {"./a.mp4": "v", "./a.cls": "0"})
    monkeypatch.setattr(tar_members, "_keep_index", lambda *words: None)
    caplog.set_level(logging.INFO)
    record = read_manifest(path).records[0]
    monkeypatch.setattr(tar_members, "_read_headers", None)
    assert read_member(record.path) == b"v"
