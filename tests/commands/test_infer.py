"""`video-gn infer` on video files: many at once, in parts, stopped and killed, and merged."""

import errno
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import run, start
from small import ABOUT

from video_gn.__main__ import main
from video_gn.labelling.lines import read_about
from video_gn.models import i3d
from video_gn.parts import Part

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "12"))


@pytest.fixture(scope="module")
def here(tiny_videos, tmp_path_factory):
    """A directory with a.ckpt, b.ckpt, list.txt of thirty videos, two of them broken, and the one run of list.jsonl."""
    here = tmp_path_factory.mktemp("many")
    for seed, name in enumerate(("a.ckpt", "b.ckpt")):
        torch.manual_seed(seed)
        net = i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False)
        state = {f"net.{k}": v for k, v in net.state_dict().items()}
        torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": state}, here / name)
    make_list(here, tiny_videos)
    status, printed = run(infer(here / "one.jsonl"), here)
    assert status == 3, printed
    assert "28 labelled, 2 failed, 0 of them before: " in printed
    assert printed.count("could not be read") == 2
    return here


def make_list(here, videos):
    """list.txt, and the videos that it names, as links of their own that can be taken away."""
    (here / "v").mkdir()
    names = [f"v/{number:02d} ü.mp4" for number in range(30)]
    for name, video in zip(names, sorted(videos.rglob("*.mp4")), strict=True):
        shutil.copy(video, here / name)
    (here / names[7]).write_text("<html>")
    (here / names[20]).unlink()
    (here / "list.txt").write_bytes("\r\n".join([*names, ""]).encode())


def infer(output, *more, checkpoint="a.ckpt"):
    return ["infer", "--list=list.txt", f"--checkpoint={checkpoint}", "--num_workers=0", "--output", output, *more]


