import csv
import json
import os
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.errors import ManifestError
from video_gn.lists import file_names as _files
from video_gn.lists.read import (
    FORMATS,
    VIDEO_EXTENSIONS,
    Manifest,
    VideoRecord,
    check_same_classes,
    common_videos,
    find_videos,
    has_split,
    read_classes,
    read_manifest,
    write_manifest,
)
from video_gn.lists.records import Records


def touch(root, *names):
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def rows(manifest):
    """(path, label's name) of each record."""
    return [(r.path, None if r.label is None else manifest.classes[r.label]) for r in manifest.records]


def fails(path, *parts, **kwargs):
    """read_manifest raises ManifestError whose message has all parts."""
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **kwargs)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


# ---- lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("slowfast.csv", "a/x.mp4 1\na/y.avi 0\n", [("a/x.mp4", "1"), ("a/y.avi", "0")]),
        ("mmaction.txt", "some/x y.mp4 1\nz.mp4 0", [("some/x y.mp4", "1"), ("z.mp4", "0")]),
        ("comma.csv", "x.mp4,jump high\na,b.mp4,run\n", [("x.mp4", "jump high"), ("a,b.mp4", "run")]),
        (
            "quoted.csv",
            '"x, 1.mp4","jump, high"\n"say ""hi"".mp4", run\n',
            [("x, 1.mp4", "jump, high"), ('say "hi".mp4', "run")],
        ),
        ("quoted.txt", '"x 1.mp4" 0\n', [("x 1.mp4", "0")]),
        ("tab.tsv", "x 1.mp4\tjump high\ny.MP4\trun\n", [("x 1.mp4", "jump high"), ("y.MP4", "run")]),
        ("semicolon.csv", "x, 1.mp4;1\ny.mkv;0\n", [("x, 1.mp4", "1"), ("y.mkv", "0")]),
        ("crlf.txt", "x.mp4 0\r\n\r\n   \r\n# a comment\r\n#\r\ny.mp4 0\r\n", [("x.mp4", "0"), ("y.mp4", "0")]),
        ("bom.csv", "\ufeffpath,label\nx.mp4,run\n", [("x.mp4", "run")]),
        ("bom.txt", "\ufeffx.mp4 0\n", [("x.mp4", "0")]),
        ("odd_lines.txt", "x\x0by\u2028z.mp4 0\n", [("x\x0by\u2028z.mp4", "0")]),
        ("not_a_comment.txt", "#1/x.mp4 0\n", [("#1/x.mp4", "0")]),
        ("spaces.txt", "  x.mp4   0  \ny.mp4 0\n", [("x.mp4", "0"), ("y.mp4", "0")]),
        ("header.csv", "Path, Label\nx.mp4, run\n", [("x.mp4", "run")]),
        ("other_order.csv", "label,video\nrun,x.mp4\n", [("x.mp4", "run")]),
        ("header.tsv", "filename\tclass\nx.mp4\trun\n", [("x.mp4", "run")]),
        ("header.txt", "path label\nx y.mp4 run\n", [("x y.mp4", "run")]),
        ("quoted_header.txt", 'path label\n"x y.mp4" "run far"\n', [("x y.mp4", "run far")]),
        ("names_and_digits.txt", "x.mp4 run\ny.mp4 3\n", [("x.mp4", "run"), ("y.mp4", "3")]),
        ("only_paths.txt", "x y.mp4\nz, 1.mp4\n", [("x y.mp4", None), ("z, 1.mp4", None)]),
        ("only_paths_quoted.txt", '"x y.mp4"\n', [("x y.mp4", None)]),
        ("only_paths.csv", "path\nx.mp4\ny.mp4\n", [("x.mp4", None), ("y.mp4", None)]),
        ("no_labels.csv", "path,label\nx.mp4,\ny.mp4,\n", [("x.mp4", None), ("y.mp4", None)]),
        ("动作.txt", "动作/é.mp4 跑\n", [("动作/é.mp4", "跑")]),
    ],
)
def test_lists_by_hand(tmp_path, name, text, want):
    manifest = read_manifest(write(tmp_path / name, text))
    assert rows(manifest) == [(str(tmp_path / path), label) for path, label in want]
    named = {label for _, label in want} - {None}
    assert set(manifest.classes) == named or all(n.isdigit() for n in named)
    assert manifest.missing == len(want)  # none of these files was made


@pytest.mark.parametrize("separator", [" ", ",", "\t", ";"])
def test_separator_found_or_given(tmp_path, separator):
    path = write(tmp_path / "list.txt", f"a b.mp4{separator}1\nc.mp4{separator}0\n")
    assert read_manifest(path).records == read_manifest(path, separator=separator).records
    assert [r.label for r in read_manifest(path).records] == [1, 0]
    only_paths = write(tmp_path / "paths.txt", "a.mp4\nb.mp4\n")
    assert [r.label for r in read_manifest(only_paths, separator=separator).records] == [None, None]


