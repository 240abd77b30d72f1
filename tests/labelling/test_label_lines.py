"""A file of lines grows, is gone on with, and is refused where it is another's."""

import json
import os
import resource
import shutil
import signal
import threading
import time
import tracemalloc

import pytest
from stubs import SETTINGS, Predict, lines_of, result_of, run, write_list

from video_gn import files
from video_gn.clips import Failure
from video_gn.errors import ConfigError, DiskFullError, RefusedError, RunError, UnwritableError
from video_gn.labelling import lines
from video_gn.labelling.inputs import read_list
from video_gn.labelling.lines import about_path, read_about
from video_gn.parts import Part, check_parts

NAMES = ["a.mp4", "bad b.mp4", 'ü "q" \u2028.mp4', "d\u0085.mp4", "e.mp4"]


@pytest.fixture
def listed(tmp_path):
    return write_list(tmp_path / "list.txt", NAMES)


def test_a_line_for_each_video(listed, tmp_path):
    output = tmp_path / "deep/out.jsonl"
    tally = run(listed, output)
    assert (tally.labelled, tally.failed, tally.before, tally.exit_status) == (4, 1, 0, 3)
    records = list(read_list(str(listed)))
    assert output.read_bytes() == lines_of(records)
    entries = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]]
    assert entries[0] == result_of(records[0])
    assert entries[1] == {"path": str(tmp_path / NAMES[1]), "reason": "no video stream"}
    about = read_about(output)
    assert about.complete == {"videos": 5, "listed": 5, "sha256": about.complete["sha256"]}
    assert (about.settings, about.checkpoint, about.part) == (SETTINGS, "best.ckpt", None)


def test_names_with_line_breaks_or_bytes_that_are_no_text(tmp_path):
    names = ["line\nbreak.mp4", os.fsdecode(b"caf\xe9.mp4")]
    for name in names:
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / name).touch()
    for _ in range(2):
        tally = run(None, tmp_path / "out.jsonl", paths=[tmp_path / "videos"])
        lines = (tmp_path / "out.jsonl").read_bytes().split(b"\n")
        assert len(lines) == 3
        assert b"caf\xe9.mp4" in lines[0]
        assert b"line\\nbreak.mp4" in lines[1]
    assert tally.before == 2


@pytest.mark.parametrize("kept", range(6))
@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_file_cut_off_anywhere_is_gone_on_with(listed, tmp_path, kept, torn):
    whole = lines_of(read_list(str(listed)))
    output = tmp_path / "out.jsonl"
    run(listed, output)
    lines = whole.splitlines(keepends=True) if b"\r" not in whole else None
    output.write_bytes(b"".join(lines[:kept]) + (lines[kept][:torn] if kept < 5 else b""))
    predict = Predict()
    tally = run(listed, output, predict=predict)
    assert output.read_bytes() == whole
    assert predict.seen == [str(tmp_path / name) for name in NAMES[kept:]], "what was there has been done again"
    assert (tally.before, tally.labelled, tally.failed) == (kept, 4, 1)


def test_a_longer_list_goes_on_and_another_one_does_not(listed, tmp_path):
    output = tmp_path / "out.jsonl"
    run(listed, output)
    before = output.read_bytes()
    write_list(listed, [*NAMES, "f.mp4"])
    predict = Predict()
    assert run(listed, output, predict=predict).before == 5
    assert predict.seen == [str(tmp_path / "f.mp4")]
    assert output.read_bytes().startswith(before)
    assert read_about(output).complete["listed"] == 6
    before = output.read_bytes()
    write_list(listed, [*NAMES[:3], "x.mp4"])
    with pytest.raises(
        ConfigError, match=r"out\.jsonl:4: the line must be of '.*x\.mp4', .* got '.*d.x85\.mp4'.*--overwrite"
    ):
        run(listed, output)
    write_list(listed, NAMES[:3])
    with pytest.raises(ConfigError, match=r"out\.jsonl:4: must be at most 3 lines, .* --overwrite, or choose another"):
        run(listed, output)
    assert output.read_bytes() == before, "a file that is refused is left as it is"
    assert run(listed, output, overwrite=True).before == 0
    assert output.read_bytes() == lines_of(read_list(str(listed)))


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_other_settings_are_named(listed, tmp_path, setting):
    output = tmp_path / "out.jsonl"
    run(listed, output)
    other = {**SETTINGS, setting: "other"}
    with pytest.raises(
        ConfigError, match=rf"out\.jsonl: --{setting} must be {SETTINGS[setting]!r}.*got 'other'.*--overwrite"
    ):
        run(listed, output, settings=other)
    run(listed, output, settings=other, overwrite=True)
    assert read_about(output).settings == other


