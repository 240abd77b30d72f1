"""Prepared lists: what is made, kept and named; a run that is killed or crashes."""

import csv
import multiprocessing
import os
import random
import signal
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
from media import all_frames, read_numbers, write_numbered_video

from video_gn import processes
from video_gn.decoding import open_video
from video_gn.errors import RunError, UnwritableError
from video_gn.lists.manifest import Manifest
from video_gn.lists.read import read_manifest
from video_gn.lists.records import VideoRecord
from video_gn.prepare import prepare
from video_gn.prepare.encode import encode
from video_gn.prepare.names import output_names, stem_of, with_raw_videos

# More with VIDEO_GN_KILLS, where there is time: each kill costs a start.
NUM_KILLS = int(os.environ.get("VIDEO_GN_KILLS", "3"))


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    """Fork, or each worker would take seconds to import torch."""
    monkeypatch.setattr(processes, "START_METHOD", "fork")


def listed(*paths, classes=("a", "b"), **fields):
    records = [VideoRecord(str(p), i % len(classes), source=f"list.csv:{i + 1}", **fields) for i, p in enumerate(paths)]
    return Manifest(records, classes, "list.csv")


def files_below(directory):
    """Bytes of what a run has made, by name; not its journal, whose order is that of the work."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".prepare")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short_side_px": 319}, "short_side_px must be even"),
        ({"short_side_px": 2}, "short_side_px must be even"),
        ({"key_frame_interval": 0}, "key_frame_interval must be at least 1"),
        ({"crf": 52}, "crf must be in"),
        ({"crf": -1}, "crf must be in"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"shards": 0}, "shards must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, sources, change, message):
    with pytest.raises(ValueError, match=message):
        prepare.prepare(listed(sources[0]), tmp_path / "out", **change)


# ---- a whole list ------------------------------------------------------------------------------


def test_a_list_is_made_and_can_be_read(tmp_path, sources):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    rows = "".join(f"{path},{'x' if i % 2 else 'y'},{i}\n" for i, path in enumerate([*sources[:3], broken]))
    (tmp_path / "list.csv").write_text(f"path,label,person\n{rows}{tmp_path / 'none.mp4'},x,9\n")
    seen = []
    summary = prepare.prepare(
        read_manifest(tmp_path / "list.csv"), tmp_path / "out", num_workers=2, progress=lambda *a: seen.append(a)
    )
    assert (summary.num_listed, summary.num_new, summary.num_kept, len(summary.failed)) == (5, 3, 0, 2)
    assert seen == [(i, 5) for i in range(6)]
    assert "3 of 5 videos, 3 of them new" in summary.text()
    made = read_manifest(tmp_path / "out" / "manifest.csv", classes=tmp_path / "out" / "classes.txt")
    assert [(r.label, r.groups, r.missing) for r in made.records] == [
        (1, (("person", "0"),), False),
        (0, (("person", "1"),), False),
        (1, (("person", "2"),), False),
    ]
    assert [Path(r.path).stem for r in made.records] == ["00", "01", "02"]
    for record, source in zip(made.records, sources, strict=False):
        assert read_numbers(all_frames(record.path)) == read_numbers(all_frames(source))
    with (tmp_path / "out" / "failed.csv").open() as file:
        failed = list(csv.DictReader(file))
    assert [(row["path"], row["listed"].rpartition(":")[2]) for row in failed] == [
        (str(broken), "5"),
        (str(tmp_path / "none.mp4"), "6"),
    ]
    assert "not a video" in failed[0]["reason"] and "missing" in failed[1]["reason"]


def test_splits_are_folders_and_a_column(tmp_path, sources):
    parts = {"train": listed(*sources[:2]), "val": listed(*sources[2:4])}
    prepare.prepare(parts, tmp_path / "out", num_workers=1)
    made = tmp_path / "out" / "manifest.csv"
    assert [Path(r.path).parts[-3:] for r in read_manifest(made, split="val").records] == [
        ("val", "a", "02.mp4"),
        ("val", "b", "03.mp4"),
    ]
    assert len(read_manifest(made, split="train")) == 2
    with pytest.raises(ValueError, match="a split must be a word"):
        prepare.prepare({"../x": listed(sources[0])}, tmp_path / "out")


def test_segments_of_an_official_list_are_cut_out_of_raw_videos(tmp_path):
    (tmp_path / "raw").mkdir()
    write_numbered_video(tmp_path / "raw" / "abc_-d.mkv", 100, fps=10)
    write_numbered_video(tmp_path / "raw" / "e_000000_000002.mp4", 20, fps=10)
    (tmp_path / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split\njump,abc_-d,2,5,train\nrun,e,0,2,train\nrun,gone,0,2,train\n"
    )
    manifest = with_raw_videos(read_manifest(tmp_path / "k.csv", root=tmp_path / "raw"), tmp_path / "raw")
    summary = prepare.prepare(manifest, tmp_path / "out", num_workers=1)
    made = read_manifest(summary.manifest_path)
    assert [Path(r.path).name for r in made.records] == ["abc_-d_2000-5000ms.mp4", "e_000000_000002.mp4"]
    assert read_numbers(all_frames(made.records[0].path)) == list(range(20, 50))
    assert [r.start_seconds for r in made.records] == [None, None]
    assert len(summary.failed) == 1 and "gone" in summary.failed[0][0]


def test_a_second_call_makes_only_what_has_changed(tmp_path, sources, caplog):
    manifest = listed(*sources[:3])
    out = tmp_path / "out"
    assert prepare.prepare(manifest, out, num_workers=1).num_new == 3
    before = files_below(out)
    again = prepare.prepare(manifest, out, num_workers=1)
    assert (again.num_new, again.num_kept) == (0, 3)
    assert files_below(out) == before
    (out / "a" / "00.mp4").unlink()
    (out / "b" / "01.mp4").write_bytes(b"cut off")
    assert prepare.prepare(manifest, out, num_workers=1).num_new == 2
    assert files_below(out) == before
    caplog.clear()
    assert prepare.prepare(manifest, out, num_workers=1, crf=30).num_new == 3
    assert f"3 of the 3 videos are in {out} already" in caplog.text
    caplog.clear()
    assert prepare.prepare(manifest, out, num_workers=1, overwrite=True).num_new == 3
    assert not caplog.text
    assert files_below(out) == before


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path, sources):
    manifest = listed(*sources[:5])
    for workers in (1, 3):
        prepare.prepare(manifest, tmp_path / str(workers), num_workers=workers)
    assert files_below(tmp_path / "1") == files_below(tmp_path / "3")


def test_videos_of_a_tar_are_sources_too(tmp_path, sources):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for path in sources[:2]:
            tar.add(path, f"./{path.name}")
    manifest = listed(*(f"{tmp_path}/t.tar::{path.name}" for path in sources[:2]))
    summary = prepare.prepare(manifest, tmp_path / "out", num_workers=1)
    assert summary.num_source_bytes == sum(path.stat().st_size for path in sources[:2])
    prepare.prepare(listed(*sources[:2]), tmp_path / "loose", num_workers=1)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "loose")


def test_two_runs_in_one_directory_are_refused(tmp_path, sources, monkeypatch):
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.1)
    with (
        prepare.claimed(tmp_path / "out"),
        pytest.raises(RunError, match=r"another run \(process \d+ on .+\) is writing to out_dir"),
    ):
        prepare.prepare(listed(sources[0]), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="must be a directory"):
        prepare.prepare(listed(sources[0]), tmp_path / "file")
    with pytest.raises(UnwritableError, match=r"file/out/\.prepare\.lock could not be written: [^:]+ is no directory"):
        prepare.prepare(listed(sources[0]), tmp_path / "file" / "out")


def test_nothing_made_is_an_error_that_names_the_first(tmp_path):
    with pytest.raises(RunError, match=r"none of 1; the first: .*none\.mp4: the file is missing"):
        prepare.prepare(listed(tmp_path / "none.mp4"), tmp_path / "out", num_workers=1)
    with pytest.raises(ValueError, match="at least one video"):
        prepare.prepare(Manifest((), (), "nothing"), tmp_path / "out")


def test_names_are_different_and_clean():
    records = [
        VideoRecord("/x/a.mp4", 0),
        VideoRecord("/y/A.mp4", 0),
        VideoRecord("/x/b.mp4.mkv", 1, 1.5, None),
        VideoRecord("/x/.:c.mp4", None),
        VideoRecord("/x/\udcff.mp4", None),
        VideoRecord(f"/x/{'é' * 300}.mp4", None),
        VideoRecord("/x/t-000000.tar::k.mp4", 0),
    ]
    names = output_names(records, ("p/q", "r"))
    assert names[2:5] == ["r/b_1500-ms.mp4", "__c.mp4", "\ufffd.mp4"]
    assert names[0].startswith("p_q/a-") and names[1].startswith("p_q/A-") and names[6] == "p_q/k.mp4"
    assert all(len(os.fsencode(Path(name).name)) < 200 for name in names)
    assert output_names(records[::-1], ("p/q", "r")) == names[::-1]
    with pytest.raises(ValueError, match="each video once"):
        output_names([records[0], records[0]], ("p/q", "r"))
    assert stem_of("/a/t.tar::b/k.mp4") == "k"


# ---- crashes and kills ----------------------------------------------------------------------


def test_a_crash_is_tried_again_and_a_broken_file_is_not(tmp_path, sources, monkeypatch):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    manifest = listed(sources[0], sources[1], broken)
    made = []

    def crash(source, *args, **kwargs):
        if source == str(sources[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(source, *args, **kwargs)

    def watch(source, *args, **kwargs):
        (tmp_path / f"made-{Path(source).stem}").touch()
        return encode(source, *args, **kwargs)

    monkeypatch.setattr(prepare, "encode", crash)
    summary = prepare.prepare(manifest, tmp_path / "out", num_workers=1)
    assert [path for path, _ in summary.failed] == [str(sources[0]), str(broken)]
    assert "SIGKILL" in summary.failed[0][1]
    monkeypatch.setattr(prepare, "encode", watch)
    summary = prepare.prepare(manifest, tmp_path / "out", num_workers=1)
    assert [path for path, _ in summary.failed] == [str(broken)]
    made = sorted(path.name for path in tmp_path.glob("made-*"))
    assert made == ["made-00"]


def _counting(source, *args, log, **kwargs):
    with Path(log).open("a") as file:
        file.write(f"{Path(source).stem}\n")
    return encode(source, *args, **kwargs)


def _run_to_be_killed(manifest, out, shards):
    os.setpgrp()  # so that a kill takes the whole run, as at the end of a job
    prepare.prepare(manifest, out, num_workers=2, shards=shards)


@pytest.mark.parametrize("shards", [None, 3])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, sources, monkeypatch, shards):
    """Killed at random moments, the parent alone or with its workers: nothing finished is made again."""
    manifest = listed(*sources)
    monkeypatch.setattr(prepare, "encode", partial(_counting, log=tmp_path / "whole.log"))
    begin = time.monotonic()
    prepare.prepare(manifest, tmp_path / "whole", num_workers=2, shards=shards)
    duration = time.monotonic() - begin
    out = tmp_path / "killed"
    log = tmp_path / "killed.log"
    monkeypatch.setattr(prepare, "encode", partial(_counting, log=log))
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    num_kills = 0
    for _ in range(NUM_KILLS):
        process = context.Process(target=_run_to_be_killed, args=(manifest, out, shards))
        process.start()
        process.join(rng.uniform(0.05, duration))
        if process.is_alive():
            num_kills += 1
            if rng.random() < 0.5:
                process.kill()  # its workers see that and end
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
    begun_before = log.read_text().split() if log.exists() else []
    finished = prepare.MadeFiles(out).names(".mp4") if out.exists() else []
    summary = prepare.prepare(manifest, out, num_workers=2, shards=shards)
    assert files_below(out) == files_below(tmp_path / "whole")
    assert not list(out.rglob("*.partial"))
    begun = log.read_text().split()
    # Each kill may cost what its two workers had begun, and nothing else is begun twice.
    assert len(begun) <= len(sources) + 2 * num_kills
    again = begun[len(begun_before) :]
    assert not {Path(name).stem for name in finished} & set(again)
    assert summary.num_new == len(again)


@pytest.mark.needs_real_videos
def test_all_odd_videos_are_prepared_or_named(tmp_path, real_videos):
    paths = sorted((real_videos / "odd").iterdir())
    summary = prepare.prepare(listed(*paths), tmp_path / "out", short_side_px=128, num_workers=2)
    assert summary.num_new + len(summary.failed) == len(paths)
    names = {Path(path).name for path, _ in summary.failed}
    assert names == {"all_zeros.mp4", "audio_only.mp4", "html_error_page.mp4", "zero_bytes.mp4"}
    made = {Path(r.path).stem: r for r in read_manifest(summary.manifest_path).records}
    with (real_videos / "files.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "odd/" in row["path"]]
    counts = {Path(row["path"]).stem: int(row["decoded_frames"] or 0) for row in rows}
    for path in paths:
        if path.name in names:
            continue
        with open_video(made[path.stem].path) as reader:
            assert reader.info.num_frames == counts[path.stem], path
            assert min(reader.info.width, reader.info.height) <= 128