def test_most_lines_choose_the_separator_and_the_other_lines_are_named(tmp_path):
    path = write(tmp_path / "list.txt", "a.mp4 1\nb.mp4,0\nc.mp4 0\n")
    fails(path, f"{path}:2: a line must be 'path label'", "got 'b.mp4,0'")


def test_first_bad_lines_are_named_and_the_rest_counted(tmp_path):
    path = write(tmp_path / "list.txt", "ok.mp4 1\n" + "".join(f"bad{i} 1\n" for i in range(9)))
    message = fails(path, f"{path}:2: ", f"{path}:6: ", "got 'bad0'", "and 4 more such lines")
    assert f"{path}:7" not in message
    assert len(message.splitlines()) == 6


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("empty.txt", "", ["at least one line, got none"]),
        ("blank.csv", "\n \n# only a comment\n", ["at least one line, got none"]),
        ("header_only.csv", "path,label\n", ["at least one line below its header"]),
        ("unknown_extension.txt", "x.mp4 0\ny.gif 0\n", [":2: ", "ends in .3g2 ", "got 'y.gif'"]),
        ("unknown_extension.csv", "path,label\nx.docx,0\n", [":2: path must end in one of", "got 'x.docx'"]),
        ("all_unknown.txt", "x.gif 0\n", [":1: ", "'path label'", "got 'x.gif'"]),
        ("nonsense.txt", "hello\n", [":1: ", "got 'hello'"]),
        ("label_with_space.txt", "x.mp4 riding a horse\n", [":1: ", "labels with spaces"]),
        ("raw_frames.txt", "videos/x 120 3\n", [":1: a line `folder num_frames label` must name a folder", "root"]),
        ("open_quote.csv", '"x.mp4,0\ny.mp4,0\n', [":1: the line cannot be read", "Close the quotes"]),
        ("open_quote_header.csv", 'path,label\n"x.mp4,0\n', [":2: the line cannot be read", "Close the quotes"]),
        ("no_label.csv", "x.mp4,0\ny.mp4,\n", [":2: a line must end in a label"]),
        ("no_label_tab.tsv", "x.mp4\t0\ny.mp4\t\n", [":2: a line must end in a label"]),
        ("empty_label.csv", "path,label\nx.mp4,a\ny.mp4,\n", [":3: label must be a class, got nothing"]),
        ("fields.csv", "path,label\nx.mp4,a,b\n", [":2: a line must have 2 fields like the header, got 3", "Quote"]),
        ("twice.csv", "path,label,label\nx.mp4,a,b\n", [":1: names of columns must be there and differ"]),
        ("nameless.csv", "path,,label\nx.mp4,,b\n", [":1: names of columns must be there and differ"]),
        ("start.csv", "path,start,end\nx.mp4,1,2\n", [":1: columns of segments must be called", "got 'start'"]),
        ("seconds.csv", "path,start_seconds\nx.mp4,soon\n", [":2: start_seconds and end_seconds must be numbers"]),
        ("backwards.csv", "path,start_seconds,end_seconds\nx.mp4,2,2\n", [":2: a segment must have 0 <= start"]),
        ("before.csv", "path,start_seconds\nx.mp4,-1\n", [":2: a segment must have 0 <= start"]),
        ("nan.csv", "path,start_seconds\nx.mp4,nan\n", [":2: a segment must have 0 <= start"]),
        ("inf.csv", "path,end_seconds\nx.mp4,inf\n", [":2: a segment must have 0 <= start"]),
        ("negative.txt", "x.mp4 -1\n", [":1: label must be", "got '-1'"]),
        ("huge.txt", "x.mp4 123456789\n", ["must be below 100,000 without classes, got 123456789"]),
        ("zero_byte.txt", "x.mp4 0\ny\0.mp4 0\n", [":2: the file must be text, got a zero byte"]),
        ("list.json", "[]", ["a list must end in one of", "got a file of another kind"]),
        ("video.mp4", "", ["a list must end in one of", "got a video"]),
        ("twins.txt", "x.mp4 0\ny.mp4 0\nx.mp4 0\n", [":3: a video must be listed once", "which line 1 has too"]),
        ("twins_otherwise.txt", "a/x.mp4 0\na//./x.mp4 1\n", [":2: a video must be listed once"]),
    ],
)  # fmt: skip
def test_bad_lists_name_file_and_line(tmp_path, name, text, parts):
    path = write(tmp_path / name, text)
    fails(path, str(path), *parts)


