"""Lists of data sets in the very forms in which they are downloaded."""

import json
import os
from pathlib import Path

import pytest
from list_files import fails, rows, touch, write

from video_gn.lists.downloads import FORMS
from video_gn.lists.read import FORMATS, VideoList, find_videos, read_manifest


def below(root, manifest):
    """(path below root, label's name, start, end) of each record."""
    found = rows(manifest)
    return [
        (Path(path).relative_to(root).as_posix(), label, record.start_seconds, record.end_seconds)
        for (path, label), record in zip(found, manifest.records, strict=True)
    ]


def whole(*pairs):
    return [(path, label, None, None) for path, label in pairs]


def both(path, name, **kwargs):
    """The list as it is told by what it holds, the same as by its form's name."""
    told = read_manifest(path, **kwargs)
    named = read_manifest(path, format=name, **kwargs)
    assert told == named
    assert name in FORMATS
    return told


# ---- UCF101 and HMDB51 ---------------------------------------------------------------------------

UCF101_TRAIN = (
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 37\r\n"
    "YoYo/v_YoYo_g25_c05.avi 101\r\n"
)
UCF101_TEST = (
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n"
    "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n"
    "YoYo/v_YoYo_g07_c04.avi\r\n"
)


def ucf101_classes():
    names = {1: "ApplyEyeMakeup", 2: "ApplyLipstick", 37: "HandstandPushups", 101: "YoYo"}
    return [names.get(number, f"Class{number}") for number in range(1, 102)]


def test_ucf101(tmp_path):
    root = tmp_path / "UCF-101"
    touch(root, "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "YoYo/v_YoYo_g25_c05.avi")
    train = write(tmp_path / "ucfTrainTestlist" / "trainlist01.txt", UCF101_TRAIN)
    test = write(train.parent / "testlist01.txt", UCF101_TEST)
    want = ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    for path in (train, test):  # without the names of the classes beside them
        manifest = both(path, "ucf101", root=root)
        assert manifest.classes == tuple(want) and manifest.labels.tolist() == [0, 1, 2]
    write(train.parent / "classInd.txt", "".join(f"{n} {name}\r\n" for n, name in enumerate(ucf101_classes(), 1)))
    for path in (train, test):
        manifest = both(path, "ucf101", root=root)
        assert manifest.classes == tuple(ucf101_classes()) and manifest.labels.tolist() == [0, 36, 100]
        assert read_manifest(path, root=root, classes=list(manifest.classes)).labels.tolist() == [0, 36, 100]
        assert read_manifest(path, root=root, classes=train.parent / "classInd.txt").labels.tolist() == [0, 36, 100]
    assert [r.missing for r in read_manifest(train, root=root).records] == [False, True, False]
    assert read_manifest(train, root=root).records[1].source == f"{train}:2"


def test_ucf101_labels_must_be_those_of_the_folders(tmp_path):
    path = write(tmp_path / "trainlist01.txt", UCF101_TRAIN.replace("avi 37", "avi 1"))
    fails(path, f"{path}:2: label 1 must be the class of its folder", "'ApplyEyeMakeup'", "data.source.format")
    write(path, UCF101_TRAIN + "YoYo/v_YoYo_g24_c05.avi 100\n")
    fails(path, "each class must have one label, got ('1', 'ApplyEyeMakeup')")
    write(path, UCF101_TRAIN)
    write(tmp_path / "classInd.txt", "1 ApplyEyeMakeup\n2 YoYo\n")
    fails(path, f"{path}:1: each class must have one label")
    write(path, UCF101_TRAIN + "YoYo/another.avi 101\n")
    fails(path, f"{path}:4: a line must be like 'ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1'", "data.source.format")


def test_lists_of_ucf101_from_0_stay_what_they_were(tmp_path):
    """Other projects' lists of the same files: mmaction2's count from 0."""
    path = write(tmp_path / "list.txt", UCF101_TRAIN.replace("avi 101", "avi 0"))
    assert read_manifest(path).labels.tolist() == [1, 37, 0]
    assert read_manifest(write(path, UCF101_TRAIN), format="list").labels.tolist() == [1, 37, 101]
    some = write(path, UCF101_TRAIN.replace("avi 101", "avi 100"))  # as mmaction2 has them, without the first class
    assert read_manifest(some).labels.tolist() == [1, 37, 100]
    write(tmp_path / "classInd.txt", "".join(f"{n} {name}\r\n" for n, name in enumerate(ucf101_classes(), 1)))
    fails(some, f"{some}:3: label 100 must be the class of its folder, got 'YoYo'", "data.source.format")


def test_hmdb51(tmp_path):
    splits, root = tmp_path / "testTrainMulti_7030_splits", tmp_path / "hmdb51_org"
    brush = splits / "brush_hair_test_split1.txt"
    write(
        brush, "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \r\n#20_brush_hair_h_nm_np1_fr_goo_1.avi 2 \r\nc.avi 0 \r\n"
    )
    write(
        splits / "cartwheel_test_split1.txt", "(Rad)Schlag_die_Bank!_cartwheel_f_cm_np1_le_med_0.avi 2 \r\nd.avi 1 \r\n"
    )
    write(splits / "cartwheel_test_split2.txt", "d.avi 2 \n")
    touch(root, "cartwheel/d.avi")
    pattern = splits / "*_test_split1.txt"
    train = both(pattern, "hmdb51", root=root, split="train")
    assert train.classes == ("brush_hair", "cartwheel")
    assert below(root, train) == whole(
        ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "brush_hair"), ("cartwheel/d.avi", "cartwheel")
    )
    assert [r.missing for r in train.records] == [True, False] and train.records[0].source == str(pattern)
    test = both(pattern, "hmdb51", root=root, split="test")
    assert test.labels.tolist() == [0, 1] and test.records[0].path.endswith(
        "brush_hair/#20_brush_hair_h_nm_np1_fr_goo_1.avi"
    )
    assert not VideoList(pattern).has_part("val")
    fails(brush, f"{brush}: HMDB51 has one file for each class", f"'{pattern}'")
    fails(splits, f"{splits}: HMDB51 has one file for each class", f"'{pattern}'")
    fails(splits / "*_split?.txt", "a run must use one split, got ['1', '2']")
    write(splits / "cartwheel_test_split1.txt", "d.avi 1\ne.avi 3\n")
    fails(pattern, "cartwheel_test_split1.txt:2: a line must be like 'NAME.avi 1', got 'e.avi 3'", split="all")
    fails(splits / "*_split9.txt", "the list or folder must be there")


