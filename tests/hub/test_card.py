"""Model cards: each figure was measured, and nothing of the disk is told."""

import re

import pytest
import yaml
from markdown_it import MarkdownIt
from own_net import own_run
from shared_runs import make_run

from video_gn.__main__ import main
from video_gn.errors import ConfigError, RunError
from video_gn.hub import build_card


def front_matter(card):
    head = card.split("---\n")
    assert head[0] == ""
    return yaml.safe_load(head[1])


def rows(card):
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_a_tested_run(tmp_path):
    net = make_run(tmp_path)
    card, untested = build_card(tmp_path, license="apache-2.0")
    assert untested == ""
    assert front_matter(card) == {
        "license": "apache-2.0",
        "library_name": "video-gn",
        "pipeline_tag": "video-classification",
        "tags": ["video-classification", "action-recognition", "i3d"],
        "model-index": [
            {
                "name": "I3D ResNet-50, group norm (2 groups), 3 classes",
                "results": [
                    {
                        "task": {"type": "video-classification"},
                        "dataset": {"name": "held_out.csv", "type": "held-out-csv"},
                        "metrics": [
                            {"type": "accuracy", "value": 0.75, "name": "top-1 accuracy"},
                            {"type": "accuracy", "value": 0.625, "name": "mean class accuracy"},
                        ],
                    }
                ],
            }
        ],
    }
    found = rows(card)
    # Wilson's interval of 6 right of 8, by hand: (0.75 + z^2/16 -+ z sqrt(0.75 * 0.25 / 8 + z^2/256)) / (1 + z^2/8)
    assert found["top-1 accuracy"] == ["75.0%", "40.9 to 92.9%"]
    assert found["mean class accuracy"] == ["62.5%", ""]
    assert found["coverage: videos that could be read"] == ["88.89%", ""]
    assert "top-5 accuracy" not in found
    assert "Measured on 9 videos of `held_out.csv`, 2 clips × 3 crops of each" in card
    number = sum(p.numel() for p in net.parameters())
    assert found["parameters"] == [f"{number / 1e6:.2f} M ({number:,})"]
    assert found["property"] == found["setting"] == ["value"] and "Non-local blocks" not in found
    assert found["norm"] == ["group norm (2 groups)"] and found["clip"] == ["8 frames, stride 2"]
    assert found["views of a video"] == ["2 clips, of each the center crop"]
    assert found["mean, std of pixels in [0, 1]"] == ["0.1, 0.2, 0.3; 0.4, 0.5, 0.6"]
    assert (
        found["epochs"] == ["12"] and found["learning rate"] == ["0.05"] and found["batch size of a process"] == ["4"]
    )
    assert found["training videos"] == ["train\\_list.csv"] and found["started from"] == ["start.pyth"]
    assert found["averaged weights"] == ["ema"] and found["step of this checkpoint"] == ["1,234"]
    assert found["versions"] == ["python 3.11.1, torch 2.11.0, lightning 2.6.0, av 18.0"]
    assert "trained with video-gn 0.0.9" in card and "3: a, b, ç, d." in card
    assert "ask the owner" not in card and "validation videos, by which" not in card
    assert "somebody" not in card and str(tmp_path) not in card


@pytest.mark.parametrize("test", ["", "test: /home/somebody/lists/val.csv,"])
def test_tested_on_validation_videos(tmp_path, test):
    make_run(tmp_path, test=test)
    card, _ = build_card(tmp_path)
    assert "of `val.csv`" in card and "these are the validation videos, by which the checkpoint was chosen" in card
    assert "license" not in front_matter(card) and "No license is stated" in card


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"checkpoint_digest": "SHA-256 0"}, "the run's test is of other weights than these."),
        ({"checkpoint_digest": None}, "the run's test is of other weights than these."),
        ({"top1": None, "mean_class_accuracy": None}, "no video of the run's test has a label."),
        (None, "the run holds no results of a test."),
    ],
)
def test_what_was_not_tested_has_no_figures(tmp_path, metrics, why, caplog):
    make_run(tmp_path, **metrics or {})
    if metrics is None:
        (tmp_path / "test/metrics.json").unlink()
    card, untested = build_card(tmp_path)
    assert untested == why and f"## Results\n\nNot tested: {why}\n\n## Use" in card
    assert "%" not in card and "model-index" not in front_matter(card)
    assert "How well it labels videos was not measured" in card