def test_other_encodings(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("x.mp4 0\nl'été.mp4 1\n".encode("latin-1"))
    fails(latin, f"{latin}:2: the text must be UTF-8, got the byte 0xe9", "Save the file as UTF-8")
    wide = write(tmp_path / "wide.txt", "x.mp4 0\n", "utf-16")
    fails(wide, f"{wide}:1: the text must be UTF-8")


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
    assert list(FORMATS) == ["folders", "list", "kinetics"]


def test_unreadable_file_and_directory(tmp_path, monkeypatch):
    path = write(tmp_path / "list.txt", "x.mp4 0\n")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails(path, f"{path}: the file cannot be read: Permission denied")
    monkeypatch.setattr(_files.os, "scandir", refuse)
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


def test_labels_as_numbers(tmp_path, caplog):
    path = write(tmp_path / "list.txt", "x.mp4 3\ny.mp4 0\n")
    manifest = read_manifest(path)
    assert manifest.classes == ("0", "1", "2", "3")
    assert "no video has the label '1', '2'; 4 classes are assumed" in caplog.text
    manifest = read_manifest(path, classes=["a", "b", "c", "d", "e"])
    assert rows(manifest) == [(str(tmp_path / "x.mp4"), "d"), (str(tmp_path / "y.mp4"), "a")]
    fails(path, f"{path}:1: label must be a number in [0, 3), got '3'", classes=["a", "b", "c"])
    # Classes called by digits: a label is a name, never the place of another class.
    assert [r.label for r in read_manifest(path, classes=["0", "3"]).records] == [1, 0]
    fails(path, f"{path}:2: label must be one of the 2 classes ('3', '7'), got '0'", classes=["3", "7"])


def test_labels_as_names(tmp_path):
    path = write(tmp_path / "list.csv", "x.mp4,jump_high\ny.mp4,run\n")
    assert read_manifest(path).classes == ("jump_high", "run")
    manifest = read_manifest(path, classes=["run", "sit", "jump high"])
    assert [r.label for r in manifest.records] == [2, 0] and manifest.classes == ("run", "sit", "jump high")
    fails(path, f"{path}:2: label must be one of the 1 classes ('jump high'), got 'run'", classes=["jump high"])


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("classes.txt", "run\njump high\n\n", ("run", "jump high")),
        ("crlf.txt", "\ufeffrun\r\njump high\r\n", ("run", "jump high")),
        ("list.json", '["run", "jump high"]', ("run", "jump high")),
        ("mapping.json", '{"\\"jump high\\"": 1, "run": 0}', ("run", "jump high")),
    ],
)
def test_classes_files(tmp_path, name, text, want):
    path = write(tmp_path / name, text)
    assert read_classes(path) == want
    listed = write(tmp_path / "list.csv", "x.mp4,jump high\n")
    assert read_manifest(listed, classes=path).classes == want
    assert read_manifest(listed, classes=str(path)).records[0].label == 1


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("hole.txt", "run\n\njump\n", r"hole.txt:2: a class must be a name, got ''"),
        ("twice.txt", "run\njump\nrun\n", r"twice.txt:3: class 'run' must stand once, but line 1 has it too"),
        ("nearly.txt", "a b\na_b\n", r"nearly.txt:2: class 'a_b' must stand once"),
        ("empty.txt", "\n", r"empty.txt: classes must have at least one name"),
        ("broken.json", "[\n,]", r"broken.json:2: the json cannot be read"),
        ("numbers.json", '{"run": 0, "jump": 2}', r"numbers of classes must be 0 to 1, each once"),
        ("floats.json", '{"run": 0.0}', r"must be a list of names or a mapping of names to numbers"),
        ("text.json", '"run"', r"must be a list of names or a mapping of names to numbers"),
        ("other.json", '["run", 3]', r"other.json:2: a class must be a name, got 3"),
    ],
)
def test_bad_classes_files(tmp_path, name, text, match):
    path = write(tmp_path / name, text)
    with pytest.raises(ManifestError, match=match):
        read_classes(path)


def test_classes_from_python_are_checked(tmp_path):
    path = write(tmp_path / "list.csv", "x.mp4,run\n")
    fails(path, "classes:2: class 'run' must stand once", classes=["run", "run"])
    fails(path, "classes: classes must have at least one name", classes=[])
    fails(path, "classes.txt: the file cannot be read: No such file", classes=tmp_path / "classes.txt")


