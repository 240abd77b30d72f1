"""Reading lists: roots, missing files, parts; videos without labels; real data."""

import csv
import json
from pathlib import Path

import pytest
from list_files import count_by_class, fails, rows, touch, write

from video_gn.errors import ManifestError
from video_gn.lists import file_names, lines
from video_gn.lists.file_names import VIDEO_EXTENSIONS
from video_gn.lists.read import FORMATS, VideoList, find_videos, read_manifest


def test_callers_mistakes(tmp_path):
    path = write(tmp_path / "list.txt", "x.mp4 0\n")
    with pytest.raises(ValueError, match=r"separator must be one of .*, got '\|'"):
        read_manifest(path, separator="|")
    with pytest.raises(ValueError, match=r"format must be one of .*'auto', 'folders', 'list', 'kinetics'.*, got 'csv'"):
        read_manifest(path, format="csv")
    touch(tmp_path / "videos", "a/x.mp4")
    with pytest.raises(ValueError, match="separator and root must be None for class folders"):
        read_manifest(tmp_path / "videos", root=tmp_path)
    fails(tmp_path / "nowhere.txt", "nowhere.txt: the list or folder must be there")
    fails(path, "format 'folders' must have a directory, got a file", format="folders")
    fails(tmp_path, "format 'list' must have a file, got a directory", format="list")
    fails(path, "root must be a directory", root=tmp_path / "nowhere")
    data_sets = ["kinetics", "ucf101", "hmdb51", "ssv2", "activitynet", "diving48", "jester"]
    assert list(FORMATS) == ["folders", "list", *data_sets, "webdataset"]


def test_unreadable_file_and_directory(tmp_path, monkeypatch):
    path = write(tmp_path / "list.txt", "x.mp4 0\n")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lines, "read_text_bytes", refuse)
    fails(path, f"{path}: the file cannot be read: Permission denied")
    monkeypatch.setattr(file_names.os, "scandir", refuse)
    fails(tmp_path, f"{tmp_path}: the directory cannot be listed: Permission denied")


def test_root(tmp_path):
    touch(tmp_path / "videos", "x.mp4")
    path = write(tmp_path / "lists" / "list.txt", f"x.mp4 0\n{tmp_path}/elsewhere/y.mp4 1\n")
    manifest = read_manifest(path, root=tmp_path / "videos")
    assert [r.path for r in manifest.records] == [f"{tmp_path}/videos/x.mp4", f"{tmp_path}/elsewhere/y.mp4"]
    assert [r.missing for r in manifest.records] == [False, True]
    assert [r.source for r in manifest.records] == [f"{path}:1", f"{path}:2"]


def test_missing_files_stay_and_are_told(tmp_path, caplog):
    names = [f"v{i}.mp4" for i in range(40)]  # enough of one directory for its listing
    touch(tmp_path, *names[::2], "few/a.mp4", "v1.mp4/not_a_file")
    (tmp_path / "v3.mp4").symlink_to(tmp_path / "v0.mp4")
    (tmp_path / "v5.mp4").symlink_to(tmp_path / "gone.mp4")
    text = "".join(f"{n} 0\n" for n in [*names, "few/a.mp4", "few/b.mp4", *(f"no/{n}" for n in names)])
    manifest = read_manifest(write(tmp_path / "list.txt", text))
    want = [not (tmp_path / r.path).is_file() for r in manifest.records]  # one question for each file
    assert [r.missing for r in manifest.records] == want
    assert manifest.missing == sum(want) == 19 + 1 + 40
    assert "60 of 82 listed videos are not there" in caplog.text
    present = manifest.drop_missing()
    assert [r.path for r in present.records] == [r.path for r in manifest.records if not r.missing]
    assert present.missing == 0 and present.drop_missing() is present
    assert read_manifest(tmp_path / "list.txt", check_files=False).missing == 0


def test_split_column(tmp_path):
    path = write(tmp_path / "list.csv", "path,label,split\nx.mp4,a,train\ny.mp4,b,validate\nz.mp4,c,Train\n")
    assert [Path(r.path).name for r in read_manifest(path, split="train").records] == ["x.mp4", "z.mp4"]
    val = read_manifest(path, split="val")
    assert rows(val) == [(str(tmp_path / "y.mp4"), "b")]
    assert val.classes == ("a", "b", "c")  # of all rows: a part numbers classes like the whole
    assert len(read_manifest(path, split="all")) == 3
    fails(path, f"{path}: split must be one of ['Train', 'train', 'validate'] or 'all', got None")
    fails(path, "split must be one of", "got 'test'. No row is of that part", split="test")
    plain = write(tmp_path / "plain.txt", "x.mp4 0\n")
    fails(plain, "split must be None for a list without a column 'split', got 'val'", split="val")
    one = write(tmp_path / "one.csv", "path,split\nx.mp4,train\n")
    assert len(read_manifest(one)) == 1
    assert [VideoList(path).has_part(name) for name in ("train", "val", "validate", "test")] == [
        True,
        True,
        True,
        False,
    ]
    assert not VideoList(plain).has_part("train")