def test_other_clips_in_the_test_are_told(tmp_path):
    make_run(tmp_path, test="test: a.csv, clip: {num_frames: 16, stride: 2},")
    assert "Clips of the test had 16 frames of stride 2, other than below." in build_card(tmp_path)[0]


def test_names_are_no_markup(tmp_path):
    names = ["<script>alert(1)</script>", "a|b", "[x](http://evil)", "`c` *d* _e_ &lt;", "\x1b[31mred", "走路"]
    make_run(tmp_path, classes=names)
    card, _ = build_card(tmp_path)
    page = MarkdownIt("commonmark").enable("table").render(card.split("## Classes")[1].split("## Training")[0])
    assert not re.findall(r"<(?!/?p>)", page), page
    text = page.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert all(name in text for name in names if name[0] != "\x1b") and "\x1b" not in card


def test_a_network_of_pytorchvideos_hub(tmp_path):
    make_run(tmp_path, network="x3d_s")
    card, _ = build_card(tmp_path)
    head = front_matter(card)
    assert head["tags"][-1] == "x3d_s" and head["model-index"][0]["name"].startswith("x3d_s, group norm (at most 2")
    assert rows(card)["architecture"] == ["x3d\\_s"] and rows(card)["norm"] == ["group norm (at most 2 groups)"]


def test_a_network_of_somebodys_own(tmp_path):
    own_run(tmp_path)
    config = (tmp_path / "config.yaml").read_text()
    net = "{class_path: nets.make_net, init_args: {num_classes: 3, kind: small, weights: /home/somebody/a.pth}}"
    (tmp_path / "config.yaml").write_text(
        config.replace("{class_path: video_gn.models.i3d, init_args: {depth: 50}}", net)
    )
    card, _ = build_card(tmp_path)
    head, found = front_matter(card), rows(card)
    assert head["model-index"][0]["name"] == "MyNet, 3 classes" and head["tags"][-1] == "action-recognition"
    assert found["architecture"] == ["MyNet"] and "norm" not in found
    # 4 x 3 x 27 + 4 of the convolution, 4 x 4 + 1 of Batch Norm, 3 x 4 + 3 of the classifier
    assert found["parameters and buffers"] == ["0.00 M (360)"] and found["top-1 accuracy"] == ["75.0%", "40.9 to 92.9%"]
    assert "from nets import make_net\n\nnet = make_net(num_classes=3, kind='small', weights=...)\n" in card
    assert 'video_gn.load("hf:OWNER/NAME", net=net)' in card and "video-gn infer" not in card
    assert "somebody" not in card


def test_many_classes(tmp_path):
    make_run(tmp_path, classes=[f"c{number}" for number in range(33)])
    assert "c28, c29 and 3 more, in `config.json`." in build_card(tmp_path)[0]


def test_the_command(tmp_path, caplog):
    make_run(tmp_path / "run")
    assert main(["card", str(tmp_path / "run"), "--license", "mit"]) == 0
    assert (tmp_path / "run/card.md").read_text(encoding="utf-8") == build_card(tmp_path / "run", license="mit")[0]
    assert "Not tested" not in caplog.text
    with pytest.raises(RunError, match="run_dir must be a directory"):
        build_card(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"--license must be an identifier such as apache-2\.0, got 'mit\\nx: y'\."):
        build_card(tmp_path / "run", license="mit\nx: y")
