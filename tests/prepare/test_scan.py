"""Scans: the manifest that is written, its summary, and mistakes."""

import csv
import itertools
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from video_gn.errors import ManifestError
from video_gn.lists import parquet as _scan_parquet
from video_gn.lists.manifest import Manifest
from video_gn.lists.read import read_manifest
from video_gn.lists.records import VideoRecord
from video_gn.lists.scan_columns import SCAN_COLUMNS
from video_gn.prepare import scan as scan_module
from video_gn.prepare.scan import scan


def read_rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- the manifest ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_order_and_bytes_do_not_depend_on_the_workers(many, suffix):
    one, three = many / f"one{suffix}", many / f"three{suffix}"
    scan(many / "list.csv", one, num_workers=1)
    summary = scan(str(many / "list.csv"), str(three), num_workers=3)
    assert one.read_bytes() == three.read_bytes()
    manifest = read_manifest(three)
    assert [r.path for r in manifest.records] == [str(many / f"many/{i:03d}.mp4") for i in range(42)]
    assert manifest.classes == ("a", "b") and [r.label for r in manifest.records] == [i % 2 for i in range(42)]
    assert (manifest.missing, manifest.broken) == (2, 4)
    assert [r.num_frames for r in manifest.records][:5] == [20, 20, 20, None, 20]
    assert (summary.listed, summary.there, summary.readable, summary.missing) == (42, 40, 36, 2)
    assert summary.num_probed == 42 and sum(summary.broken.values()) == 4
    assert not list(many.glob(".*"))


def test_columns(many):
    scan(many / "list.csv", many / "out.csv")
    first, fourth = read_rows(many / "out.csv")[0], read_rows(many / "out.csv")[3]
    assert list(first) == ["path", "label", *SCAN_COLUMNS]
    size = str((many / "many/000.mp4").stat().st_size)
    assert list(first.values()) == [
        "many/000.mp4", "a", "20", "25.0", "0.8", "48", "40", "h264", "0", "8", size, "",
    ]  # fmt: skip
    assert list(fourth.values()) == ["many/003.mp4", "b", *[""] * 8, "0", "the file is empty (0 bytes)"]


