import csv
import json
import logging
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from media import write_numbered_video

from video_gn import files as locks
from video_gn.decoding import open_video
from video_gn.errors import DecodeError, ManifestError, RunError
from video_gn.lists import parquet as _scan_parquet
from video_gn.lists.read import Manifest, VideoRecord, find_videos, read_manifest
from video_gn.lists.scan_columns import SCAN_COLUMNS, FileFacts
from video_gn.prepare import _scan_pool
from video_gn.prepare import scan as scan_module
from video_gn.prepare._scan_pool import run_tasks
from video_gn.prepare.probe import probe
from video_gn.prepare.scan import probe_if_changed, scan


def read_rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def one_video(tmp_path_factory):
    return write_numbered_video(tmp_path_factory.mktemp("one") / "v.mp4", 20, size=(48, 40), gop=8)


@pytest.fixture
def many(tmp_path, one_video):
    """A directory of 40 videos, 4 of them broken, and a list of them and of 2 that are not there."""
    root = tmp_path / "many"
    root.mkdir()
    for i in range(40):
        if i % 10 == 3:
            (root / f"{i:03d}.mp4").write_bytes(b"" if i == 3 else b"no video at all")
        else:
            shutil.copyfile(one_video, root / f"{i:03d}.mp4")
    lines = [f"many/{i:03d}.mp4,{'ab'[i % 2]}" for i in range(42)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    return tmp_path


def lines_of(journal):
    return [json.loads(line) for line in Path(journal).read_bytes().splitlines()[1:]]


# ---- what a file is --------------------------------------------------------------------------


@pytest.mark.needs_real_videos
def test_real_files_decoded_whole(real_videos, tmp_path):
    """ffprobe's word on 38 files: what decodes, codec and rate."""
    with (real_videos / "files.csv").open(newline="", encoding="utf-8") as file:
        oracle = {row["path"]: row for row in csv.DictReader(file)}
    summary = scan([real_videos / "clips", real_videos / "odd"], tmp_path / "out.csv", full=True, num_workers=2)
    rows = {
        str(Path(row["path"]).resolve().relative_to(real_videos.resolve())): row
        for row in read_rows(tmp_path / "out.csv")
    }
    assert set(rows) == set(oracle) and len(rows) == 38
    for name, want in oracle.items():
        row = rows[name]
        assert row["num_frames"] == want["decoded_frames"], name
        assert row["codec"] == want["codec"] and bool(row["error"]) == (not want["codec"]), name
        # An edit list of sample_edit_list hides frames, which ffprobe's average leaves out of account.
        if want["fps"] and name != "odd/sample_edit_list.mp4":
            assert float(row["fps"]) == pytest.approx(float(want["fps"]), rel=1e-4), name
        assert int(row["size_bytes"]) == (real_videos / name).stat().st_size
    assert summary.readable == 34 and summary.missing == 0 and sum(summary.broken.values()) == 4
    assert rows["odd/zero_bytes.mp4"]["error"] == "the file is empty (0 bytes)"
    assert rows["odd/one_keyframe_300f.mp4"]["key_frame_interval"] == "327"


@pytest.mark.needs_real_videos
def test_packets_say_what_a_reader_says(real_videos):
    reasons = {}
    for record in find_videos([real_videos / "clips", real_videos / "odd"]).records:
        facts = probe(record.path, "packets")
        try:
            with open_video(record.path) as reader:
                info = reader.info
        except DecodeError as error:
            reasons[record.path] = (facts[:8], facts.error, error.reason)
            continue
        assert facts.error == "" and facts.num_frames == info.num_frames and facts.codec == info.codec
        assert (facts.width, facts.height, facts.rotation) == (info.width, info.height, info.rotation_degrees)
        assert facts.fps == pytest.approx(info.fps, abs=1e-6)
        assert facts.duration_seconds == pytest.approx(info.duration_seconds, abs=2e-6)
        header = probe(record.path, "headers")
        assert header._replace(num_frames=0, fps=0, duration_seconds=0) == facts._replace(
            num_frames=0, fps=0, duration_seconds=0, key_frame_interval=None
        )
    assert len(reasons) == 4
    assert all(known == (None,) * 8 and mine == theirs for known, mine, theirs in reasons.values())


@pytest.mark.parametrize("depth", ["headers", "packets", "full"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_made_videos(tmp_path, depth, rotation):
    path = write_numbered_video(tmp_path / "v.mp4", 30, fps=20, size=(64, 48), gop=12, rotation=rotation)
    facts = probe(str(path), depth)
    assert facts == FileFacts(
        30, 20.0, 1.5, 64, 48, "h264", rotation, None if depth == "headers" else 12,
        path.stat().st_size, "", path.stat().st_mtime_ns,
    )  # fmt: skip


def test_nothing_is_decoded_unless_asked_for(one_video, monkeypatch):
    monkeypatch.setattr("video_gn.prepare.probe.open_video", lambda *a, **k: pytest.fail("opened for decoding"))
    assert probe(str(one_video), "packets").num_frames == probe(str(one_video), "headers").num_frames == 20


def test_what_cannot_be_read(tmp_path, monkeypatch):
    assert probe(str(tmp_path / "no.mp4"), "packets") == FileFacts(error="the file is missing")
    assert probe(str(tmp_path), "packets").error.startswith("a directory, not a video file, and without numbered")
    path = tmp_path / "no_video.mp4"
    path.write_bytes(b"x" * 100)
    assert probe(str(path), "full").error.startswith("not a video that FFmpeg can read")

    def no_memory(path):
        raise MemoryError

    monkeypatch.setattr("video_gn.prepare.probe.open_stream", no_memory)
    assert probe(str(path), "packets").error == "there is not enough memory to read it"


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
    assert "its columns ['codec'] are replaced by what the scan finds" in caplog.text
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


# ---- crashes ---------------------------------------------------------------------------------


def misbehave(path, depth, size, mtime):
    """Stands in for a decoder that takes its process with it."""
    name = Path(path).name
    if name == "005.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "017.mp4":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it when memory runs out
    if name == "029.mp4":
        time.sleep(1000)
    if name == "031.mp4":
        raise ZeroDivisionError
    mark = Path(path).with_suffix(".crashed")
    if name == "007.mp4" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return probe_if_changed(path, depth, size, mtime)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_what_a_worker_dies_of_is_named_and_the_scan_goes_on(many, monkeypatch, caplog, num_workers):
    monkeypatch.setattr(scan_module, "WORK", misbehave)
    scan(many / "list.csv", many / "out.csv", num_workers=num_workers, timeout_seconds=8)
    errors = {row["path"][5:8]: row["error"] for row in read_rows(many / "out.csv") if row["error"]}
    usual = ("003", "013", "023", "033", "040", "041")
    assert {name: error for name, error in errors.items() if name not in usual} == {
        "005": "the decoder crashed",
        "017": "the decoder crashed",
        "029": "no answer in 8 s",
        "031": "the decoder crashed",
    }
    assert set(usual) <= set(errors) and "007" not in errors  # a crash that does not come again is forgiven
    assert "029.mp4: no answer in 8 s" in caplog.text


def die_at_once(*args):
    os._exit(7)


def test_processes_that_cannot_start(monkeypatch):
    monkeypatch.setattr(_scan_pool, "START_METHOD", "fork")
    monkeypatch.setattr(_scan_pool, "_serve", die_at_once)
    with pytest.raises(RunError, match=r"cannot be started: 3 died at once, the last with exit code 7"):
        list(run_tasks([("x",)], len, num_workers=2, timeout_seconds=5, preload="json"))


# ---- going on --------------------------------------------------------------------------------


def start_and_kill(listed, target, log_path, num_probes):
    """Scan in a process of its own, which is killed once it has probed that many files; None lets it live.

    Returns:
        Whether it came to its end.

    Forked workers outlive it for a moment and hold its lock.
    """
    pid = os.fork()
    if pid == 0:
        _scan_pool.START_METHOD = "fork"  # a server would import torch anew in each run
        _scan_pool._WATCH_SECONDS = 0.02
        log_file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def counted(path, depth):
            os.write(log_file, f"{Path(path).name}\n".encode())
            time.sleep(0.004)
            return probe(path, depth)

        scan_module._scan_probe.probe = counted
        try:
            scan(listed, target, num_workers=2)
            os._exit(0)
        finally:
            os._exit(1)
    if num_probes is not None:
        while not log_path.exists() or log_path.read_bytes().count(b"\n") < num_probes:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status == 0
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0


def test_kills_at_random_moments(tmp_path, one_video):
    names = [f"{i:03d}.mp4" for i in range(400)]
    for name in names:
        (tmp_path / name).write_bytes(b"bad" if name.endswith("7.mp4") else one_video.read_bytes())
    listed, target = tmp_path / "list.csv", tmp_path / "out.csv"
    listed.write_text("path\n" + "\n".join(names) + "\n")
    scan(listed, tmp_path / "unbroken.csv", num_workers=2)
    journal = tmp_path / ".out.csv.partial"
    draw = random.Random(os.environ.get("VIDEO_GN_KILLS_SEED", "0"))
    known, num_continued = set(), 0
    for number in range(int(os.environ.get("VIDEO_GN_KILLS", "5"))):
        log_path = tmp_path / f"log{number}"
        start_and_kill(listed, target, log_path, draw.randint(1, 120))
        probed = Counter(log_path.read_text().split()) if log_path.exists() else Counter()
        assert not known & set(probed), "what was known has been probed again"
        if target.exists():  # killed after its end, or not at all: from the beginning, then
            assert target.read_bytes() == (tmp_path / "unbroken.csv").read_bytes()
            target.unlink()
            journal.unlink(missing_ok=True)
            known = set()
            continue
        num_continued += bool(known and probed)
        if journal.exists():
            lines = [line for line in journal.read_bytes().split(b"\n")[1:-1] if line]
            paths = [Path(json.loads(line)[0]).name for line in lines]
            assert len(paths) == len(set(paths)), "written down twice"
            assert known <= set(paths), "forgotten"
            known = set(paths)
    assert start_and_kill(listed, target, tmp_path / "last", None)
    assert set((tmp_path / "last").read_text().split()) == set(names) - known
    assert target.read_bytes() == (tmp_path / "unbroken.csv").read_bytes()
    assert not journal.exists() and not list(tmp_path.glob(".*"))
    assert num_continued, "no run went on where another had stopped"


@pytest.fixture
def stopped(many):
    """A scan of `many` that was stopped after its 20th file."""

    def stop(steps):
        for number, step in enumerate(steps, start=1):
            yield step
            if number == 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(many / "list.csv", many / "out.csv", num_workers=1, progress=stop)
    assert len(lines_of(many / ".out.csv.partial")) == 20
    return many


def probes_of(many, **kwargs):
    scan(many / "list.csv", many / "unbroken.csv", overwrite=True)
    summary = scan(many / "list.csv", many / "out.csv", **kwargs)
    assert (many / "out.csv").read_bytes() == (many / "unbroken.csv").read_bytes()
    assert not (many / ".out.csv.partial").exists()
    return summary.num_probed


def test_a_second_run_goes_on(stopped):
    assert probes_of(stopped) == 22


def test_files_that_changed_are_probed_again(stopped, one_video):
    write_numbered_video(stopped / "many" / "004.mp4", 9, size=(48, 40))
    os.utime(stopped / "many" / "005.mp4", (1, 1))
    shutil.copyfile(one_video, stopped / "many" / "003.mp4")
    (stopped / "many" / "006.mp4").unlink()
    assert probes_of(stopped) == 22 + 4


def test_damaged_journals(stopped, caplog):
    journal = stopped / ".out.csv.partial"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = b"{nonsense\n"
    lines[4] = b'["many/x.mp4", 1]\n'
    lines[20] = lines[20][:30]  # half a line
    journal.write_bytes(b"".join(lines))
    assert probes_of(stopped) == 22 + 3
    assert "2 damaged lines of it are left out" in caplog.text


def test_journal_of_another_kind_of_scan(stopped, caplog):
    assert scan(stopped / "list.csv", stopped / "out.csv", headers_only=True).num_probed == 42
    assert "it is of another kind of scan, or damaged; all files are probed again" in caplog.text


def test_two_scans_of_one_target(stopped, monkeypatch):
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.1)
    with (stopped / ".out.csv.partial").open("rb") as file:
        assert locks.take(file)
        with pytest.raises(ManifestError, match=r"out.csv: another scan is writing it"):
            scan(stopped / "list.csv", stopped / "out.csv")


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
    with pytest.raises(ManifestError, match=r"there.csv: the target must not be there yet"):
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
