"""The page of several runs side by side."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from fake_run import CLASSES, checked, make_test, make_training
from markupsafe import Markup

from video_gn.__main__ import main
from video_gn.commands import report
from video_gn.errors import ConfigError, RunError
from video_gn.report import paired, write_comparison
from video_gn.report.reading import read_run
from video_gn.report.strips import Strip
from video_gn.report.training import together

HOSTILE = "</td><script>alert(1)</script>'\"&"


@pytest.fixture
def runs(tmp_path):
    """Three runs; the second tested 5 videos more, the third 10 fewer."""
    for number, (name, num_videos) in enumerate((("a", 30), ("b", 35), ("c", 20))):
        make_training(tmp_path / name, num_steps=20 + 10 * number)
        labels, scores = make_test(tmp_path / name, num_videos=num_videos)
        rng = np.random.default_rng(number)
        scores = rng.dirichlet(np.ones(7), size=(num_videos, 8)).astype(np.float32)
        scores[np.arange(num_videos), :, labels] += 0.1 * number
        rewrite(tmp_path / name, scores / scores.sum(2, keepdims=True))
    return [tmp_path / name for name in "abc"]


def rewrite(run, scores):
    """Give a test other scores; labels are drawn in order of the videos, so they are the same in all."""
    labels = np.load(run / "test/scores.npz")["labels"]
    np.savez(run / "test/scores.npz", labels=labels, scores=scores)
    mean = scores.astype(np.float64).mean(1)
    order = np.argsort(-mean, axis=1, kind="stable")[:, :5]
    with (run / "test/predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "label", "pred", "score", "top5", "num_views"])
        for place, best in enumerate(order):
            names = [CLASSES[i] for i in best]
            label = CLASSES[np.random.default_rng(place).integers(7)]
            writer.writerow([f"data/<v> {place}.mp4", label, names[0], mean[place].max(), "|".join(names), 8])


def rows_of(run):
    with (run / "test/predictions.csv").open(newline="") as file:
        return {row["video"]: row for row in csv.DictReader(file)}


def page_of_runs(runs, **words):
    return write_comparison(runs, runs[0].parent / "compare.html", **words).read_text(encoding="utf-8")


def test_figures_are_those_of_loops_over_the_tables(runs):
    text = checked(page_of_runs(runs))
    tables = [rows_of(run) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        right = sum(row["label"] == row["pred"] for row in table.values())
        assert f"{run.name}{100 * right / len(table):.1f}%" in text.replace(" ", "")
    p_values = []
    for other in tables[1:]:
        both = [video for video in tables[0] if video in other]
        first = {video for video in both if tables[0][video]["pred"] == tables[0][video]["label"]}
        second = {video for video in both if other[video]["pred"] == other[video]["label"]}
        only = len(first - second), len(second - first)
        difference = f"{100 * (only[1] - only[0]) / len(both):+.1f}".replace("-", "−")
        p_values.append(paired.mcnemar(*only))
        start = (
            f"{len(both)} {100 * len(first) / len(both):.1f}% {100 * len(second) / len(both):.1f}% {only[0]} {only[1]}"
        )
        assert re.sub(r"\s", "", f"{start} {difference}") in text.replace(" ", "")
    for p, adjusted in zip(p_values, paired.holm(p_values), strict=True):
        assert f"{p:.2g}{adjusted:.2g}" in text.replace(" ", "")
    assert "Of 2 comparisons some differ by chance" in text
    assert "b and a: 0 videos only a tested, 5 only b. They are not compared." in text
    assert "c and a: 10 videos only a tested, 0 only c." in text
    assert "Only a tested these data/<v> 20.mp4data/<v> 21.mp4" in text
    assert "Only b tested these data/<v> 30.mp4" in text


def test_classes_are_sorted_by_what_they_gained(runs):
    page = page_of_runs(runs[:2])
    found = paired.pair(*(read_run(run).predictions for run in runs[:2]), ("a", "b"))
    section = page.partition("<h3><bdi>b</bdi> against")[2].partition("</table>")[0]
    gained = [int(cell.replace("−", "-")) for cell in re.findall(r'data-h="gained" class="n">([^<]*)<', section)]
    assert gained == [row.gained for row in found.classes] == sorted(gained, reverse=True)
    assert "Holm" not in checked(page), "one comparison needs no adjustment"


def test_curves_and_settings_that_differ(runs):
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text().replace("seed_everything: 7", "seed_everything: 8\nrun_dir: elsewhere/b"))
    (runs[1] / "test/config.yaml").write_text(
        "data: {views: {num_clips: 4}}\nckpt_path: moved/b/best.ckpt\nrun_dir: moved/b\n"
    )
    (runs[0] / "test/config.yaml").write_text("data: {views: {num_clips: 3}}\n")
    text = checked(page_of_runs(runs))
    assert "Training loss" in text and "Validation top-1" in text
    assert text.count("optimizer step") == 3
    settings = text.partition("settingabc")[2]
    assert "ckpt_path–in the test RUN_DIR/best.ckpt–" in settings
    assert "data.views.num_clipsin the test 3in the test 4–" in settings
    assert "seed_everything787; in the test 0" in settings
    assert (
        "run_dir" not in settings
        and "elsewhere" not in settings
        and "moved" not in settings
        and "data.clip.stride" not in settings
    )


def test_curves_of_different_batches_are_over_the_same_clips():
    """Of 32 videos: 4 steps of 8 clips an epoch, or 16 of 2; one epoch ends at the same place in both."""
    runs = [
        [{"step": step, "epoch": (step - 1) // steps, "clips": size * ((step - 1) % steps + 1), "val/top1": 0.5}
         for step in range(1, 2 * steps + 1)]
        for steps, size in ((4, 8), (16, 2))
    ]  # fmt: skip
    (chart,) = together(["large", "small"], runs)
    assert "clips seen" in chart and "optimizer step" not in chart
    ends = [re.findall(rf'cx="([^"]*)"[^>]*><title>step {step}, epoch 1: {name} ', chart) for step, name in
            ((4, "large"), (16, "small"))]  # fmt: skip
    assert ends[0] == ends[1] and len(ends[0]) == 1
    del runs[1][0]["clips"]
    runs[1] = runs[1][:1]
    assert "optimizer step" in together(["large", "small"], runs)[0]


def test_videos_that_changed_are_those_of_which_both_runs_were_surest_with_frames(runs, monkeypatch):
    def read(videos):
        return {video: Strip(Markup(f"data:image/jpeg;base64,{len(video)}"), 420, 48) for video in videos}

    monkeypatch.setattr("video_gn.report.comparison.read_strips", read)
    page = page_of_runs(runs[:2], frames=True)
    checked(page)
    first, other = (rows_of(run) for run in runs[:2])
    for head, one, two in (
        ("right, <bdi>a</bdi> is wrong", other, first),
        ("wrong, <bdi>a</bdi> is right", first, other),
    ):
        changed = [
            video for video in first
            if one[video]["pred"] == one[video]["label"] and two[video]["pred"] != two[video]["label"]
        ]  # fmt: skip
        changed.sort(key=lambda video: -float(first[video]["score"]) - float(other[video]["score"]))
        table = page.partition(f"<h3><bdi>b</bdi> is {head}")[2].partition("</table>")[0]
        assert re.findall(r'"path">data/&lt;v&gt; (\d+)', table) == [re.search(r"\d+", v)[0] for v in changed[:6]]
        assert table.count('<img class="strip"') == min(6, len(changed)) > 0


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(RunError, match="runs must be different directories, got '.*a' twice"):
        page_of_runs([runs[0], runs[0]])
    with pytest.raises(RunError, match="runs of a page must be at most 8, got 9"):
        page_of_runs([runs[0]] * 9)
    (tmp_path / "d").mkdir()
    make_training(tmp_path / "d")
    with pytest.raises(
        RunError, match=r"must each have a test, got '.*d', whose test/predictions.csv is missing. Test"
    ):
        page_of_runs([runs[0], tmp_path / "d"])
    (tmp_path / "d/test").mkdir()
    (tmp_path / "d/test/predictions.csv").write_text("x\n")
    with pytest.raises(RunError, match=r"whose test/predictions.csv cannot be read: ValueError: line 1"):
        page_of_runs([runs[0], tmp_path / "d"])
    make_test(tmp_path / "d", classes=CLASSES[:5])
    with pytest.raises(RunError, match="classes must be the same in all runs, got 7 in a and 5 in d"):
        page_of_runs([runs[0], tmp_path / "d"])
    assert not (tmp_path / "compare.html").exists()
    with pytest.raises(ConfigError, match="--output must be given with several runs, got none. Name the page, such as"):
        report.main("report", list(map(str, runs)))
    with pytest.raises(ConfigError, match="--validation must stand with a single run"):
        report.main("report", ["a", "b", "--output", "c.html", "--validation", "d"])
    with pytest.raises(ConfigError, match=r"--output must end in \.html, got 'c.txt'"):
        report.main("report", ["a", "b", "--output", "c.txt"])


def test_the_command_writes_the_page(runs, tmp_path):
    output = tmp_path / "compare.html"
    assert main(["report", *map(str, runs), "--output", str(output), "--no_frames"]) == 0
    checked(output.read_text(encoding="utf-8"))
    assert not (runs[0] / "report.html").exists()


def test_runs_of_one_name_are_told_apart_by_their_paths(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "more/a")
    text = checked(page_of_runs([runs[0], tmp_path / "more/a"]))
    assert f"{tmp_path}/a · {tmp_path}/more/a" in text
    assert "No video" not in text and "is right," not in text


def test_no_name_becomes_markup(runs, tmp_path):
    for run in runs:
        path = run / "test/predictions.csv"
        path.write_text(
            path.read_text().replace("jack", HOSTILE.replace('"', '""')).replace("data/", f"{HOSTILE[:-2]}/")
        )
        config = {"model": {"net": {HOSTILE: f"{HOSTILE}{run.name}"}}, "run_dir": str(run)}
        (run / "config.yaml").write_text(json.dumps(config))
    hostile = tmp_path / f"<script>{HOSTILE.replace('/', '')}"
    runs[2].rename(hostile)
    page = page_of_runs([*runs[:2], hostile])
    checked(page)
    assert "<script" not in page