def test_find_videos(tmp_path):
    touch(tmp_path, "d/b.mp4", "d/a/c.avi", "d/notes.txt", "e.strange", "f[1].mp4", "g1.mp4", "g2.mp4")
    listed = write(tmp_path / "list.csv", "g1.mp4,run\nno.mp4,sit\n")

    def names(*paths):
        manifest = find_videos([str(tmp_path / path) for path in paths])
        assert manifest.classes == () and all(r.label is None and r.groups == () for r in manifest.records)
        return [Path(r.path).relative_to(tmp_path).as_posix() for r in manifest.records]

    assert names("e.strange") == ["e.strange"]  # asked for by name
    assert names("d") == ["d/b.mp4", "d/a/c.avi"]
    assert names("g*.mp4", "d") == ["g1.mp4", "g2.mp4", "d/b.mp4", "d/a/c.avi"]
    assert names("f[1].mp4") == ["f[1].mp4"]  # a file's name before a glob
    assert names("d/**") == ["d/b.mp4", "d/a/c.avi"]
    assert names("list.csv", "g2.mp4", "g1.mp4") == ["g1.mp4", "no.mp4", "g2.mp4"]
    assert find_videos([listed]).missing == 1
    assert find_videos([listed]).records[1].source == f"{listed}:2"
    with pytest.raises(ManifestError, match=r"nowhere.mp4: the video must be there"):
        names("nowhere.mp4")
    with pytest.raises(ManifestError, match=r"\*.mkv: a glob must match at least one video, got none"):
        names("*.mkv")
    with pytest.raises(ManifestError, match=r"\*.txt: there must be at least one video, got none"):
        names("d/*.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"empty: there must be at least one video, got none"):
        names("empty")
    with pytest.raises(ManifestError, match=r"paths must name at least one video, got none"):
        names()


@pytest.mark.needs_real_videos
def test_weizmann(real_videos):
    manifest = read_manifest(real_videos / "weizmann" / "labels.csv")
    assert (len(manifest), len(manifest.classes), manifest.missing) == (90, 10, 0)
    assert manifest.classes == ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")
    folders = read_manifest(real_videos / "weizmann")
    assert sorted(rows(folders)) == sorted(rows(manifest))
    train, val = manifest.split(group_by="person", val_groups=["moshe", "shahar"])
    assert (len(train), len(val)) == (70, 20) and set(count_by_class(val).values()) == {2}
    by_name = folders.split(group_by="^([a-z]+)_", val_groups=["moshe", "shahar"])
    assert sorted(rows(by_name[1])) == sorted(rows(val))


@pytest.mark.needs_real_videos
def test_real_list_of_files(real_videos):
    with (real_videos / "files.csv").open(newline="", encoding="utf-8") as file:
        oracle = list(csv.DictReader(file))
    assert len(find_videos([real_videos / "clips", real_videos / "odd"])) == 13 + 25
    names = {Path(r.path).name for r in find_videos([real_videos / "odd"]).records}
    assert names == {Path(row["path"]).name for row in oracle if row["path"].startswith("odd/")} or len(names) == 25


def test_extensions_are_lower_case():
    assert all(e == e.lower() and e.startswith(".") for e in VIDEO_EXTENSIONS)
    assert json.dumps(sorted(VIDEO_EXTENSIONS))  # plain strings


def test_parts_are_cut_from_a_list_that_is_read_once(tmp_path, monkeypatch):
    path = write(tmp_path / "list.csv", "path,label,split\nx.mp4,b,train\ny.mp4,a,val\ny.mp4,a,train\n")
    touch(tmp_path, "y.mp4")
    parts = ("train", "val", "test")
    want = {part: read_manifest(path, split=part) for part in parts[:2]}
    opened = []
    read_bytes = lines.read_text_bytes
    monkeypatch.setattr(lines, "read_text_bytes", lambda path: (opened.append(path), read_bytes(path))[1])
    videos = VideoList(path)
    assert [videos.has_part(part) for part in parts] == [True, True, False]
    assert {part: videos.manifest(part, classes=["a", "b"]) for part in parts[:2]} == want
    assert videos.manifest("val").missing == 0 and opened == [path]
    other = videos.manifest("val", classes=["b", "a"])
    assert other.classes == ("b", "a") and other.labels.tolist() == [1]
    assert videos.manifest("val") == want["val"]