def in_process(words, directory, capsys):
    """(exit status, what was printed), without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        # The command sets its log up for a process of its own, on the stderr of that moment.
        for name, value in (("handlers", []), ("propagate", True), ("level", logging.NOTSET)):
            patch.setattr(logging.getLogger("video_gn"), name, value)
        capsys.readouterr()
        status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_all_forms_have_the_same_results(here, capsys):
    lines = [json.loads(line) for line in (here / "one.jsonl").read_bytes().splitlines()]
    assert [line["path"] for line in lines] == [f"v/{number:02d} ü.mp4" for number in range(30)]
    whole = {"videos": [x for x in lines if "top" in x], "failed": [x for x in lines if "reason" in x]}
    for suffix in (".json", ".csv"):
        status, printed = in_process(infer(here / f"one{suffix}", "--quiet"), here, capsys)
        assert status == 3, printed
        status, printed = in_process(["infer", "--merge=one.jsonl", f"--output=merged{suffix}"], here, capsys)
        assert status == 3, printed
        assert (here / f"merged{suffix}").read_bytes() == (here / f"one{suffix}").read_bytes()
    assert (here / "one.json").read_text() == json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def test_parts_by_processes_that_decode_ahead(here, capsys, monkeypatch):
    for number in range(3):
        words = [*infer(here / "s.jsonl", "--part=slurm"), "--num_workers=1"]
        values = {"ID": 10 + 7 * number, "MIN": 10, "MAX": 24, "STEP": 7, "COUNT": 3}
        for name, value in values.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        status, printed = in_process(words, here, capsys)
        assert status == (0 if number == 0 else 3), printed
        assert read_about(Part(number, 3).path(here / "s.jsonl")).complete["videos"] == 10
    status, _ = in_process(["infer", "--merge=s.jsonl", "--output=s.jsonl"], here, capsys)
    assert status == 3
    assert (here / "s.jsonl").read_bytes() == (here / "one.jsonl").read_bytes()


def test_standard_input_and_paths(here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    with (here / "list.txt").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        words = [word.replace("list.txt", "-") for word in map(str, infer(here / "in.jsonl"))]
        status, printed = in_process(words, here, capsys)
    assert status == 3, printed
    assert (here / "in.jsonl").read_bytes() == (here / "one.jsonl").read_bytes()
    words = ["infer", "gone.mp4", "v", "--checkpoint=a.ckpt", "--num_workers=0", "--quiet"]
    for output in ("v.json", "v.jsonl"):
        assert in_process([*words, f"--output={output}"], here, capsys)[0] == 3
    assert in_process(["infer", "--merge=v.jsonl", "--output=w.json"], here, capsys)[0] == 3
    assert (here / "w.json").read_bytes() == (here / "v.json").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--checkpoint=b.ckpt"],
            r"--checkpoint must be 'SHA-256 \w{64}' \(a\.ckpt\) as for these lines, got .*\(b\.ckpt\)",
        ),
        (["--num_clips=3"], "--num_clips must be 2 as for these lines, got 3"),
        (["--crops=three"], "--crops must be 'center' as for these lines, got 'three'"),
        (["--top_k=2"], "--top_k must be 5 as for these lines, got 2"),
        (["--backend=pyav"], "--backend must be 'auto' as for these lines, got 'pyav'"),
        (["--labels=labels.txt"], "--labels must be 'SHA-256"),
    ],
)
def test_going_on_with_another_setting(here, capsys, more, message):
    (here / "labels.txt").write_text("x\ny\nz\n")
    before = (here / "one.jsonl").read_bytes()
    status, printed = in_process(infer(here / "one.jsonl", *more), here, capsys)
    assert status == 2
    assert re.search(message + ".*--overwrite, or choose another --output", printed), printed
    assert (here / "one.jsonl").read_bytes() == before


def test_going_on_with_a_copy_of_the_checkpoint_and_the_same_setting_written_out(here, capsys):
    shutil.copy(here / "a.ckpt", here / "copy.ckpt")
    words = infer(here / "one.jsonl", "--num_clips=2", "--crops=center", checkpoint="copy.ckpt")
    status, printed = in_process(words, here, capsys)
    assert status == 3, printed
    assert "resuming after 30 videos" in printed
    assert "28 labelled, 2 failed, 30 of them before" in printed
    assert "could not be read" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--checkpoint=a.ckpt"],
            "PATH must name at least one video, or --list a file with a path a line, got neither",
        ),
        (["v"], "--checkpoint must be given, got none"),
        (["v", "--checkpoint=a.ckpt", "--output=x.txt"], "--output must end in .json, .csv, .jsonl, .vtt, .srt, got"),
        (["v", "--checkpoint=a.ckpt", "--partial"], "--partial must stand with --merge"),
        (["v", "--checkpoint=a.ckpt", "--part=0/2"], "--part must have an --output that ends in .jsonl, got None"),
        (
            ["v", "--checkpoint=a.ckpt", "--part=0/2", "--output=x.csv"],
            "--part must have an --output that ends in .jsonl, got 'x.csv'. Write .jsonl, then --merge the parts",
        ),
        (
            ["v", "--checkpoint=a.ckpt", "--overwrite", "--output=x.csv"],
            "--overwrite must have an --output that ends in",
        ),
        (["v", "--checkpoint=a.ckpt", "--part=3/3", "--output=x.jsonl"], "--part must be I/N with I from 0 to N - 1"),
        (["v", "--checkpoint=a.ckpt", "--part=x", "--output=x.jsonl"], "--part must be I/N with I from 0 to N - 1"),
        (["--list=no.txt", "--checkpoint=a.ckpt"], "no.txt: --list must be a file, got No such file"),
        (["--list=empty.txt", "--checkpoint=a.ckpt"], "empty.txt: --list must have at least one path"),
        (["--list=list.txt", "--merge=one.jsonl", "--output=x.json"], "--merge must stand alone, got --list too"),
        (["--merge=one.json", "--output=x.json"], "--merge must end in .jsonl, got 'one.json'"),
        (["--merge=one.jsonl"], "--merge must have an --output of results, got None"),
        (["--merge=none.jsonl", "--output=x.json"], "--merge none.jsonl: it or its parts"),
    ],
)
def test_words_that_do_not_go_together(here, capsys, words, message):
    (here / "empty.txt").touch()
    status, printed = in_process(["infer", *words], here, capsys)
    assert status == 2
    assert message in printed
    assert not list(here.glob("x*"))


def kill_until_done(here, tmp_path, videos, kills, *, rng, more=()):
    """Kill it again and again; what a line has been written for is taken away, so that it cannot be done again.

    Returns:
        How many kills came before its end.
    """
    spent, went_on = 0, False
    make_list(tmp_path, videos)
    shutil.copy(here / "a.ckpt", tmp_path)
    output, log, words = tmp_path / "out.jsonl", tmp_path / "log.txt", infer("out.jsonl", *more)
    while True:
        before = output.read_bytes() if output.exists() else b""
        known = before.count(b"\n")
        process = start(words, tmp_path, log)
        if spent < kills:
            deadline = time.monotonic() + 120
            wanted = known + rng.randrange(1 + 30 // kills)
            while process.is_alive() and (output.read_bytes() if output.exists() else b"").count(b"\n") < wanted:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
        process.join(240)
        content = output.read_bytes() if output.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        assert whole.startswith(before[: before.rfind(b"\n") + 1]), "what was known has been written anew"
        for line in whole.splitlines():
            (tmp_path / json.loads(line)["path"]).unlink(missing_ok=True)
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 3, log.read_text()
            went_on = known > 0
            break
        spent += 1
        if rng.random() < 0.3:  # as a kill would that comes within a line
            output.write_bytes(whole + b'{"path": "v/')
    assert output.read_bytes() == (here / "one.jsonl").read_bytes()
    assert read_about(output).complete["videos"] == 30
    assert not went_on or "resuming after" in log.read_text()
    return spent


def spend_kills(here, tmp_path, videos, kills, *, more=(), seed=0):
    """In one directory after another, since on a quick machine the videos may be done before all kills have come."""
    rng, left, number = random.Random(seed), kills, 0
    while left > 0:
        number += 1
        path = tmp_path / str(number)
        path.mkdir()
        left -= kill_until_done(here, path, videos, left, rng=rng, more=more)
    assert number <= 2 + kills, "it ended before it could be killed"


@pytest.mark.slow
def test_kills_lose_and_double_no_embeddings(here, tiny_videos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra `parquet`)")
    status, printed = run(infer(here / "e.jsonl", "--embeddings=e.parquet"), here)
    assert status == 3, printed
    one = parquet.read_table(here / "e.parquet")
    assert one.num_rows == 28
    spend_kills(here, tmp_path, tiny_videos, 4, more=["--embeddings=e.parquet"])
    made = list(tmp_path.rglob("e.parquet"))
    assert made and all(parquet.read_table(path).equals(one) for path in made)


def test_kills(here, tiny_videos, tmp_path):
    spend_kills(here, tmp_path, tiny_videos, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_many_kills(here, tiny_videos, tmp_path, num_workers):
    kills = KILLS if num_workers == 0 else KILLS // 4  # workers of a fork server import everything, each time
    spend_kills(here, tmp_path, tiny_videos, kills, more=[f"--num_workers={num_workers}"], seed=num_workers)


def wait_for_lines(output, number, is_alive):
    while is_alive() and (output.read_bytes() if output.exists() else b"").count(b"\n") < number:
        time.sleep(0.001)


def check_stopped(here, output, status, printed, number):
    assert status == 128 + number, printed
    assert f"stopped by {number.name}; " in printed
    assert "the same command resumes from there" in printed
    assert "Traceback" not in printed
    assert (here / "one.jsonl").read_bytes().startswith(output.read_bytes())
    assert output.read_bytes().endswith(b"\n")


@pytest.fixture
def copied(here, tmp_path):
    (tmp_path / "v").symlink_to(here / "v")
    for name in ("a.ckpt", "list.txt"):
        shutil.copy(here / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(here, copied, number):
    output, log, words = copied / "out.jsonl", copied / "log.txt", infer("out.jsonl")
    process = start(words, copied, log)
    wait_for_lines(output, 2, process.is_alive)
    os.kill(process.pid, number)
    process.join(60)
    check_stopped(here, output, process.exitcode, log.read_text(), number)
    status, printed = run(words, copied)
    assert status == 3, printed
    assert output.read_bytes() == (here / "one.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_whole_group(here, copied, number):
    """As SLURM and a terminal send them: the workers, here forked as in a user's run, are told at the same time."""
    output = copied / "out.jsonl"
    words = [sys.executable, "-m", "video_gn", *infer("out.jsonl"), "--num_workers=2"]
    for wanted in (2, 9):
        log = (copied / "log.txt").open("w+")
        process = subprocess.Popen(words, cwd=copied, stderr=log, start_new_session=True)
        wait_for_lines(output, wanted, lambda: process.poll() is None)  # noqa: B023
        os.killpg(process.pid, number)
        status = process.wait(60)
        log.seek(0)
        check_stopped(here, output, status, log.read(), number)
    assert subprocess.run(words, cwd=copied).returncode == 3
    assert output.read_bytes() == (here / "one.jsonl").read_bytes()