def test_paths_mean_the_same_files_when_read_back(tmp_path, one_video, caplog):
    names = ["d/a, b.mp4", 'd/say "hi".mp4', "d/é 动作.mp4", " leading.mp4", "# no comment.mp4", "d/x.mp4", "e/y.mp4"]
    for name in names:
        (tmp_path / "lists" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(one_video, tmp_path / "lists" / name)
    shutil.copyfile(one_video, tmp_path / "up.mp4")
    absolute = str(tmp_path / "lists" / "e" / "y.mp4")
    # Windows line ends; the last but one row and the second of d/x.mp4 are repeats.
    text = ["path,label,who", '"d/a, b.mp4",r,1', '"d/say ""hi"".mp4",r,2', "d/é 动作.mp4,s,3", "./ leading.mp4,s,4",
            "./# no comment.mp4,s,5", "d/x.mp4,r,6", f"{absolute},r,7", "../up.mp4,s,8", "d/x.mp4,r,9",
            "d/./x.mp4,r,10", "../lists/d/x.mp4,r,11"]  # fmt: skip
    listed = tmp_path / "lists" / "list.csv"
    listed.write_bytes(("\r\n".join(text) + "\r\n").encode())
    for target in (tmp_path / "lists" / "out.csv", tmp_path / "other" / "out.parquet"):
        caplog.clear()
        summary = scan(listed, target)
        assert caplog.text.count("rows are left out") == 1
        assert f"{listed}:10: 3 rows are left out: they are listed before, such as" in caplog.text
        assert (summary.listed, summary.readable) == (8, 8)
        back = read_manifest(target)
        want = [*(tmp_path / "lists" / name for name in names), tmp_path / "up.mp4"]
        assert all(Path(r.path).samefile(path) for r, path in zip(back.records, want, strict=True))
        assert [r.groups for r in back.records] == [(("who", str(i)),) for i in range(1, 9)]
        assert back.missing == 0
    written = [row["path"] for row in read_rows(tmp_path / "lists" / "out.csv")]
    assert written[3:] == ["./ leading.mp4", "./# no comment.mp4", "d/x.mp4", "e/y.mp4", f"{tmp_path}/lists/../up.mp4"]


def test_repeats_with_another_label_are_an_error(many):
    with (many / "list.csv").open("a") as file:
        file.write("many/000.mp4,b\n")
    with pytest.raises(ManifestError, match=r"list.csv:44: a video must be listed once, .* which line 2 has too"):
        scan(many / "list.csv", many / "out.csv")


def test_segments_parts_and_columns_of_the_list_are_kept(many, caplog):
    text = "path,label,start_seconds,end_seconds,split,person,codec\n"
    text += "many/000.mp4,a,0,0.25,train,ann,x\nmany/000.mp4,a,0.25,,train,ann,x\nmany/001.mp4,b,,,train,bob,x\n"
    text += "many/001.mp4,b,,,val,bob,x\n"  # in two parts: kept in both
    (many / "parts.csv").write_text(text)
    for target in (many / "out.csv", many / "out.parquet"):
        summary = scan(many / "parts.csv", target)
        assert summary.num_probed == 2 and summary.listed == 4
        assert {name: (c.listed, c.readable) for name, c in summary.by_split.items()} == {
            "train": (3, 3),
            "val": (1, 1),
        }
        train = read_manifest(target, split="train")
        assert [(r.start_seconds, r.end_seconds) for r in train.records] == [(0.0, 0.25), (0.25, None), (None, None)]
        assert [r.groups for r in train.records] == [(("person", n),) for n in ("ann", "ann", "bob")]
        assert len(read_manifest(target, split="val")) == 1
    assert "the scan replaces its columns ['codec']" in caplog.text
    # A scan of a scan: the same again.
    scan(many / "out.csv", many / "again.csv")
    assert (many / "again.csv").read_bytes() == (many / "out.csv").read_bytes()


def test_official_kinetics_csv(tmp_path, one_video):
    rows = [("air drumming", "AAAAAAAAAAA", 3, "train"), ("air drumming", "BBBBBBBBBBB", 0, "train"),
            ("abseiling", "CCCCCCCCCCC", 7, "train"), ("abseiling", "DDDDDDDDDDD", 7, "validate")]  # fmt: skip
    text = "label,youtube_id,time_start,time_end,split,is_cc\n"
    text += "".join(f"{label},{name},{start},{start + 10},{split},0\n" for label, name, start, split in rows)
    (tmp_path / "k400.csv").write_text(text)
    for label, name, start, split in (rows[0], rows[2], rows[3]):
        folder = tmp_path / "videos" / {"train": "train", "validate": "val"}[split] / label.replace(" ", "_")
        folder.mkdir(parents=True)
        shutil.copyfile(one_video, folder / f"{name}_{start:06d}_{start + 10:06d}.mp4")
    summary = scan(tmp_path / "k400.csv", tmp_path / "out.csv", root=tmp_path / "videos")
    counts = {name: (c.listed, c.there, c.readable) for name, c in summary.by_split.items()}
    assert counts == {"train": (3, 2, 2), "validate": (1, 1, 1)}
    counts = {name: (c.listed, c.there, c.readable) for name, c in summary.by_class.items()}
    assert counts == {"abseiling": (2, 2, 2), "air drumming": (2, 1, 1)}
    train = read_manifest(tmp_path / "out.csv", split="train")
    assert [Path(r.path).parent.name for r in train.records] == ["air_drumming", "air drumming", "abseiling"]
    assert [r.error for r in train.records] == ["", "the file is missing", ""] and train.missing == 1
    assert len(read_manifest(tmp_path / "out.csv", split="val")) == 1


def test_lists_of_data_sets(tmp_path, one_video):
    """HMDB51's glob of lists, and ActivityNet's segments with a test that has no labels."""
    for name in ("run/a.avi", "sit/b.avi", "v_c.mp4", "d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(one_video, tmp_path / name)
    (tmp_path / "run_test_split1.txt").write_text("a.avi 1 \n")
    (tmp_path / "sit_test_split1.txt").write_text("b.avi 2 \n")
    scan(tmp_path / "*_test_split1.txt", tmp_path / "hmdb51.csv")
    rows = [(row["path"], row["label"], row["split"], row["num_frames"]) for row in read_rows(tmp_path / "hmdb51.csv")]
    assert rows == [("run/a.avi", "run", "train", "20"), ("sit/b.avi", "sit", "test", "20")]
    annotations = [{"segment": [0, 0.4], "label": "run"}, {"segment": [0.4, 0.8], "label": "sit"}]
    database = {"c": {"subset": "training", "annotations": annotations}, "d": {"subset": "testing", "annotations": []}}
    (tmp_path / "list.json").write_text(json.dumps({"database": database}))
    scan(tmp_path / "list.json", tmp_path / "activitynet.csv")
    for split, want in (
        ("train", [("v_c.mp4", 0, 0.0, 0.4), ("v_c.mp4", 1, 0.4, 0.8)]),
        ("test", [("d.mp4", None, None, None)]),
    ):
        records = read_manifest(tmp_path / "activitynet.csv", split=split).records
        assert [(Path(r.path).name, r.label, r.start_seconds, r.end_seconds) for r in records] == want


def test_tars_are_lists_with_labels(many, one_video):
    """Given by name, as a pattern, or as the shell expands it; and a stopped scan of them resumes."""
    for number in range(3):
        with tarfile.open(many / f"x-{number}.tar", "w") as tar:
            for key in ("a", "b"):
                (many / "label").write_text(key)
                tar.add(one_video, f"./{number}{key}.mp4")
                tar.add(many / "label", f"./{number}{key}.cls")
    tars = sorted(many.glob("*.tar"))

    def stop(steps):
        yield from itertools.islice(steps, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(tars, many / "out.csv", num_workers=1, progress=stop)
    assert scan(tars, many / "out.csv", num_workers=1).num_probed == 2
    scan(many / "x-{0..2}.tar", many / "pattern.csv")
    assert (many / "out.csv").read_bytes() == (many / "pattern.csv").read_bytes()
    rows = read_rows(many / "out.csv")
    assert [(row["path"], row["label"]) for row in rows[:3]] == [
        ("x-0.tar::0a.mp4", "a"),
        ("x-0.tar::0b.mp4", "b"),
        ("x-1.tar::1a.mp4", "a"),
    ]
    assert {(row["num_frames"], row["size_bytes"], row["error"]) for row in rows} == {
        ("20", str(one_video.stat().st_size), "")
    }
    assert scan([tars[0], one_video], many / "mixed.csv").listed == 3


def test_folders_videos_and_manifests(many, tiny_videos, one_video):
    summary = scan(tiny_videos, many / "classes.csv")
    assert summary.by_class["three"].readable == 10 and len(read_manifest(many / "classes.csv").classes) == 3
    assert scan(many / "many", many / "loose.csv").listed == 40
    assert scan(one_video, many / "one.csv").by_class == {}
    manifest = Manifest([VideoRecord(str(one_video), 0, groups=(("fps", "x"), ("who", "y")))], ("a",), "made")
    assert scan(manifest, many / "made.csv").listed == 1
    assert read_manifest(many / "made.csv").records[0].groups == (("who", "y"),)
    odd = shutil.copyfile(one_video, many / "v.strange")
    scan([odd], many / "odd.csv")
    assert read_manifest(many / "odd.csv").missing == 0  # asked for by name, and so listed under any name


def test_summary_fits_a_terminal(many):
    text = scan(many / "list.csv", many / "out.csv").text()
    assert max(map(len, text.splitlines())) <= 80
    for part in ("42", "num_frames", "the file is empty (N bytes)", "48 x 40", "h264", "2 classes of 16 to 20"):
        assert part in text
    (many / "none.csv").write_text("no.mp4,a\n")
    assert "missing" in scan(many / "none.csv", many / "none_out.csv").text()


def test_progress_has_a_length(many):
    seen = []

    def bar(steps):
        seen.append(len(steps))
        for step in steps:
            seen.append(step)
            yield step

    scan(many / "list.csv", many / "out.csv", progress=bar)
    assert seen == [42, *[None] * 42]


# ---- mistakes --------------------------------------------------------------------------------


def test_mistakes_are_told_before_anything_is_probed(many, monkeypatch):
    monkeypatch.setattr(scan_module, "run_tasks", lambda *a, **k: pytest.fail("probed"))
    listed, out = many / "list.csv", many / "out.csv"
    with pytest.raises(ValueError, match=r"target must end in one of \['.csv', '.parquet'\], got '.*out.txt'"):
        scan(listed, many / "out.txt")
    with pytest.raises(ValueError, match="full and headers_only must not both be set"):
        scan(listed, out, full=True, headers_only=True)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        scan(listed, out, num_workers=0)
    with pytest.raises(ValueError, match="timeout_seconds must be above 0, got 0"):
        scan(listed, out, timeout_seconds=0)
    with pytest.raises(ValueError, match="root and format must be left out for videos and folders"):
        scan(many / "many", out, root=many)
    with pytest.raises(ManifestError, match=r"nowhere.mp4: the video must be there"):
        scan(many / "nowhere.mp4", out)
    (many / "many" / "x\ny.mp4").touch()
    with pytest.raises(ManifestError, match=r"out.csv: a path must be one line, got 'many/x\\ny.mp4'. Rename the file"):
        scan(many / "many", out)
    (many / "many" / "x\ny.mp4").unlink()
    try:
        Path(os.fsdecode(os.fsencode(many / "many") + b"/caf\xe9.mp4")).touch()
    except OSError:
        pass  # this file system takes UTF-8 names alone
    else:
        with pytest.raises(ManifestError, match=r"out.csv: a path must be text, got 'many/caf.*Rename the file"):
            scan(many / "many", out)
    out.mkdir()
    with pytest.raises(ManifestError, match=r"out.csv: the target must be a file, got a directory"):
        scan(listed, out)
    (many / "there.csv").touch()
    with pytest.raises(ManifestError, match=r"there.csv exists. Choose another target"):
        scan(listed, many / "there.csv")
    assert not list(many.glob(".*"))


def test_a_target_may_be_replaced(many):
    (many / "out.csv").write_text("old")
    scan(many / "list.csv", many / "out.csv", overwrite=True)
    assert len(read_rows(many / "out.csv")) == 42


def test_parquet_needs_pyarrow(many, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(_scan_parquet.importlib, "import_module", refuse)
    with pytest.raises(ManifestError, match=r"out.parquet: a parquet file needs pyarrow. Install it \(pip install"):
        scan(many / "list.csv", many / "out.parquet")


def test_nothing_is_said_of_a_good_list(many, caplog):
    with caplog.at_level(logging.WARNING):
        scan(many / "list.csv", many / "out.csv")
    assert not caplog.records