def test_a_glob_is_for_hmdb51_alone(tmp_path):
    write(tmp_path / "a1.txt", "x.mp4 0\n")
    write(tmp_path / "a2.txt", "y.mp4 0\n")
    fails(tmp_path / "a?.txt", "a list must be one file, got a glob of 2")
    fails(tmp_path / "a?.txt", "a list must be one file, got a glob of 2", format="ucf101")


# ---- Something-Something v2, Jester, Diving48 ------------------------------------------------------

SSV2 = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {
        "id": "42326",
        "label": "letting bottle roll along a flat surface",
        "template": "Letting [something] roll along a flat surface",
        "placeholders": ["bottle"],
    },
]


def test_something_something_v2(tmp_path):
    path = write(tmp_path / "labels" / "train.json", json.dumps(SSV2, indent=1))
    root = tmp_path / "20bn-something-something-v2"
    touch(root, "78687.webm")
    names = ("Holding something next to something", "Letting something roll along a flat surface")
    manifest = both(path, "ssv2", root=root)
    assert manifest.classes == names
    assert below(root, manifest) == whole(("78687.webm", names[0]), ("42326.webm", names[1]))
    assert [r.missing for r in manifest.records] == [False, True]
    labels = {names[1]: "0", "Approaching something with your camera": "1", names[0]: "2"}
    beside = write(path.parent / "labels.json", json.dumps(labels))
    assert both(path, "ssv2", root=root).labels.tolist() == [2, 0]
    elsewhere = beside.rename(tmp_path / "labels.json")
    assert read_manifest(path, root=root, classes=elsewhere).labels.tolist() == [2, 0]
    test = write(path.parent / "test.json", json.dumps([{"id": "1420"}, {"id": "9"}]))
    touch(root, "9/00001.jpg", "deeper/1420.mp4")  # as others convert them
    assert below(root, both(test, "ssv2", root=root)) == whole(("deeper/1420.mp4", None), ("9", None))
    assert [r.missing for r in read_manifest(test, root=root).records] == [False, False]
    assert len(find_videos([test])) == 2