def test_a_stream_is_decoded_little_ahead(here, monkeypatch):
    import video_gn

    monkeypatch.chdir(here)
    predictor, taken = video_gn.load(here / "a.ckpt", device="cpu"), []

    def stream():
        for line in (here / "list.txt").read_text().splitlines():
            taken.append(line)
            yield line

    for num_workers in (0, 1):
        taken.clear()
        results = predictor.predict_many(stream(), num_workers=num_workers)
        assert next(results)["path"] == "v/00 ü.mp4"
        assert len(taken) <= 1 + 2 * num_workers
        results.close()


def test_a_worker_that_dies_is_told(here, capsys, monkeypatch):
    def dies(*arguments, **options):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ")
        yield

    monkeypatch.setattr("video_gn.evaluation.predictor.Predictor.predict_many", dies)
    for output in ("dead.jsonl", "dead.json"):
        status, printed = in_process(infer(output), here, capsys)
        assert status == 1
        assert "a loading worker died (DataLoader worker (pid 7) is killed by signal: Segmentation fault. )" in printed
        assert "Take such a file out of the list, or read it with another --backend; videos in a .jsonl" in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    "words",
    [
        "infer --list=list.txt --checkpoint=a.ckpt --num_workers=0 --output={}.json",
        "infer --list=list.txt --checkpoint=a.ckpt --num_workers=0 --output={}.jsonl",
        "infer --merge=one.jsonl --output={}.csv",
        "infer --merge=one.jsonl --output={}.jsonl",
        "data scan v --num_workers=1 --output={}.csv",
        "data synth {} --train_per_class=1 --val_per_class=1",
        "weights convert a.ckpt {}.safetensors",
        "weights convert a.ckpt {}.ckpt",
        "bench data --output={}.json",
    ],
)
def test_a_disk_that_takes_nothing_is_one_line(here, tmp_path, capsys, monkeypatch, words, number):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("video_gn.files.os.fsync", refuse)
    status, printed = in_process(words.format(tmp_path / "x").split(), here, capsys)
    assert status == 2, printed
    line = printed.strip().splitlines()[-1]
    assert re.match(rf"video-gn: error: {tmp_path}/\S+ could not be written: {os.strerror(number)}[. ]", line), printed
    assert "Traceback" not in printed and line.count(str(tmp_path)) <= 2


