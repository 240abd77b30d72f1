#!/usr/bin/env python3
"""Makes the pictures of README.md from the demo's run directory: python scripts/pictures.py runs/demo

demo.png    frames of four test videos with class and prediction, beside the confusion matrix
report.png  the top of report.html, as headless Chromium shows it; left as it is if Chromium is not installed
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from video_gn.decoding import open_video

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).resolve().parent / "pictures"
FRAMES = (0, 6, 12, 18)
NUM_VIDEOS = 4
RIGHT, WRONG = "#1a7f37", "#c62828"
# A phone shows the picture at a third of this width, so the text is large.
WIDTH_PX, HEIGHT_PX = 1200, 660
FONT_PX = 30
# The browser's window, in CSS pixels; narrow, so that its text is readable on a phone too.
REPORT_WIDTH, REPORT_HEIGHT, REPORT_SCALE = 560, 985, 1.5


def read_predictions(run_dir):
    """Rows of test/predictions.csv."""
    with (run_dir / "test/predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def choose(rows):
    """Right videos of other classes, each of another scene, and the surest mistake, if there is one."""
    mistakes = sorted((r for r in rows if r["label"] != r["pred"]), key=lambda r: -float(r["score"]))[:1]
    classes = sorted({r["label"] for r in rows} - {r["label"] for r in mistakes})
    wanted = NUM_VIDEOS - len(mistakes)
    spread = [classes[i * len(classes) // wanted] for i in range(wanted)]
    right = {name: [r for r in rows if r["label"] == r["pred"] == name] for name in spread}
    return [right[name][min(i, len(right[name]) - 1)] for i, name in enumerate(spread)] + mistakes


def draw_demo(rows, target):
    """The strip of frames and the confusion matrix."""
    plt.rcParams.update({"font.size": FONT_PX * 0.72, "font.family": "DejaVu Sans"})
    figure = plt.figure(figsize=(WIDTH_PX / 100, HEIGHT_PX / 100), dpi=100, facecolor="white")
    for place, row in enumerate(choose(rows)):
        with open_video(row["video"]) as video:
            frames = video.frames_at(FRAMES).numpy()
        strip = np.concatenate([np.pad(f, ((0, 0), (0, 3), (0, 0)), constant_values=255) for f in frames], axis=1)
        bottom = 0.955 * (1 - (place + 1) / NUM_VIDEOS)
        axes = figure.add_axes((0.01, bottom + 0.012, 0.40, 0.73 / NUM_VIDEOS))
        axes.imshow(strip, interpolation="nearest")
        axes.axis("off")
        right = row["label"] == row["pred"]
        text = f"{row['pred']} {float(row['score']):.2f}" + ("" if right else f" (is {row['label']})")
        axes.set_title(text, color=RIGHT if right else WRONG, loc="left", pad=4, fontweight="bold")
    classes = sorted({r["label"] for r in rows} | {r["pred"] for r in rows})
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for row in rows:
        counts[classes.index(row["label"]), classes.index(row["pred"])] += 1
    axes = figure.add_axes((0.66, 0.07, 0.33, 0.83))
    axes.imshow(counts / counts.sum(1, keepdims=True), cmap="Greens", vmin=0, vmax=1.1, aspect="auto")
    for (i, j), number in np.ndenumerate(counts):
        if number:
            color = "white" if number > counts[i].sum() / 2 else "black"
            axes.text(j, i, number, ha="center", va="center", color=color)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xticks([])
    axes.set_xlabel("predicted (same order)")
    num_right = int(np.trace(counts))
    axes.set_title(f"{num_right} of {len(rows)} right", pad=10)
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target)
    plt.close(figure)
    reduce(target)


def draw_report(run_dir, target):
    """The report as a browser shows it; False if there is none."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={scratch}/profile",
        ]
        # Nothing is to be fetched: the page loads nothing, and the browser shall not call home.
        options += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
        options += ["--disable-quic", "--disable-sync"]
        options += [f"--force-device-scale-factor={REPORT_SCALE}", f"--window-size={REPORT_WIDTH},{REPORT_HEIGHT}"]
        options += [f"--screenshot={shot}"]
        page = (run_dir / "report.html").resolve().as_uri()
        subprocess.run([browser, *options, page], check=True, capture_output=True, timeout=120)
        shutil.copy(shot, target)
    reduce(target)
    return True


def reduce(path):
    """Write a picture in 256 colours, opaque: a fraction of the bytes, and readable on a dark page."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main():
    """Make the pictures that can be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="directory that scripts/demo.sh has made, such as runs/demo")
    run_dir = parser.parse_args().run_dir
    draw_demo(read_predictions(run_dir), PICTURES / "demo.png")
    if not draw_report(run_dir, PICTURES / "report.png"):
        print("no Chromium was found: report.png stays as it is", file=sys.stderr)
    for path in sorted(PICTURES.glob("*.png")):
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