def test_frame_folders_of_other_lists_are_not_listed(tmp_path, monkeypatch):
    root = tmp_path / "20bn-jester-v1"
    touch(root, *(f"{number}/00001.jpg" for number in range(100)))
    path = write(tmp_path / "jester-v1-validation.csv", "".join(f"{n};Swiping Up\n" for n in range(0, 100, 10)))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(str(path)), scandir(path))[1])
    assert read_manifest(path, root=root).missing == 0
    assert len(listed) <= 2


def test_jester(tmp_path):
    root = tmp_path / "20bn-jester-v1"
    touch(root, "34870/00001.jpg", "56557/00001.jpg")
    text = "34870;Drumming Fingers\n56557;Sliding Two Fingers Right\n129112;Sliding Two Fingers Up\n"
    path = write(tmp_path / "jester-v1-train.csv", text)
    manifest = both(path, "jester", root=root)
    assert below(root, manifest) == whole(
        ("34870", "Drumming Fingers"), ("56557", "Sliding Two Fingers Right"), ("129112", "Sliding Two Fingers Up")
    )
    assert [r.missing for r in manifest.records] == [False, False, True]
    labels = write(
        tmp_path / "jester-v1-labels.csv", "Sliding Two Fingers Up\nDrumming Fingers\nSliding Two Fingers Right\n"
    )
    assert read_manifest(path, root=root, classes=labels).labels.tolist() == [1, 2, 0]
    test = write(tmp_path / "jester-v1-test.csv", "34870\n7\n")
    assert below(root, read_manifest(test, format="jester", root=root)) == whole(("34870", None), ("7", None))
    fails(test, f"{test}:1: ", "name its form with data.source.format")  # none of these folders is there
    write(path, text + "8;a;b\n")
    fails(path, f"{path}:4: a line must be like '34870;Drumming Fingers', got '8;a;b'", "data.source.format")


DIVING48 = [
    {"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48},
    {"vid_name": "_8Vy3dlHg2w_00001", "label": 2, "start_frame": 0, "end_frame": 122},
]


def test_diving48(tmp_path, caplog):
    root = tmp_path / "rgb"
    touch(root, "-mmq0PT-u8k_00155.mp4")
    path = write(tmp_path / "Diving48_V2_train.json", json.dumps(DIVING48))
    assert both(path, "diving48", root=root).classes == ("0", "1", "2")
    vocabulary = [
        ["Back", "15som", "05Twis", "FREE"],
        ["Back", "15som", "15Twis", "FREE"],
        ["Back", "Dive", "NoTwis", "PIKE"],
    ]
    write(tmp_path / "Diving48_vocab.json", json.dumps(vocabulary))
    manifest = both(path, "diving48", root=root)
    assert below(root, manifest) == whole(
        ("-mmq0PT-u8k_00155.mp4", "Back 15som 05Twis FREE"), ("_8Vy3dlHg2w_00001.mp4", "Back Dive NoTwis PIKE")
    )
    assert [r.missing for r in manifest.records] == [False, True]
    # As validation reads the list, with the training's classes.
    assert read_manifest(path, root=root, classes=list(manifest.classes)).labels.tolist() == [0, 2]
    write(path, json.dumps([*DIVING48, DIVING48[0] | {"start_frame": 12}]))
    fails(path, f"{path}:3: start_frame must be 0, as in videos that are cut, got 12", "start_seconds,end_seconds")
    write(path, json.dumps([*DIVING48, {"label": 1}]))
    fails(path, f"{path}:3: an object must have 'vid_name', got the keys ['label']", "data.source.format")


# ---- Kinetics and ActivityNet ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.csv", "label,youtube_id,time_start,time_end,split\n"),
        ("train.txt", ""),
        ("train.json", "json"),
    ],
)
def test_kinetics_600_and_700(tmp_path, name, text):
    videos = [("testifying", "---QUuC4vJs", 84, 94), ('passing, "far"', "--3ouPhoy2A", 20, 30)]
    if text == "json":
        content = {
            video: {
                "annotations": {"label": label, "segment": [float(start), float(end)]},
                "duration": 10.0,
                "subset": "train",
                "url": f"https://www.youtube.com/watch?v={video}",
            }
            for label, video, start, end in videos
        }
        text = json.dumps(content)
    else:
        quoted = ["testifying", '"passing, ""far"""']
        text += "".join(f"{q},{v},{s},{e},train\n" for q, (_, v, s, e) in zip(quoted, videos, strict=True))
    path = write(tmp_path / name, text)
    touch(tmp_path / "k", "testifying/---QUuC4vJs_000084_000094.mp4")
    manifest = both(path, "kinetics", root=tmp_path / "k", split="train")
    assert manifest.classes == ('passing, "far"', "testifying") and manifest.labels.tolist() == [1, 0]
    assert [r.missing for r in manifest.records] == [False, True]
    assert manifest.records[0].path == str(tmp_path / "k/testifying/---QUuC4vJs_000084_000094.mp4")


