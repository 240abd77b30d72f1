"""What a notebook and a terminal show of a prediction."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from media import write_numbered_video
from PIL import Image

from video_gn.decoding import open_video
from video_gn.decoding.memory import MemoryReader
from video_gn.evaluation.prediction import Prediction

WILD = "<script>alert('x')</script>&\"\x1b[2J\u202e" + "é" * 5000


def label(name, score=0.5):
    return {"label": name, "score": score}


def prediction(path="v.mp4", *, num_clips=10, labels=("walk", "run"), **more):
    top = [label(name, round(0.9 / 2**n, 6)) for n, name in enumerate(labels)]
    clips = [{"start_seconds": n * 0.4, "end_seconds": n * 0.4 + 0.4, "top": top} for n in range(num_clips)]
    return Prediction(path=path, num_frames=100, fps=25.0, top=top, clips=clips, **more)


def segments(num, *, names=("walk", "run", "unsure")):
    return [
        {"label": names[n % len(names)], "start_seconds": 2.0 * n, "end_seconds": 2.0 * n + 2, "score": 0.8}
        for n in range(num)
    ]


class Page(HTMLParser):
    """Tags and text of a page; its tags must close in their order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "tr", "td"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += f"{data}\n"

    def pictures(self):
        uris = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for uri in uris]


def test_a_terminal():
    assert repr(prediction()) == "<v.mp4: walk 0.90, run 0.45; 100 frames, 25 fps, 10 clips>"
    long = prediction(segments=segments(7))
    assert repr(long).endswith(
        "10 clips, 0:00.0 - 0:02.0 walk 0.80, 0:02.0 - 0:04.0 run 0.80, 0:04.0 - 0:06.0 unsure "
        "0.80, 0:06.0 - 0:08.0 walk 0.80, 0:08.0 - 0:10.0 run 0.80, 2 more segments>"
    )
    assert "\x1b" not in repr(prediction(WILD, labels=[WILD]))


@pytest.mark.parametrize("num_clips", [1, 2, 10, 100])
def test_a_strip_shows_the_frames_at_its_times(num_clips, tmp_path):
    """Frame n of the video is grey of level 2n; the times below are in minutes and seconds."""
    frames = np.repeat(np.arange(100, dtype=np.uint8) * 2, 60 * 200 * 3).reshape(100, 60, 200, 3)
    spread = prediction(num_clips=num_clips)
    for number, clip in enumerate(spread["clips"]):
        clip["start_seconds"] = number * 4 / num_clips
        clip["end_seconds"] = (number + 1) * 4 / num_clips
    with MemoryReader(frames, 25) as reader:
        spread.keep_pictures(reader)
    page = Page(spread._repr_html_())
    seconds = [int(m) * 60 + float(s) for m, s in re.findall(r"(\d+):(\d\d\.\d)", page.text)]
    assert len(seconds) == len(page.pictures()) == (8 if num_clips != 2 else 2)
    for at, picture in zip(seconds, page.pictures(), strict=True):
        assert picture.shape == (38, 128, 3)
        assert abs(picture.mean() - 50 * at) <= 6  # 50 levels a second; a tenth is shown, JPEG errs
    assert seconds == sorted(seconds)


def test_a_file_is_opened_when_it_is_shown(tmp_path):
    path = tmp_path / "v.mp4"
    write_numbered_video(path, 110)
    page = Page(prediction(str(path))._repr_html_())
    assert len(page.pictures()) == 8
    with open_video(path) as reader:
        first = Image.fromarray(reader.frames_at([5])[0].numpy())
    assert abs(page.pictures()[0].astype(float) - np.asarray(first)).mean() < 20  # JPEG; noise of other frames: > 50
    for gone in ("missing.mp4", "<frames>", "a\0b", str(tmp_path)):
        assert Page(prediction(gone)._repr_html_()).pictures() == []


def test_a_page_is_small_and_escaped_whatever_it_holds():
    noise = np.random.default_rng(0).integers(0, 256, size=(1000, 72, 128, 3), dtype=np.uint8)
    names = [f"{n}{WILD}" for n in range(400)]
    wild = prediction(WILD, labels=names, num_clips=100, segments=segments(9000, names=names))
    with MemoryReader(noise, 25) as reader:
        wild.keep_pictures(reader)
    html = wild._repr_html_()
    assert len(html.encode()) < 100_000
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= {
        "div",
        "style",
        "p",
        "b",
        "small",
        "figure",
        "figcaption",
        "img",
        "table",
        "tr",
        "td",
        "i",
    }
    assert "0<script>alert('x')</script>&\"\\x1b[2J\\u202e" in page.text
    assert len(page.pictures()) == 8
    assert "and 8,990 more" in page.text
    assert "\x1b" not in html


def test_segments_are_drawn_in_their_lengths():
    parts = [("a", 0.0, 1.0), ("unsure", 1.0, 3.0), ("b", 3.0, 3.5), ("a", 4.0, 10.0)]
    entries = [{"label": n, "start_seconds": s, "end_seconds": e, "score": 0.5} for n, s, e in parts]
    page = Page(prediction(segments=entries)._repr_html_())
    styles = [attributes.get("style", "") for tag, attributes in page.tags if tag == "i"]
    bands = [re.fullmatch(r"flex:(\d+);background:(.*)", style) for style in styles]
    lengths, colors = zip(*[band.groups() for band in bands if band], strict=True)
    assert [int(n) for n in lengths] == [20, 40, 10, 10, 120]  # of 200; 3.5 to 4.0 is no segment
    a, b = colors[0], colors[2]
    assert colors == (a, "#8886", b, "none", a)
    assert len({a, b, "#8886", "none"}) == 4
    assert " 0:03.0 - 0:03.5\nb\n0.500\n" in page.text


def test_an_empty_one_is_shown_as_the_dictionary_that_it_is():
    assert repr(Prediction()) == "{}"
