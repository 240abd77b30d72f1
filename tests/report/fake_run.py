"""A run directory's files without a run, and checks that every page must pass."""

import csv
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from video_gn.evaluation.clip_curve import ClipCurve
from video_gn.report import write_report
from video_gn.report.analysis import Predictions

CLASSES = ["bend", "jack", "<b>&\"'</b>", "走路", "a|b", "class 10", "class 2"]
NUM_CLIPS, NUM_CROPS = 4, 2
METRICS = "step,epoch,lr,train/loss,val/loss,val/top1,val/top5\n"


def predictions_of(labels, preds, ranks=None, scores=None, num_classes=None):
    size = num_classes or max([*labels, *preds]) + 1
    return Predictions(
        videos=[f"{i}.mp4" for i in range(len(labels))],
        classes=[f"c{i}" for i in range(size)],
        labels=np.array(labels, dtype=np.int64),
        preds=np.array(preds, dtype=np.int64),
        scores=np.array(scores if scores is not None else [0.5] * len(labels), dtype=np.float64),
        ranks=np.array(ranks if ranks is not None else [0] * len(labels), dtype=np.int64),
    )


def make_test(directory, *, num_videos=30, labelled=True, classes=CLASSES, failed=(), seed=0):
    """test/ of a run, written the way the test command writes it; returns labels and scores (V, K, Y)."""
    rng = np.random.default_rng(seed)
    folder = directory / "test"
    folder.mkdir(parents=True, exist_ok=True)
    labels = rng.integers(len(classes), size=num_videos) if labelled else np.full(num_videos, -1)
    scores = rng.random((num_videos, NUM_CLIPS * NUM_CROPS, len(classes)))
    scores[np.arange(num_videos), :, labels] += 0.4
    scores = (scores / scores.sum(2, keepdims=True)).astype(np.float32)
    np.savez(folder / "scores.npz", video_ids=np.arange(num_videos), labels=labels, scores=scores)
    mean = scores.astype(np.float64).mean(1)
    order = np.argsort(-mean, axis=1, kind="stable")[:, :5]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video", "label", "pred", "score", "top5", "num_views"])
        for i in range(num_videos):
            label = classes[labels[i]] if labelled else ""
            best = [classes[j] for j in order[i]]
            writer.writerow([f"data/<v> {i}.mp4", label, best[0], f"{mean[i].max():.6f}", "|".join(best), 8])
    metrics = {
        "top1": float((order[:, 0] == labels).mean()) if labelled else None,
        "top5": float((order == labels[:, None]).any(1).mean()) if labelled else None,
        "mean_class_accuracy": 0.5 if labelled else None,
        "num_videos": num_videos + len(failed),
        "num_failed": len(failed),
        "coverage": num_videos / (num_videos + len(failed)),
        "num_clips": NUM_CLIPS,
        "num_crops": NUM_CROPS,
        "by_num_clips": clip_curve(labels, scores),
        "failed": [{"path": path, "reason": reason} for path, reason in failed],
        "checkpoint": f"{directory}/checkpoints/best.ckpt",
    }
    text = json.dumps(metrics, ensure_ascii=False)
    (folder / "metrics.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    return labels, scores


def clip_curve(labels, scores):
    curve = ClipCurve(num_clips=NUM_CLIPS, num_crops=NUM_CROPS)
    for scores_KY, label in zip(scores, labels.tolist(), strict=True):
        curve.add(scores_KY, label)
    return curve.results()


def make_training(directory, num_steps=50):
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, num_steps + 1):
        val = f"{2 / step},{step / 100},{step / 60}" if step % 10 == 0 else ",,"
        lines.append(f"{step},{(step - 1) // 10},{0.1 if step < 30 else 0.001},{3 / step},{val}\n")
    (directory / "metrics.csv").write_text(METRICS + "".join(lines))
    (directory / "config.yaml").write_text(
        "seed_everything: 7\ndata: {clip: {num_frames: 16, stride: 2}, batch_size: 8, train: '<videos>'}\n"
        "model:\n  net: {class_path: video_gn.models.i3d, init_args: {depth: 50, norm: group, num_groups: 32}}\n"
    )


def page_of(directory):
    return write_report(directory).read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Tags must nest and close, ids be unique, links stay inside the page, and nothing be loaded or run."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        assert tag not in ("script", "link", "iframe", "object", "embed", "base"), tag
        assert not any(name.startswith("on") or name in ("srcset", "action") for name in names), attrs
        assert ("src" in names) == (tag == "img"), attrs
        assert all(value.startswith("data:image/jpeg;base64,") for name, value in attrs if name == "src"), attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("path", "rect", "circle"), tag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def checked(page):
    """Text of a page that has passed the checks."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.links
    assert {link[1:] for link in checker.links} == set(checker.ids)
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page
    rest = page
    while "<svg" in rest:
        start = rest.index("<svg")
        end, depth = start, 0
        while True:  # charts hold inner svgs
            opened, closed = rest.find("<svg", end + 1), rest.find("</svg>", end + 1)
            if 0 <= opened < closed:
                depth, end = depth + 1, opened
            elif depth:
                depth, end = depth - 1, closed
            else:
                break
        image = rest[start : closed + 6]
        assert "nan" not in image.split(">")[0]
        ElementTree.fromstring(image)
        rest = rest[closed + 6 :]
    return " ".join("".join(checker.text).split())