def test_kinetics_test_list_without_labels_and_header(tmp_path):
    path = write(tmp_path / "test.csv", "--6bJUbfpnQ,17,27,test\n--8YXc8iCt8,2,12,test\n")
    manifest = both(path, "kinetics")
    assert [(Path(r.path).name, r.label) for r in manifest.records] == [
        ("--6bJUbfpnQ_000017_000027.mp4", None),
        ("--8YXc8iCt8_000002_000012.mp4", None),
    ]
    # A folder with a name of 11 letters, its number of frames and its label.
    frames = write(tmp_path / "frames.csv", "abcdefghijk,17,27\n")
    touch(tmp_path, "abcdefghijk/img_00001.jpg")
    assert below(tmp_path, read_manifest(frames)) == whole(("abcdefghijk", "27"))


ACTIVITYNET = {
    "version": "VERSION 1.3",
    "taxonomy": [{"parentId": 269, "nodeName": "Fun sliding down", "nodeId": 270, "parentName": "Playing"}],
    "database": {
        "sJFgo9H6zNo": {
            "duration": 141.14,
            "subset": "training",
            "resolution": "1280x720",
            "url": "https://www.youtube.com/watch?v=sJFgo9H6zNo",
            "annotations": [
                {"segment": [0, 124.23], "label": "Fun sliding down"},
                {"segment": [124.23, 141.14], "label": "Beer pong"},
                {"segment": [124.23, 141.14], "label": "Beer pong"},
                {"segment": [5.0, 5.0], "label": "Beer pong"},
            ],
        },
        "V1zhqaGFY2A": {
            "duration": 46.79,
            "subset": "validation",
            "annotations": [{"segment": [0.01, 46.79], "label": "Beer pong"}],
        },
        "-lJS58hyo1c": {"duration": 20.0, "subset": "testing", "annotations": []},
        "background": {"duration": 20.0, "subset": "training", "annotations": []},
    },
}


def test_activitynet(tmp_path, caplog):
    path = write(tmp_path / "activity_net.v1-3.min.json", json.dumps(ACTIVITYNET))
    root = tmp_path / "videos"
    touch(root, "v_sJFgo9H6zNo.mkv", "val/V1zhqaGFY2A.mp4")
    train = both(path, "activitynet", root=root, split="train")
    assert train.classes == ("Beer pong", "Fun sliding down")
    assert below(root, train) == [
        ("v_sJFgo9H6zNo.mkv", "Fun sliding down", 0.0, 124.23),
        ("v_sJFgo9H6zNo.mkv", "Beer pong", 124.23, 141.14),
    ]
    assert "1 segments that end before they begin are left out" in caplog.text
    assert "1 videos without a segment are left out" in caplog.text
    assert below(root, read_manifest(path, root=root, split="val")) == [
        ("val/V1zhqaGFY2A.mp4", "Beer pong", 0.01, 46.79)
    ]
    test = read_manifest(path, root=root, split="test")
    assert below(root, test) == whole(("v_-lJS58hyo1c.mp4", None)) and test.missing == 1
    renamed = {"v_" + name: video for name, video in ACTIVITYNET["database"].items()}
    assert rows(read_manifest(write(path, json.dumps({"database": renamed})), root=root, split="train")) == rows(train)
    several = json.loads(json.dumps(ACTIVITYNET))
    several["database"]["V1zhqaGFY2A"]["annotations"].append({"segment": [0.01, 46.79], "label": "Other"})
    write(path, json.dumps(several))
    fails(path, f"{path}:2: one segment of 'V1zhqaGFY2A' must have one label, got 'Beer pong' and 'Other'", split="all")
    several["database"]["V1zhqaGFY2A"]["annotations"] = [{"label": "Other"}]
    write(path, json.dumps(several))
    fails(path, f"{path}:2: a segment of 'V1zhqaGFY2A' must have a label and [start, end]", split="all")