def test_files_of_others_are_not_touched(listed, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("mine\n")
    with pytest.raises(
        ConfigError, match=r"must be new or written by video-gn infer, got a file without out\.jsonl\.meta"
    ):
        run(listed, output)
    about_path(output).write_text('{"version": 7}')
    with pytest.raises(ConfigError, match=r"meta\.json: must be written by video-gn infer, got something else"):
        run(listed, output)
    about_path(output).unlink()
    output.unlink()
    run(listed, output)
    content = output.read_bytes()
    output.write_bytes(content.replace(b'{"path"', b"\0{path", 1))
    with pytest.raises(ConfigError, match=r"out\.jsonl:1: a line must be a result of video-gn infer, got"):
        run(listed, output)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/out\.jsonl could not be written: [^:]+ is no directory"):
        run(listed, tmp_path / "file/out.jsonl")


def test_one_run_at_a_time(listed, tmp_path, monkeypatch):
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.1)
    output = tmp_path / "out.jsonl"

    def predict(records):
        with pytest.raises(RunError, match=rf"is being written by another run \(process {os.getpid()}.*Wait for it"):
            run(listed, output)
        yield from Predict()(records)

    run(listed, output, predict=predict)
    assert output.read_bytes() == lines_of(read_list(str(listed)))


def test_a_full_disk_is_told_and_gone_on_from(listed, tmp_path):
    output = tmp_path / "out.jsonl"
    whole = lines_of(read_list(str(listed)))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - 100, hard))
    try:
        with pytest.raises(RunError, match=r"out\.jsonl could not be written: File too large\. .* Make room"):
            run(listed, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert output.read_bytes() == whole[:-100], "a line is torn"
    assert run(listed, output).before == 4
    assert output.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("where", ["while it computes", "while it waits", "while it writes", "twice"])
def test_signals_end_it_between_two_lines(listed, tmp_path, monkeypatch, number, where):
    output = tmp_path / "out.jsonl"
    if where == "twice" and number != signal.SIGINT:
        pytest.skip("a cluster may send its signals twice, which means no more than once")
    whole = lines_of(read_list(str(listed)))
    before = signal.getsignal(number)

    monkeypatch.setattr("video_gn.labelling.running._GRACE_SECONDS", 0.3 if where == "while it waits" else 60)

    def predict(records):
        for place, result in enumerate(Predict()(records)):
            if place == 2 and where != "while it writes":
                os.kill(os.getpid(), number)
            if place == 2 and where == "twice":
                os.kill(os.getpid(), number)
            if place == 2 and where in ("while it waits", "twice"):
                time.sleep(60)
            yield result

    if where == "while it writes":
        from video_gn import journal

        encode = journal.encode

        def killing(entry):
            if entry["path"].endswith(NAMES[2]):
                os.kill(os.getpid(), number)
            return encode(entry)

        monkeypatch.setattr(journal, "encode", killing)
    tally = run(listed, output, predict=predict)
    monkeypatch.undo()
    assert tally.exit_status == 128 + number
    done = 2 if where in ("while it waits", "twice") else 3
    assert (tally.labelled + tally.failed, output.read_bytes()) == (done, b"".join(whole.splitlines(True)[:done]))
    assert signal.getsignal(number) is before
    assert read_about(output).complete is None
    assert run(listed, output).before == done
    assert output.read_bytes() == whole


def test_a_thread_has_no_signals(listed, tmp_path):
    thread = threading.Thread(target=run, args=(listed, tmp_path / "out.jsonl"))
    thread.start()
    thread.join()
    assert (tmp_path / "out.jsonl").read_bytes() == lines_of(read_list(str(listed)))


def test_parts_of_two_divisions_are_refused(listed, tmp_path):
    output = tmp_path / "out.jsonl"
    run(listed, output, part=Part(0, 8))
    check_parts(output, Part(1, 8))
    with pytest.raises(ConfigError, match=r"--part must be I/8 as in out\.part-00000-of-00008\.jsonl, .* got 0/1"):
        check_parts(output, Part(0, 1))


def peak(tmp_path, num_videos):
    """Bytes that a run holds at most, of all that it takes itself; half of the lines are there beforehand."""
    listed, output = tmp_path / f"{num_videos}.txt", tmp_path / f"{num_videos}.jsonl"
    write_list(listed, (f"/videos/{i:012d}.mp4" for i in range(num_videos // 2)))

    def predict(records):
        for record in records:
            yield Failure(0, record.path, "x") if record.path.endswith("7.mp4") else {"path": record.path}

    run(listed, output, predict=predict)
    write_list(listed, (f"/videos/{i:012d}.mp4" for i in range(num_videos)))
    tracemalloc.start()
    try:
        tally = run(listed, output, predict=predict)
        assert (tally.before, tally.labelled + tally.failed) == (num_videos // 2, num_videos)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def no_warnings(monkeypatch):
    monkeypatch.setattr("video_gn.labelling.running.log.warning", lambda *words: None)


def test_memory_does_not_grow_with_the_list(tmp_path, no_warnings):
    peak(tmp_path, 100)  # what is imported and cached once
    small, large = peak(tmp_path, 2_000), peak(tmp_path, 20_000)
    assert large < small + 50_000, (small, large)  # a list of paths alone would be 2 MB more


@pytest.mark.slow
def test_memory_does_not_grow_with_a_long_list(tmp_path, no_warnings):
    peak(tmp_path, 100)
    small, large = peak(tmp_path, 20_000), peak(tmp_path, 200_000)
    assert large < small + 50_000, (small, large)


# ---- .json and .csv, whose lines lie beside them until all are there ----------------------------------------


def left_in(directory):
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("suffix", [".json", ".csv"])
@pytest.mark.parametrize("paths", [(), ("gone.mp4",)])
def test_a_stopped_run_into_a_whole_file_resumes(listed, tmp_path, monkeypatch, suffix, paths):
    wanted, output, again = tmp_path / f"wanted{suffix}", tmp_path / "deep" / f"x{suffix}", Predict()
    run(listed, wanted, paths=paths)
    with monkeypatch.context() as patched:
        patched.setattr(lines, "write_results", no_room)
        with pytest.raises(DiskFullError, match="x"):
            run(listed, output, paths=paths)
        with pytest.raises(DiskFullError, match="x"):
            run(listed, output, paths=paths, predict=again)
    assert not again.seen
    path = output.with_name(f".x{suffix}.lines")
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    path.write_bytes(b"".join([*kept, b'{"pa']))
    tally = run(listed, output, paths=paths, predict=again)
    assert (tally.before, len(again.seen)) == (3, 2 + len(paths))
    assert output.read_bytes() == wanted.read_bytes()
    assert [p.name for p in output.parent.iterdir()] == [output.name], "nothing is left beside it"
    assert run(listed, output, paths=paths).before == 0, "what is finished is made anew"


def no_room(*_):
    raise DiskFullError("x")


@pytest.mark.parametrize("change", ["settings", "list", "damage", "no settings"])
def test_what_a_stopped_run_has_left_of_other_things_is_dropped(listed, tmp_path, monkeypatch, caplog, change):
    output = tmp_path / "x.json"
    with monkeypatch.context() as patched:
        patched.setattr(lines, "write_results", no_room)
        with pytest.raises(DiskFullError):
            run(listed, output)
    left = tmp_path / ".x.json.lines"
    if change == "list":
        write_list(listed, NAMES[::-1])
    elif change == "damage":
        left.write_bytes(b"garbage\n" + left.read_bytes())
    elif change == "no settings":
        about_path(left).unlink()
    tally = run(listed, output, settings={"top_k": 1} if change == "settings" else SETTINGS)
    assert tally.before == 0 and "starting anew" in caplog.text
    assert len(json.loads(output.read_text())["videos"]) == 4
    assert not left_in(tmp_path)


@pytest.mark.parametrize("name", ["x.json", "x.csv", "x.jsonl"])
def test_two_runs_into_one_file_are_never_mixed(listed, tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "LEFT_OVER_SECONDS", 0)

    def second(records):
        with pytest.raises(RefusedError, match=rf"{name}.* is being written by another run \(process \d+"):
            run(listed, tmp_path / name)
        return Predict()(records)

    run(listed, tmp_path / "wanted" / name)
    run(listed, tmp_path / name, predict=second)
    assert (tmp_path / name).read_bytes() == (tmp_path / "wanted" / name).read_bytes()


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_a_directory_that_is_removed_in_mid_run(listed, tmp_path, name):
    def predict(records):
        for number, result in enumerate(Predict()(records)):
            if number == 2:
                shutil.rmtree(tmp_path / "gone")
            yield result

    with pytest.raises(UnwritableError, match=rf"{name}.* was removed while it was being written\. Run"):
        run(listed, tmp_path / "gone" / name, predict=predict)