@pytest.mark.parametrize("name", ["x.json", "x.csv", "x.jsonl"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(here, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("video_gn.commands.infer._predictor", lambda *_: pytest.fail("the work must not begin"))
    (tmp_path / "file").touch()
    (tmp_path / name).mkdir()
    for output, why in (
        (tmp_path / "file" / name, "[^ ]+/file is no directory"),
        (tmp_path / name, r"Is a directory \(.*\)"),
    ):
        status, printed = in_process(infer(output), here, capsys)
        assert status == 2
        assert re.search(rf"^video-gn: error: {output} could not be written: {why}\. Choose", printed), printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", name]


def test_the_table_is_printed_whatever_happens_and_is_bounded(here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("video_gn.commands.infer._TABLE_ROWS", 9)
    monkeypatch.setenv("COLUMNS", "100")

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x.json"))

    with monkeypatch.context() as patched:
        patched.setattr("video_gn.labelling.lines.write_results", no_room)
        status, printed = in_process(infer(tmp_path / "x.json"), here, capsys)
    assert status == 2
    assert f"error: {tmp_path / 'x.json'} could not be written: No space left on device. " in printed
    check_table(printed)
    status, printed = in_process(infer(tmp_path / "x.json"), here, capsys)
    assert status == 3 and "resuming after 30 videos" in printed
    check_table(printed)


def check_table(printed):
    assert "28 labelled, 2 failed" in printed
    assert "the first 9 of them; the file has all" in " ".join(printed.split())
    assert "v/08 ü.mp4 │" in printed and "v/09 ü.mp4 │" not in printed


@pytest.mark.parametrize(("total", "shown"), [(None, "7/?"), (9, "7/9"), (9, None)])
def test_progress_on_a_terminal(monkeypatch, total, shown):
    """None is shown with --quiet."""
    from video_gn.commands._terminal import counted, set_up_logging, with_progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    set_up_logging(quiet=shown is None)
    assert list(with_progress(iter("ab"), total, 5)) == ["a", "b"]
    assert (shown or "") in sys.stderr.getvalue()
    with counted("windows") as count:
        count(9, 9)
    assert ("windows" in sys.stderr.getvalue()) == (sys.stderr.getvalue() != "") == (shown is not None)
