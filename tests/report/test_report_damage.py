"""The page of a run that is damaged or comes from elsewhere: it comes out, bounded, and names each damaged file."""

import io
import os
import time
import zipfile

import numpy as np
import pytest
from fake_run import METRICS, checked, make_test, make_training, page_of

from video_gn.__main__ import main
from video_gn.report import reading

LONG = "n" * 100_000
DEEP = "[" * 100_000
MANY_DIGITS = "1" * 400


def alias_bomb():
    return "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))


def merge_bomb():
    return "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 40))


def npz(*, compressed=False, **arrays):
    data = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(data, **arrays)
    return data.getvalue()


def npy(header):
    """A scores.npz whose scores have a header of their own, and no data."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in (
            ("labels.npy", "{'descr': '<i8', 'fortran_order': False, 'shape': (0,)}"),
            ("scores.npy", header),
        ):
            raw = text.encode()
            archive.writestr(name, b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw)
    return data.getvalue()


LABELS, SCORES = np.zeros(30, np.int64), np.full((30, 8, 7), 1 / 7, np.float32)
ROW = "1,0,0.1,3,2,0.5,0.6\n"
DAMAGED = {
    "config.yaml": [b"a: " + DEEP.encode(), alias_bomb(), merge_bomb(), "a: &a [*a]", b"\0\xff", "", f"a: {LONG * 11}"],
    "metrics.csv": [
        b"", METRICS + ROW + f"{MANY_DIGITS},0,1,1,1,1,1\n", METRICS + ROW + "inf,0,1,1,1,1,1\n",
        METRICS + ROW + "2,nan,1,1,1,1,1\n", METRICS + ROW + f"{LONG},0\n", bytes(4096), METRICS + ROW + "\0\n",
    ],
    "test/metrics.json": [b'{"a":' + DEEP.encode(), '{"top1": ' + "1" * 5000 + "}", b"\0", "", f'"{LONG}"'],
    "test/predictions.csv": [
        b"\0", f"video,label,pred,score,top5\n{LONG * 2},a,a,1,a\n", "video,label,pred,score,top5\nv,a,a,1e300,a\n",
        "video,label,pred,score,top5\nv,a\n", f"video,label,pred,score,top5\nv,a,a,{MANY_DIGITS},a\n",
    ],
    "test/scores.npz": [
        b"", b"PK\x05\x06", npz(labels=LABELS, scores=SCORES, compressed=True), npz(labels=LABELS),
        npz(labels=LABELS, scores=SCORES.astype(object)), npz(labels=LABELS.astype(object), scores=SCORES),
        npz(labels=LABELS, scores=SCORES[0]), npz(labels=LABELS[:9], scores=SCORES), npz(labels=LABELS, scores=LABELS),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9, 1000000000000, 1000000000000)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2, 2)}"), npy("{'descr': '|O'" + "(" * 300),
        npy("("),
    ],
}  # fmt: skip


@pytest.fixture
def a_run(tmp_path):
    make_training(tmp_path / "run")
    make_test(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", list(DAMAGED))
def test_each_damage_is_named_and_ends_nothing(a_run, name):
    for content in DAMAGED[name]:
        (a_run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        start = time.monotonic()
        page = page_of(a_run)
        text = checked(page)
        assert f"{name} cannot be read: " in text or f"{name} is damaged at line" in text, content[:80]
        assert len(page) < 300_000 and time.monotonic() - start < 30
        assert "Reproduce" in text


@pytest.mark.parametrize("kind", ["directory", "pipe", "loop", "nowhere", "zeros"])
def test_what_is_no_file_is_named(a_run, kind, capsys):
    for name in (*reading.FILES, "config.resume-001.yaml", "report.html"):
        if name == "metrics.csv":
            continue  # one file at least
        path = a_run / name
        path.unlink(missing_ok=True)
        if kind == "directory":
            (path / "inside").mkdir(parents=True)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"loop": path.name, "nowhere": "/nowhere/at/all", "zeros": "/dev/zero"}[kind])
    assert main(["report", str(a_run)]) == 0
    text = checked((a_run / "report.html").read_text(encoding="utf-8"))
    for name in reading.FILES:
        assert (f"{name} cannot be read: " in text) == (name != "metrics.csv")


def test_links_that_lead_out_of_the_run_are_not_followed(a_run, tmp_path):
    for name in reading.FILES:
        (tmp_path / "outside" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outside" / name).write_text("password: secret\n")
        if name != "metrics.csv":
            (a_run / name).unlink()
            (a_run / name).symlink_to(tmp_path / "outside" / name)
    page = page_of(a_run)
    assert "secret" not in page
    assert checked(page).count("which is not followed. What it would show is left out.") == len(reading.FILES) - 1
    for name in ("metrics.json", "config.yaml", "predictions.csv", "scores.npz"):
        (a_run / "test" / name).unlink()
    (a_run / "test").rmdir()
    (a_run / "test").symlink_to(tmp_path / "outside/test")  # also through a directory
    assert "secret" not in page_of(a_run)


def test_links_within_a_run_and_a_run_that_is_a_link_are_ordinary(a_run, tmp_path):
    (a_run / "config.yaml").rename(a_run / "mine.yaml")
    (a_run / "config.yaml").symlink_to("mine.yaml")
    (tmp_path / "linked").symlink_to(a_run)
    assert "cannot be read" not in checked(page_of(tmp_path / "linked"))


HOSTILE = ["\0", "\x1b[2J", "a\nb", "\udc80", "\u202egpj.exe", LONG, "9" * 6000, "&lt;", "']]>", "=1+1", "'-"]


def test_names_of_any_characters(a_run):
    make_test(a_run, classes=HOSTILE[1:], failed=[(name, name) for name in HOSTILE])
    metrics = (a_run / "test/metrics.json").read_bytes()
    (a_run / "test/metrics.json").write_bytes(metrics.replace(b'"=1+1"', b'"\\ud800"'))
    page = page_of(a_run)
    text = checked(page)
    assert "\\x1b[2J" in text and "\\ud800" in text and "\\x80" in text and "\\u202egpj.exe" in text
    assert "99,000 more characters" in text
    assert len(page) < 2_000_000
    assert "cannot be read" not in text


def test_numbers_of_any_size(a_run):
    figures = ["top1", "top5", "mean_class_accuracy", "num_videos", "num_failed", "coverage", "num_clips", "num_crops"]
    huge = [MANY_DIGITS, "-" + MANY_DIGITS, "1e308", "-1e308", "NaN", "Infinity", "-Infinity", "1e-320", "-3"]
    values = [*huge, "null", '"x"', "[]"]
    for shift in range(len(values)):
        turned = values[shift:] + values[:shift]
        entries = [f'"{name}": {value}' for name, value in zip(figures, turned, strict=False)]
        curve = f'{{"num_clips": [1, {turned[0]}], "top1": [0.5, {turned[1]}], "top1_single_view": {turned[2]}}}'
        (a_run / "test/metrics.json").write_text(f'{{{", ".join(entries)}, "by_num_clips": {curve}}}')
        steps = [huge[shift % 9], huge[(shift + 1) % 9], "-0", "5e-324", "1e60", "1e15"]
        rows = "".join(f"{i},{i},{s},{s},{s},{s},{s}\n" for i, s in enumerate(steps))
        (a_run / "metrics.csv").write_text(METRICS + rows + f"{2**53 - 1},{2**53 - 1},1,1,1,1,1\n")
        page = page_of(a_run)
        checked(page)
        assert len(page) < 300_000


def many_classes(directory, number):
    rows = "".join(f"v{i}.mp4,class {i},class {i // 2},0.5,class {i}|x,1\n" for i in range(number))
    (directory / "test/predictions.csv").write_text("video,label,pred,score,top5,num_views\n" + rows)
    page = page_of(directory)
    assert len(page) < 5_000_000
    assert f"{number - 2000:,} more classes are left out" in checked(page)


def test_more_classes_than_a_page_can_hold(a_run):
    many_classes(a_run, 9000)


@pytest.mark.slow
def test_a_million_classes(a_run):
    many_classes(a_run, 1_000_000)


def test_more_resumes_than_a_page_can_hold(a_run):
    for number in range(70):
        (a_run / f"config.resume-{number:03d}.yaml").write_text("a: 1")
    text = checked(page_of(a_run))
    assert "20 earlier ones left out" in text and "config.resume-019.yaml" not in text