CHARADES = "id,subject,scene,quality,actions,length\n46GP8,HR43,Kitchen,6,c092 11.90 21.20;c147 0.00 12.60,24.83\n"
AVA = "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1\n-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1\n"


# ---- Hugging Face, json ------------------------------------------------------------------------------


def test_hugging_face_folders(tmp_path):
    want = whole(("a/1.mp4", "run"), ("2.mp4", "sit"))
    table = write(tmp_path / "metadata.csv", "file_name,label,caption\na/1.mp4,run,one\n2.mp4,sit,two\n")
    objects = [
        {"file_name": "a/1.mp4", "label": "run", "caption": "one"},
        {"file_name": "2.mp4", "label": "sit", "caption": "two"},
    ]
    lines = write(tmp_path / "metadata.jsonl", "".join(f"{json.dumps(row)}\n\n" for row in objects))
    whole_list = write(tmp_path / "list.json", json.dumps(objects))
    for path in (table, lines, whole_list):
        manifest = both(path, "list")
        assert below(tmp_path, manifest) == want
        assert manifest.records[1].groups == (("caption", "two"),)
    assert read_manifest(lines).records[1].source == f"{lines}:3"
    touch(tmp_path, "videos/train/a.mp4", "videos/validation/b.mp4", "videos/train/metadata.csv")
    fails(tmp_path / "videos", f"or give its list {tmp_path}/videos/train/metadata.csv")
    fails(tmp_path / "videos/train", f"or give its list {tmp_path}/videos/train/metadata.csv")
    fails(tmp_path / "videos/validation", "Move them into class folders, or write a list.")
    write(lines, '{"file_name": "a.mp4", "label": 3, "start_seconds": 1.5, "end_seconds": null, "split": "val"}\n')
    manifest = read_manifest(lines, split="val")
    assert below(tmp_path, manifest) == [("a.mp4", "3", 1.5, None)]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("l.jsonl", '{"file_name": "a.mp4"}\n{"file_name": }\n', [":2: a line must be one json object"]),
        ("l.jsonl", '{"file_name": "a.mp4"}\n{"text": "b"}\n', [":2: an object must have a path", "['text']"]),
        ("l.json", '[{"name": "a.mp4"}]', [":1: an object must have a path", "data.source.format"]),
        ("l.json", '{"images": [], "info": {}}', [":1: a json list must be", "['images', 'info']"]),
        ("l.json", "[1, 2]", [":1: a json list must be", "data.source.format"]),
        ("l.json", "[]", [":1: a json list must be"]),
        ("l.json", "[\n,]", [":2: the json cannot be read"]),
        ("l.json", '[{"path": "a.mp4", "label": [1, 3]}]', [":1: a video must have one label, got [1, 3]"]),
        ("hvu.json", '[{"filename": "a.mp4", "label": {"action": [1]}}]', [":1: a video must have one label"]),
        ("Charades_v1_train.csv", CHARADES, [":1: Charades has several labels"]),
        ("ava_train_v2.2.csv", AVA, [":1: AVA has several labels"]),
        ("unknown.csv", "signer0_sample1,41\n", [":1: ", "name its form with data.source.format"]),
        ("ids.csv", "id,label\n1,run\n", [":1: ", "name its form with data.source.format"]),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_told_or_used(tmp_path, name, text, parts):
    path = write(tmp_path / name, text)
    fails(path, str(path), *parts)


@pytest.mark.parametrize("name", list(FORMS))
def test_a_list_of_another_form_than_named(tmp_path, name):
    text = write(tmp_path / "list.txt", "some/x.mp4 0\n")
    table = write(tmp_path / "list.csv", "path,label\nx.mp4,0\n")
    objects = write(tmp_path / "list.json", '[{"path": "x.mp4", "label": "a"}]')
    for path in (text, table, objects):
        message = fails(path, str(path), format=name)
        assert "data.source.format" in message or "HMDB51 has one file" in message or "header of a Kinetics" in message