def test_segments_and_groups(tmp_path):
    path = write(
        tmp_path / "list.csv",
        "path,label,start_seconds,end_seconds,person\nx.mp4,run,0,2.5,ann\nx.mp4,run,2.5,,ann\nx.mp4,sit,,,bob\n",
    )
    manifest = read_manifest(path)
    assert list(manifest.records) == [
        VideoRecord(f"{tmp_path}/x.mp4", 0, 0.0, 2.5, f"{path}:2", (("person", "ann"),), missing=True),
        VideoRecord(f"{tmp_path}/x.mp4", 0, 2.5, None, f"{path}:3", (("person", "ann"),), missing=True),
        VideoRecord(f"{tmp_path}/x.mp4", 1, None, None, f"{path}:4", (("person", "bob"),), missing=True),
    ]
    write(path, path.read_text() + "x.mp4,sit,0.0,2.50,bob\n")
    fails(path, f"{path}:5: a video must be listed once", "which line 2 has too")


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
    assert [has_split(path, name) for name in ("train", "val", "validate", "test")] == [True, True, True, False]
    assert not has_split(plain, "train") and not has_split(tmp_path / "nowhere", "train")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[0],
    ),
    st.sampled_from([",", "\t", ";"]),
)
def test_any_quoted_csv_reads_back(tmp_path_factory, pairs, separator):
    """Whatever Python's csv writer quotes, with spaces off the fields' ends, is read as it was written."""
    directory = tmp_path_factory.mktemp("csv")
    pairs = [
        (f"d/{i}{name.strip().replace('/', '-')}.mp4", f"l{label.strip()}") for i, (name, label) in enumerate(pairs)
    ]
    if len({label.replace("_", " ") for _, label in pairs}) < len({label for _, label in pairs}):
        return  # two writings of one class
    with (directory / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
        writer.writerow(["path", "label"])
        writer.writerows(pairs)
    manifest = read_manifest(directory / "list.csv")
    assert rows(manifest) == [(f"{directory}/{path}", label) for path, label in pairs]


# ---- class folders ---------------------------------------------------------------------------


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
    assert "1 videos in no class folder are left out (loose.mp4" in caplog.text
    assert "folders without videos are left out: 'empty'" in caplog.text
    assert manifest.count_by_class() == {"jump": 4, "run": 2}


def test_class_folders_with_parts(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "validation/run/c.mp4", "annotations/x.csv")
    train, val = (read_manifest(tmp_path, split=name) for name in ("train", "val"))
    assert rows(train) == [(f"{tmp_path}/train/jump/b.mp4", "jump"), (f"{tmp_path}/train/run/a.mp4", "run")]
    assert rows(val) == [(f"{tmp_path}/validation/run/c.mp4", "run")]
    assert rows(read_manifest(tmp_path / "train")) == rows(train)
    assert [Path(r.path).name for r in read_manifest(tmp_path, split="all").records] == ["b.mp4", "a.mp4", "c.mp4"]
    assert [has_split(tmp_path, name) for name in ("train", "val", "test")] == [True, True, False]
    fails(tmp_path, f"{tmp_path}: split must be one of ['train', 'val'] or 'all', got None")
    fails(tmp_path, "split must be the name of a part's folder, got 'test'; it has ['train', 'val']", split="test")
    fails(tmp_path / "train", "got 'val'; it has no parts", split="val")
    assert read_manifest(tmp_path, split="val", classes=train.classes).records[0].label == 1
    fails(tmp_path, "folders must be of the 1 classes ('jump'), got 'run'", split="val", classes=["jump"])


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/a.mp4", "car/b.mp4", "test/c.mp4")
    assert read_manifest(tmp_path).classes == ("car", "test", "train")
    assert not has_split(tmp_path, "train") and not has_split(tmp_path, "test")


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


# ---- Kinetics --------------------------------------------------------------------------------

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
air drumming,-AAAAAAAAAA,3,13,train,0
"passing American football (in game)",BBBBBBBBBBB,0,10,train,0
air drumming,CCCCCCCCCCC,100,110,train,0
air drumming,CCCCCCCCCCC,120,130,train,0
abseiling,DDDDDDDDDDD,7,17,validate,0
abseiling,EEEEEEEEEEE,1000,1010,train,0
"""
KINETICS_FILES = [
    ("air drumming", "-AAAAAAAAAA_000003_000013.mp4"),
    ("passing American football (in game)", "BBBBBBBBBBB_000000_000010.mkv"),
    ("air drumming", "CCCCCCCCCCC_000100_000110.mp4.webm"),
    ("abseiling", "DDDDDDDDDDD_000007_000017.mp4"),
    ("abseiling", "EEEEEEEEEEE_001000_001010.mp4"),
]


@pytest.mark.parametrize(
    "layout", ["{space}/{name}", "{under}/{name}", "{name}", "train/{under}/{name}", "train/{name}"]
)
def test_kinetics(tmp_path, layout):
    path = write(tmp_path / "train.csv", KINETICS)
    root = tmp_path / "videos"
    files = [layout.format(space=label, under=label.replace(" ", "_"), name=name) for label, name in KINETICS_FILES]
    touch(root, *files)
    manifest = read_manifest(path, root=root, split="train")
    assert manifest.classes == ("abseiling", "air drumming", "passing American football (in game)")
    assert [r.label for r in manifest.records] == [1, 2, 1, 1, 0]
    want = [*files[:3], "air drumming/CCCCCCCCCCC_000120_000130.mp4", files[4]]
    assert [r.path for r in manifest.records] == [str(root / name) for name in want]
    assert [r.missing for r in manifest.records] == [False, False, False, True, False]
    assert [r.source for r in manifest.records] == [f"{path}:{line}" for line in (2, 3, 4, 5, 7)]
    assert manifest.missing == 1
    assert has_split(path, "val") and has_split(path, "train") and not has_split(path, "test")
    assert [r.path for r in read_manifest(path, root=root, split="val").records] == [str(root / files[3])]
    assert read_manifest(path, root=root, split="train", format="kinetics").records == manifest.records


def test_kinetics_file_of_another_class_is_not_taken(tmp_path):
    path = write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end\na,V,0,10\nb,W,0,10\nb,V,0,10\n")
    touch(tmp_path, "b/V_000000_000010.mp4", "a/W_000000_000010.mp4", "W_000000_000010.mp4")
    manifest = read_manifest(path)
    assert [Path(r.path).relative_to(tmp_path).as_posix() for r in manifest.records] == [
        "a/V_000000_000010.mp4",  # expected there; b's is not it
        "W_000000_000010.mp4",
        "b/V_000000_000010.mp4",
    ]
    assert [r.missing for r in manifest.records] == [True, False, False]


def test_kinetics_prefers_the_part_that_is_asked_for(tmp_path):
    path = write(tmp_path / "all.csv", "label,youtube_id,time_start,time_end,split\na,V,0,10,val\n")
    touch(tmp_path, "train/a/V_000000_000010.mp4", "val/a/V_000000_000010.mp4")
    assert read_manifest(path, split="val").records[0].path == str(tmp_path / "val/a/V_000000_000010.mp4")


def test_kinetics_test_csv_without_labels(tmp_path):
    touch(tmp_path, "V_000000_000010.mp4")
    path = write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nV,0,10,test\nW,0.0,10.0,test\n")
    manifest = read_manifest(path)
    assert [(r.path, r.label, r.missing) for r in manifest.records] == [
        (f"{tmp_path}/V_000000_000010.mp4", None, False),
        (f"{tmp_path}/W_000000_000010.mp4", None, True),
    ]
    assert manifest.classes == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "label,youtube_id,start,end\na,V,0,10\n",
            [":1: the header of a Kinetics csv must have ['time_start', 'time_end']"],
        ),
        ("label,youtube_id,time_start,time_end\na,V,x,10\n", [":2: time_start and time_end must be seconds"]),
        ("label,youtube_id,time_start,time_end\na,V,inf,10\n", [":2: time_start and time_end must be seconds"]),
        ("label,youtube_id,time_start,time_end\na,V,10,10\n", [":2: a row must have a youtube_id and 0 <= time_start"]),
        ("label,youtube_id,time_start,time_end\na,,0,10\n", [":2: a row must have a youtube_id"]),
        ("label,youtube_id,time_start,time_end\na,V,0,10\na,V,0,10\n", [":3: a video must be listed once", "line 2"]),
    ],
)
def test_bad_kinetics(tmp_path, text, parts):
    path = write(tmp_path / "train.csv", text)
    fails(path, str(path), *parts)


def test_kinetics_needs_its_columns_and_list_needs_a_path(tmp_path):
    path = write(tmp_path / "train.csv", KINETICS)
    fails(path, f"{path}:1: a header must have a column of ['path',", format="list")
    fails(write(tmp_path / "list.txt", "x.mp4 0\n"), "the header of a Kinetics csv must have", format="kinetics")


def test_nothing_is_asked_about_single_files(tmp_path, monkeypatch):
    """240,000 questions to a shared file system take minutes; listings of 3 directories do not."""
    path = write(
        tmp_path / "train.csv",
        "label,youtube_id,time_start,time_end\n" + "".join(f"c{i % 2},V{i},0,10\n" for i in range(200)),
    )
    touch(tmp_path, *(f"c{i % 2}/V{i}_000000_000010.mp4" for i in range(200)))
    questions = Counter()
    for name in ("scandir", "stat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _r=real, **k: (questions.update([_n]), _r(*a, **k))[1])
    assert read_manifest(path).missing == 0
    assert questions["scandir"] == 3 and questions["stat"] < 20


# ---- subsets and splits ----------------------------------------------------------------------


def made(labels, classes=("a", "b", "c"), groups=None, segments=False):
    return Manifest(
        tuple(
            VideoRecord(
                f"/v/{i // 2 if segments else i}.mp4",
                label,
                *((float(i % 2), float(i % 2 + 1)) if segments else (None, None)),
                source=f"list.csv:{i + 1}",
                groups=() if groups is None else (("person", groups[i]),),
            )
            for i, label in enumerate(labels)
        ),
        classes,
        "list.csv",
    )


def test_subset_of_classes():
    manifest = made([2, 0, 1, 2, 0])
    part = manifest.subset(classes=["c", "a"])
    assert part.classes == ("a", "c") and part.listed_classes == ("a", "b", "c")
    assert [(r.path, r.label) for r in part.records] == [
        ("/v/0.mp4", 1),
        ("/v/1.mp4", 0),
        ("/v/3.mp4", 1),
        ("/v/4.mp4", 0),
    ]
    assert made([0, 1], ("jump high", "run")).subset(classes=["jump_high"]).classes == ("jump high",)
    with pytest.raises(ManifestError, match=r"list.csv: classes must be of its 3 classes \('a', 'b', 'c'\), got 'd'"):
        manifest.subset(classes=["a", "d"])
    with pytest.raises(ManifestError, match=r"list.csv: a subset must have at least one video, got none of 'c'"):
        made([0, 1]).subset(classes=["c"])
    assert [r.label for r in made([0, None]).subset(classes=["a"]).records] == [0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_subset_by_fraction(labels, first, second, seed):
    small, large = sorted([first, second])
    manifest = made(labels)
    kept = manifest.subset(fraction=large, seed=seed)
    for label, number in Counter(labels).items():
        assert sum(r.label == label for r in kept.records) == max(1, int(number * large + 0.5))
    order = [r.path for r in manifest.records]
    places = [order.index(r.path) for r in kept.records]
    assert places == sorted(places)
    assert {r.path for r in manifest.subset(fraction=small, seed=seed).records} <= {r.path for r in kept.records}
    assert kept.records == manifest.subset(fraction=large, seed=seed).records


def test_fraction_of_a_class_does_not_depend_on_other_classes():
    whole = made([0] * 10 + [1] * 10)
    assert (
        whole.subset(fraction=0.3).subset(classes=["b"]).records
        == whole.subset(classes=["b"]).subset(fraction=0.3).records
    )
    assert whole.subset(fraction=0.3, seed=1).records != whole.subset(fraction=0.3, seed=2).records
    for fraction in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got"):
            whole.subset(fraction=fraction)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.floats(0.05, 0.95), st.integers(0, 5))
def test_stratified_split(labels, fraction, seed):
    counts = Counter(labels)
    if max(counts.values()) < 2:
        return
    manifest = made(labels)
    train, val = manifest.split(val_fraction=fraction, seed=seed)
    assert sorted([*train.records, *val.records], key=lambda r: int(r.source[9:])) == list(manifest.records)
    for label, number in counts.items():
        want = min(max(1, int(number * fraction + 0.5)), number - 1)
        assert sum(r.label == label for r in val.records) == want
    assert train.classes == val.classes == manifest.classes
    again = manifest.split(val_fraction=fraction, seed=seed)
    assert again[0].records == train.records and again[1].records == val.records


def test_split_draws_by_seed_and_cannot_be_empty(caplog):
    manifest = made([0] * 20 + [1] * 20)
    assert manifest.split(seed=0)[1].records != manifest.split(seed=1)[1].records
    with pytest.raises(ManifestError, match=r"list.csv: a split of 2 videos must leave some for validation, got none"):
        made([0, 1]).split()
    made([0, 0, 1]).split()
    assert "the split leaves no video for validation of 'b'" in caplog.text
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"val_fraction must be in \(0, 1\), got"):
            manifest.split(val_fraction=fraction)
    unlabelled = made([None] * 10).split(val_fraction=0.3)
    assert [len(side) for side in unlabelled] == [7, 3]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_grouped_split(pairs, fraction):
    if len({g for _, g in pairs}) < 2:
        return
    manifest = made([label for label, _ in pairs], groups=[f"p{g}" for _, g in pairs])
    train, val = manifest.split(val_fraction=fraction, group_by="person")
    sides = [{r.groups[0][1] for r in side.records} for side in (train, val)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(train) + len(val) == len(manifest)


def test_grouped_split_comes_near_the_fraction():
    """Weizmann's shape: 9 persons with 10 actions each; 2 of 9 persons are the nearest to 0.2."""
    manifest = made([i % 10 for i in range(90)], tuple("abcdefghij"), groups=[f"p{i // 10}" for i in range(90)])
    train, val = manifest.split(val_fraction=0.2, group_by="person")
    assert (len(train), len(val)) == (70, 20)
    assert set(val.count_by_class().values()) == {2}


def test_grouped_split_prefers_groups_that_keep_all_classes():
    # Groups of equal size: 0 to 3 hold both classes, 4 and 5 class b alone.
    labels = [0, 1] * 4 + [1, 1] * 2
    manifest = made(labels, ("a", "b"), groups=[str(i // 2) for i in range(12)])
    for seed in range(20):
        val = manifest.split(val_fraction=1 / 6, group_by="person", seed=seed)[1]
        assert val.count_by_class() == {"a": 1, "b": 1}


def test_named_groups():
    manifest = made([0, 1, 0, 1], ("a", "b"), groups=["ann", "ann", "bob", "cem"])
    train, val = manifest.split(group_by="person", val_groups=["cem", "bob"])
    assert [r.path for r in val.records] == ["/v/2.mp4", "/v/3.mp4"]
    assert [r.path for r in train.records] == ["/v/0.mp4", "/v/1.mp4"]
    with pytest.raises(
        ManifestError, match=r"val_groups must be groups of 'person' \('ann', 'bob', 'cem'\), got \['dan'\]"
    ):
        manifest.split(group_by="person", val_groups=["dan"])
    with pytest.raises(ManifestError, match=r"must leave some for training, got none"):
        manifest.split(group_by="person", val_groups=["ann", "bob", "cem"])
    with pytest.raises(ManifestError, match=r"must leave some for validation, got none"):
        manifest.split(group_by="person", val_groups=[])
    with pytest.raises(ValueError, match=r"group_by must be given with val_groups, got None with \['ann'\]"):
        manifest.split(val_groups=["ann"])
    with pytest.raises(
        ManifestError, match=r"group_by must be one of the columns \['person'\] or a regular expression"
    ):
        manifest.split(group_by="scene")
    with pytest.raises(ManifestError, match=r"groups must be at least 2 to split by 'person', got \['ann'\]"):
        made([0, 0], groups=["ann", "ann"]).split(group_by="person")
    with pytest.raises(
        ManifestError, match=r"list.csv:2: person must not be empty to split by it, got '' for /v/1.mp4"
    ):
        made([0, 0], groups=["ann", ""]).split(group_by="person")


def test_groups_from_file_names(tmp_path):
    names = [
        f"{c}/v_{c}_g{g:02d}_c{i:02d}.avi" for c in ("Archery", "Biking") for g in range(1, 6) for i in range(1, 4)
    ]
    touch(tmp_path, *names)
    manifest = read_manifest(tmp_path)
    _, val = manifest.split(group_by=r"_g(\d+)_", val_groups=["01", "04"])
    assert {re.search(r"_g(\d+)_", r.path)[1] for r in val.records} == {"01", "04"} and len(val) == 12
    _, val = manifest.split(group_by=r"_g(\d+)_", val_fraction=0.2)
    assert len(val) == 6 and len({re.search(r"_g(\d+)_", r.path)[1] for r in val.records}) == 1
    with pytest.raises(ManifestError, match=r"group_by must match every file name, got '_x\(\.\)' and 'v_Archery_g01"):
        manifest.split(group_by="_x(.)")
    with pytest.raises(ManifestError, match=r"must match every file name, got '\(\?:g\)'"):
        manifest.split(group_by="(?:g)")
    with pytest.raises(ValueError, match=r"group_by must be a column or a regular expression, got '\('"):
        manifest.split(group_by="(")


def test_folders_between_class_and_video_are_groups(tmp_path):
    touch(tmp_path, *(f"{c}/{p}/{i}.mp4" for c in ("run", "sit") for p in ("ann", "bob", "cem") for i in range(2)))
    train, val = read_manifest(tmp_path).split(group_by="folder", val_groups=["bob"])
    assert {Path(r.path).parent.name for r in val.records} == {"bob"} and (len(train), len(val)) == (8, 4)


def test_segments_of_a_video_stay_together():
    manifest = made([i // 2 % 2 for i in range(40)], segments=True)
    train, val = manifest.split(val_fraction=0.25)
    assert not {r.path for r in train.records} & {r.path for r in val.records}
    assert (len(train), len(val)) == (30, 10)
    assert common_videos(train, val) == []


# ---- between manifests -----------------------------------------------------------------------


def test_check_same_classes():
    abc = made([0], ("a", "b", "c"))
    check_same_classes(abc, made([0, 1], ("a", "b", "c")))
    check_same_classes(abc, made([None], ()))
    with pytest.raises(ManifestError, match=r"must be the same in the same order, got class 1 as 'b' and as 'c'"):
        check_same_classes(abc, made([0], ("a", "c", "b")))
    with pytest.raises(ManifestError, match=r"\(3\) and list.csv \(2\) must be .* got class 2 as 'c' and as not there"):
        check_same_classes(abc, made([0], ("a", "b")))


def test_common_videos():
    first = Manifest((VideoRecord("/v/a.mp4", 0), VideoRecord("/v/./b.mp4", 0)), ("x",), "one")
    second = Manifest((VideoRecord("/v/b.mp4", 0), VideoRecord("/v/c.mp4", 0)), ("x",), "two")
    assert common_videos(first, second) == ["/v/b.mp4"]


def test_labels_must_be_below_the_classes():
    with pytest.raises(ValueError, match=r"labels must be below 2, the number of classes, got 2 in list.csv"):
        made([0, 2], ("a", "b"))


# ---- videos without labels -------------------------------------------------------------------


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


# ---- writing ---------------------------------------------------------------------------------


def test_write_and_read_back(tmp_path):
    path = write(
        tmp_path / "list.csv",
        "path,label,start_seconds,end_seconds,person\n"
        '"a, b.mp4",run,0,2.5,ann\nx.mp4,"sit ""down""",,0.1,bob\n/far/y.mp4,run,,,é\n',
    )
    manifest = read_manifest(path, classes=['sit "down"', "walk", "run"])
    out, classes = tmp_path / "made" / "out.csv", tmp_path / "made" / "classes.txt"
    write_manifest(manifest, out, classes_path=classes)
    back = read_manifest(out, classes=classes)
    assert back.classes == manifest.classes

    def without_source(m):
        return [(r.path, r.label, r.start_seconds, r.end_seconds, r.groups, r.missing) for r in m.records]

    assert without_source(back) == without_source(manifest)
    assert out.read_text(encoding="utf-8").splitlines()[-1] == "/far/y.mp4,run,,,é"
    write_manifest(manifest.drop_missing().subset() if manifest.missing == 0 else manifest, tmp_path / "near.csv")
    assert (tmp_path / "near.csv").read_text(encoding="utf-8").splitlines()[2] == 'x.mp4,"sit ""down""",,0.1,bob'
    assert not list(tmp_path.rglob("*.tmp"))


def test_write_without_labels(tmp_path):
    touch(tmp_path, "d/a.mp4", "d/b.mp4")
    write_manifest(find_videos([tmp_path / "d"]), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "path\nd/a.mp4\nd/b.mp4\n"
    assert [r.label for r in read_manifest(tmp_path / "out.csv").records] == [None, None]


# ---- records as columns ----------------------------------------------------------------------


def test_records_are_a_sequence():
    plain = tuple(
        VideoRecord(
            f"/v/{i}é.mp4",
            i % 2 if i else None,
            None if i < 3 else i / 7,
            source=f"l.csv:{i + 1}",
            groups=(("p", str(i % 3)),),
            missing=i == 4,
        )
        for i in range(6)
    )
    records = Records.from_records(plain)
    assert len(records) == 6 and list(records) == list(plain) and records == plain
    assert records[-1] == plain[-1] and records[np.int64(2)] == plain[2]
    assert list(records[1:5:2]) == list(plain[1:5:2]) and isinstance(records[1:3], Records)
    assert records != plain[:5] and records != plain[::-1] and records != 3
    assert plain[3] in records and repr(records) == "<6 records>"
    for index in (6, -7):
        with pytest.raises(IndexError, match=rf"index must be in \[-6, 6\), got {index}"):
            records[index]
    assert pickle.loads(pickle.dumps(records)) == plain
    assert Records.from_records(()) == () and len(Records.from_records(())) == 0
    with pytest.raises(ValueError, match=r"groups must be the columns \['p'\] in every record, got \(\)"):
        Records.from_records([plain[0], VideoRecord("x.mp4", 0)])


def test_sources_come_back_as_they_were():
    for source in ("", "folder", "list.csv:12", "C:list.csv:1", "odd:0", "odd:012", "odd:²", ":3"):
        assert Records.from_records([VideoRecord("x.mp4", 0, source=source)])[0].source == source


def test_memory_of_many_records():
    """What is kept of a record is its path and some 30 bytes."""
    path = "/data/kinetics/train/some class/abcdefghijk_000012_000022.mp4"
    manifest = Manifest([VideoRecord(path, 0, source=f"l.csv:{i + 1}") for i in range(1000)], ("a",), "l.csv")
    assert manifest.records.nbytes <= 1000 * (len(path) + 32)


# ---- real data -------------------------------------------------------------------------------


@pytest.mark.needs_real_videos
def test_weizmann(real_videos):
    manifest = read_manifest(real_videos / "weizmann" / "labels.csv")
    assert (len(manifest), len(manifest.classes), manifest.missing) == (90, 10, 0)
    assert manifest.classes == ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")
    folders = read_manifest(real_videos / "weizmann")
    assert sorted(rows(folders)) == sorted(rows(manifest))
    train, val = manifest.split(group_by="person", val_groups=["moshe", "shahar"])
    assert (len(train), len(val)) == (70, 20) and set(val.count_by_class().values()) == {2}
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
