"""Columns of lists: labels, segments, groups; the official csv of Kinetics."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from list_files import fails, rows, touch, write

from video_gn.lists.read import VideoList, read_manifest
from video_gn.lists.records import VideoRecord


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


@pytest.mark.parametrize(
    ("texts", "want"),
    [
        (["0.0", "1.0", "10.0", "2.0"], [0, 1, 10, 2]),
        (["0", "1.0", "2."], [0, 1, 2]),
        (["00", "01", "10"], [0, 1, 10]),
    ],
)
def test_labels_as_numbers_of_table_programs(tmp_path, texts, want):
    path = write(tmp_path / "list.csv", "".join(f"{i}.mp4,{text}\n" for i, text in enumerate(texts)))
    manifest = read_manifest(path)
    assert manifest.classes == tuple(str(number) for number in range(max(want) + 1))
    assert manifest.labels.tolist() == want
    assert read_manifest(path, classes=list(manifest.classes)) == manifest  # as a test does with the run's own classes
    names = [f"c{number}" for number in range(11)]
    assert read_manifest(path, classes=names).labels.tolist() == want
    # Classes of older runs, in the order of their texts.
    in_order = sorted(texts)
    assert read_manifest(path, classes=in_order).labels.tolist() == [in_order.index(text) for text in texts]


@pytest.mark.parametrize(
    "text",
    [
        'x.mp4,"1,3"\ny.mp4,0\n',
        "x.mp4 1|3\ny.mp4 0\n",
        'path,label\nx.mp4,"[1, 3]"\n',
        "path,label\nx.mp4,1 3\ny.mp4,2\n",
        "path,label\nx.mp4,run|sit\ny.mp4,run\nz.mp4,sit\n",
        "path,label\nx.mp4,run|jump\ny.mp4,sit|run\n",
        "some/x.mp4 1 3\nsome/y.mp4 0\n",
        "some/x.mp4 0 2 5\n",
        "some/x 120 1 3\n",
    ],
)
def test_several_labels_are_refused(tmp_path, text):
    path = write(tmp_path / "list.csv", text)
    fails(path, f"{path}:", "a video must have one label, got several in ")


def test_a_list_with_first_frames_is_not_said_to_have_several_labels_alone(tmp_path):
    message = fails(write(tmp_path / "list.txt", "some/x 1 163 0\nsome/y 1 90 2\n"), "list.txt:1: ")
    assert "or the number of a first frame, as in `folder start num_frames label`" in message


def test_classes_that_are_given_settle_what_a_bar_means(tmp_path):
    path = write(tmp_path / "list.csv", "x.mp4,run|jump\ny.mp4,sit|run\n")
    assert read_manifest(path, classes=["run|jump", "sit|run"]).labels.tolist() == [0, 1]


def test_names_of_parts_are_classes_that_are_asked_about(tmp_path, caplog):
    manifest = read_manifest(write(tmp_path / "list.csv", "x.mp4,ball|tennis\ny.mp4,ball|golf\nz.mp4,run\n"))
    assert manifest.classes == ("ball|golf", "ball|tennis", "run")
    assert "list.csv:1: 'ball|tennis' is taken as one class. If it is several labels" in caplog.text


def test_a_column_like_a_label_is_named(tmp_path, caplog):
    manifest = read_manifest(write(tmp_path / "list.csv", "path,class_name\nx.mp4,run\n"))
    assert manifest.labels.tolist() == [-1] and manifest.records[0].groups == (("class_name", "run"),)
    assert "no column is called 'label', so its videos have none; 'class_name' is not taken as one" in caplog.text


def test_a_number_that_is_none_is_no_class(tmp_path):
    path = write(tmp_path / "list.csv", "path,label\nx.mp4,1.0\ny.mp4,nan\n")
    fails(path, f"{path}:3: label must be a class, got no number ('nan')")


@pytest.mark.parametrize("odd", ["abc", "nan", "None", "null", "1.5"])
def test_few_names_among_numbers_are_refused(tmp_path, odd):
    text = "".join(f"{n}.mp4,{n}\n" for n in range(10)) + f"x.mp4,{odd}\n"
    path = write(tmp_path / "list.csv", text)
    assert odd in fails(path, f"{path}:11: label must be ")
    names = [f"c{n}" for n in range(10)]
    assert odd in fails(path, f"{path}:11: label must be ", classes=names)
    if odd != "nan":  # the user's classes say that it is one
        manifest = read_manifest(path, classes=[*map(str, range(10)), odd])
        assert manifest.labels.tolist() == list(range(11))


def test_half_numbers_and_half_names_are_names(tmp_path):
    path = write(tmp_path / "list.csv", "0.mp4,0\n1.mp4,1\nx.mp4,one\ny.mp4,two\n")
    assert read_manifest(path).classes == ("0", "1", "one", "two")


@pytest.mark.parametrize("odd", ["nan", "None", "null", "NA"])
def test_a_name_that_says_none_is_asked_about(tmp_path, caplog, odd):
    path = write(tmp_path / "list.csv", f"x.mp4,run\ny.mp4,{odd}\nz.mp4,sit\n")
    assert len(read_manifest(path).classes) == 3
    asked = f"{path}:2: the label {odd!r} is taken as the name of a class. If it means none, leave the line out"
    assert asked in caplog.text
    caplog.clear()
    read_manifest(path, classes=["run", odd, "sit"])
    assert "is taken as the name" not in caplog.text


def test_a_number_far_from_the_others_is_named(tmp_path, caplog):
    path = write(tmp_path / "list.csv", "".join(f"{n}.mp4,{n}\n" for n in range(10)) + "x.mp4,77\n")
    assert len(read_manifest(path).classes) == 78
    assert "78 classes are assumed, for line 11 has the label 77" in caplog.text


def test_rows_of_a_test_may_lack_their_label(tmp_path):
    path = write(tmp_path / "list.csv", "path,label,split\nx.mp4,a,train\ny.mp4,,Testing\n")
    assert read_manifest(path, split="all").labels.tolist() == [0, -1]
    write(path, "path,label,split\nx.mp4,a,train\ny.mp4,,val\n")
    fails(path, f"{path}:3: label must be a class, got nothing", split="all")


def test_labels_as_names(tmp_path):
    path = write(tmp_path / "list.csv", "x.mp4,jump_high\ny.mp4,run\n")
    assert read_manifest(path).classes == ("jump_high", "run")
    manifest = read_manifest(path, classes=["run", "sit", "jump high"])
    assert [r.label for r in manifest.records] == [2, 0] and manifest.classes == ("run", "sit", "jump high")
    fails(path, f"{path}:2: label must be one of the 1 class ('jump high'), got 'run'", classes=["jump high"])


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
    assert (
        VideoList(path).has_part("val") and VideoList(path).has_part("train") and not VideoList(path).has_part("test")
    )
    assert [r.path for r in read_manifest(path, root=root, split="val").records] == [str(root / files[3])]
    assert read_manifest(path, root=root, split="train", format="kinetics").records == manifest.records


@pytest.mark.parametrize("corrupted", ["train/{}", "train/abseiling/{}", "abseiling/{}", "{}"])
@pytest.mark.parametrize("folder", ["replacement/replacement_for_corrupted_k400", "Replacements", "train/replacement"])
def test_kinetics_replacement_is_taken_before_the_corrupted_file(tmp_path, corrupted, folder):
    path = write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split\nabseiling,V,0,10,train\n")
    name = "V_000000_000010.mp4"
    touch(tmp_path / "k400", corrupted.format(name), f"{folder}/{name}", "train/W_000000_000010.mp4")
    assert [r.path for r in read_manifest(path, root=tmp_path / "k400").records] == [f"{tmp_path}/k400/{folder}/{name}"]


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
    touch(tmp_path, "train/z_000000_000010.mp4", "z_000000_000010.mp4")  # without parts, the first by name
    path = write(tmp_path / "none.csv", "label,youtube_id,time_start,time_end\na,z,0,10\n")
    assert read_manifest(path).records[0].path == str(tmp_path / "train/z_000000_000010.mp4")


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
    line = "list.txt:1: a line must be like 'testifying,---QUuC4vJs,84,94,validate', got 'x.mp4 0'"
    fails(write(tmp_path / "list.txt", "x.mp4 0\n"), line, format="kinetics")


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


@pytest.mark.parametrize(
    "header",
    [
        "start_frame,end_frame", "start_timestamp,stop_timestamp", "start_s,end_s", "start_ms,end_ms", "begin,finish",
        "startTime,endTime", "t_start,t_end", "clip start (s),clip end (s)", "frame_start,frame_end", "x,segment",
    ],
)  # fmt: skip
def test_columns_of_segments_under_other_names_are_refused(tmp_path, header):
    path = write(tmp_path / "list.csv", f'path,label,{header}\nx.mp4,a,1,"[1, 2]"\n')
    fails(path, f"{path}:1: columns of segments must be called ['start_seconds', 'end_seconds'], got")
    first, second = header.split(",")
    path = write(tmp_path / "list.json", json.dumps([{"path": "x.mp4", "label": "a", first: 1, second: [1, 2]}]))
    fails(path, f"{path}:1: columns of segments must be called")


def test_columns_that_are_no_segments_are_kept(tmp_path):
    text = "path,label,segment,start_date,vendor,ender,stopwatch\nx.mp4,a,3,2020-01-01,b,c,d\n"
    groups = dict(read_manifest(write(tmp_path / "list.csv", text)).records[0].groups)
    assert list(groups) == ["segment", "start_date", "vendor", "ender", "stopwatch"]
