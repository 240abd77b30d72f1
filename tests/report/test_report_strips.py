"""Strips of frames on the page, and the videos that it shows."""

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_run import checked, make_test, make_training
from PIL import Image

from video_gn.__main__ import main
from video_gn.decoding import open_video
from video_gn.report import analysis, strips, write_comparison, write_report
from video_gn.report.plots import clip_chart
from video_gn.report.reading import read_run
from video_gn.report.strips import read_strips
from video_gn.report.views import read_clips

PICTURE = re.compile(r'<img class="strip" .*? width="(\d+)" height="(\d+)" src="data:image/jpeg;base64,([^"]+)">')


def put_videos(run, videos):
    """Give the test's rows these paths, one after another."""
    path = run / "test/predictions.csv"
    with path.open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *([str(v), *row[1:]] for v, row in zip(videos, rows, strict=False))])


def test_mistakes_and_hardest_videos_have_frames(tiny_videos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    make_training(run)
    labels, scores = make_test(run)
    broken = tmp_path / "broken.mp4"
    broken.write_text("<html>")
    put_videos(run, [*sorted(tiny_videos.rglob("*.mp4"))[:27], broken, tmp_path / "gone.mp4", broken])
    # Every video is on the page, whichever it is.
    monkeypatch.setattr("video_gn.report.page._NUM_MISTAKES", 30)
    monkeypatch.setattr("video_gn.report.page._NUM_HARDEST", 30)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    text = checked(page)
    assert len(PICTURE.findall(page)) == 27
    for width, height, data in PICTURE.findall(page):
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        picture.load()  # all of it
        assert picture.size == (int(width), int(height)) == (575, 96)
    assert text.count("no frames: not found") == 1 and text.count("no frames: not a video that FFmpeg can read") == 2
    assert "The frames are spread evenly over the whole file." in text
    best = scores.astype(np.float64).mean(1).argmax(1)
    for place in np.flatnonzero(best != labels)[:5].tolist():
        right = int((scores[place].argmax(1) == labels[place]).sum())
        assert f'<td data-h="views right">{right or "none"} of 8</td>' in page

    assert main(["report", str(run), "--no_frames"]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page and "no frames" not in checked(page)


def test_videos_that_are_gone(tmp_path):
    make_test(tmp_path)
    page = write_report(tmp_path, frames=True).read_text(encoding="utf-8")
    text = checked(page)
    assert "<img" not in page and "no frames: " not in text
    assert "No frames are shown: none of these videos could be read now (data/<v>" in text
    assert text.count(".mp4: not found)") == 2, "said once for each table"


def test_the_frames_are_those_of_equal_parts(tiny_videos):
    path = str(tiny_videos / "one/07.mp4")
    strip = read_strips([path])[path]
    picture = Image.open(io.BytesIO(base64.b64decode(strip.uri.partition(",")[2])))
    places = [2, 8, 13, 18, 24]  # of 27 frames
    with open_video(path) as reader:
        assert reader.info.num_frames == 27
        frames = [Image.fromarray(frame.numpy()) for frame in reader.frames_at(places)]
    shown = [picture.crop((part * 115, 0, part * 115 + 115, 96)) for part in range(5)]
    far = np.array([[_distance(part, frame.resize((115, 96))) for frame in frames] for part in shown])
    assert far.argmin(1).tolist() == [0, 1, 2, 3, 4] and np.diag(far).max() < 12


def _distance(first, second):
    return np.abs(np.asarray(first, dtype=np.float64) - np.asarray(second)).mean()


def test_a_video_that_gives_no_data_does_not_stop_the_page(tiny_videos, tmp_path, monkeypatch):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    good = str(tiny_videos / "one/00.mp4")
    found = read_strips([str(pipe), good])
    assert found[good].uri and not found[str(pipe)].uri and found[str(pipe)].problem
    with monkeypatch.context() as patch:
        patch.setattr(strips, "_VIDEO_SECONDS", 0.0)
        assert "no progress for 0 seconds" in read_strips([good])[good].problem
        patch.setattr("video_gn.processes._START_SECONDS", -1.0)
        assert "a worker process must start" in read_strips([good])[good].problem
    monkeypatch.setattr(strips, "_ALL_SECONDS", 0.0)
    monkeypatch.setattr(strips, "_MAX_WORKERS", 1)
    found = read_strips([good, str(tiny_videos / "one/01.mp4"), "gone.mp4", "gone.tar::", "\0", "x" * 5000])
    assert [bool(strip.uri) for strip in found.values()] == [True, False, False, False, False, False]
    assert [strip.problem[:12] for strip in found.values()] == ["", "not read wit", *["not found"] * 4]


def test_the_hardest_are_those_of_the_lowest_scores(tmp_path):
    make_test(tmp_path, num_videos=50)
    found = read_run(tmp_path).predictions
    mistakes = analysis.confident_mistakes(found, 10)
    hardest = analysis.least_certain(found, 12, without=mistakes)
    assert hardest == [p for p in sorted(range(50), key=lambda p: found.scores[p]) if p not in mistakes][:12]
    found.scores[hardest[0]] = np.nan
    assert hardest[0] not in analysis.least_certain(found, 50, without=mistakes)


def test_clip_scores_are_those_of_a_loop_and_come_from_the_same_test(tmp_path):
    labels, scores = make_test(tmp_path)
    places, path = [3, 0, 29], tmp_path / "test/scores.npz"

    def found():
        run = read_run(tmp_path)
        return read_clips(run.scores, run.predictions, places, 2)

    clips = found()
    assert list(clips) == places
    for place in places:
        pred = scores[place].astype(np.float64).mean(0).argmax()
        of_clips = [(scores[place, 2 * clip] + scores[place, 2 * clip + 1]) / 2 for clip in range(4)]
        assert clips[place].pred == pytest.approx([scores_Y[pred] for scores_Y in of_clips], abs=1e-6)
        assert clips[place].label == pytest.approx([scores_Y[labels[place]] for scores_Y in of_clips], abs=1e-6)
        right = sum(view.argmax() == labels[place] for view in scores[place])
        assert (clips[place].num_right, clips[place].num_views) == (right, 8)
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"PK" + whole[500:]):
        path.write_bytes(damage)
        assert found() == {}
    np.savez(path, labels=labels, scores=scores[::-1])
    assert found() == {}, "its rows are not those of predictions.csv"
    np.savez(path, labels=labels + 7, scores=scores)
    assert found() == {}, "its labels are none of its classes"
    np.savez_compressed(path, labels=labels, scores=scores)
    assert found() == {}
    path.unlink()
    assert found() == {}


def test_scores_over_clips_are_drawn_where_they_are():
    """Two clips: 40 px of axis, then clips at a quarter and three quarters of 380 px; 0 is at 51 px, 1 at 5."""
    chart = clip_chart([0.5, 1.0], [0.25, 0.0])
    paths = [path.attrib["d"] for path in ElementTree.fromstring(chart).iter("path")]
    assert paths[2:] == ["M135.0 28.0L325.0 5.0", "M135.0 39.5L325.0 51.0"]
    assert "Scores of 2 clips: predicted class 50.0% to 100.0%, labelled class 0.0% to 25.0%" in chart
    assert "labelled" not in clip_chart([0.5, 1.0], [0.5, 1.0]) + clip_chart([0.5, 1.0], [])
    assert clip_chart([0.5], [0.5]) == ""


def test_unlabelled_videos_are_shown_by_how_hard_they_are(tmp_path):
    make_test(tmp_path, labelled=False)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Hardest videos" in checked(page) and "rank of the label" not in page and "views right" not in page


def _luminance(rgb):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(color):
    color = color if len(color) == 6 else "".join(2 * digit for digit in color)
    return [int(part, 16) / 255 for part in re.findall("..", color)]


def test_lines_can_be_seen_on_light_and_dark():
    """Contrast of at least 3 to the background (WCAG 2.1, 1.4.11), also of the faint line, which lets it through."""
    css = (Path(strips.__file__).parent / "page.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(themes) == 2
    for theme in themes:
        colors = {name: _rgb(value) for name, value in re.findall(r"--([\w-]+): #(\w+);", theme)}
        faint, back = float(re.search(r"--faint: ([.\d]+)", theme)[1]), colors["back"]
        lines = [colors[name] for name in ("c1", "c2", "c3", "c4")]
        lines.append([faint * c + (1 - faint) * b for c, b in zip(colors["c1"], back, strict=True)])
        for line in lines:
            low, high = sorted([_luminance(line), _luminance(back)])
            assert (high + 0.05) / (low + 0.05) >= 3, (line, theme)


_MEASURE = """<script>
const sideways = [...document.querySelectorAll(".scroll, pre")].filter(e => e.scrollWidth > e.clientWidth);
const seen = [innerWidth, document.documentElement.scrollWidth, sideways.map(e => e.getAttribute("aria-label"))];
parent.postMessage(JSON.stringify(seen), "*");
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_nothing_scrolls_sideways_on_a_phone(tiny_videos, tmp_path):
    """In a frame of 390 px, with long names of classes and files, many columns, strips, and all that is folded open."""
    run = tmp_path / ("a_long_name_of_a_run_" * 5)
    long = [f"{'a long name of a class ' * 6}{number}" for number in range(28)] + ["Donaudampfschifffahrt" * 9]
    failed = [("a/long/path/" * 20 + "x.mp4", "a_long_reason_without_a_blank_" * 8)]
    make_training(run)
    make_test(run, num_videos=200, classes=long, failed=failed)
    put_videos(run, [*sorted(tiny_videos.rglob("*.mp4")), *("/a_long_path" * 15 + f"/{n}.mp4" for n in range(170))])
    other = run.with_name(f"{run.name}_other")
    shutil.copytree(run, other)
    (other / "config.yaml").write_text(f"seed_everything: {'1234567890' * 9}\na_long_key_{'of_a_setting_' * 9}: 1\n")
    with (run / "test/predictions.csv").open() as file, (other / "test/predictions.csv").open("w") as copy:
        for number, row in enumerate(csv.reader(file)):  # every third video is predicted otherwise, the last is gone
            row[2] = long[number % len(long)] if number % 3 == 1 else row[2]
            csv.writer(copy).writerows([row] if number < 200 else [])
    pages = [write_report(run, frames=True), write_comparison([run, other], tmp_path / "compare.html")]
    for path in pages:
        page = path.read_text(encoding="utf-8")
        checked(page)
        assert _sideways(page, tmp_path) == [390, 390, []], path.name


def _sideways(page, tmp_path):
    """Width of a phone's window and of a page in it, and what has to be pushed sideways."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page, flags=re.S)  # it would stop the script
    page = page.replace("<details>", "<details open>").replace("</body>", _MEASURE)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "phone.html").write_text(
        "<script>onmessage = event => { document.title = event.data }</script>"
        '<iframe src="page.html" style="width: 390px; height: 2000px; border: 0"></iframe>'
    )
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
    words += [f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom", f"file://{tmp_path / 'phone.html'}"]
    done = subprocess.run(["chromium", *words], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found[1])
