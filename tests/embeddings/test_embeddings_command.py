"""`video-gn infer --embeddings` and `video-gn similar`, stopped, in parts, and with wrong words."""

import csv
import functools
import hashlib
import json
import shutil

import pytest
import torch
from small import ABOUT

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `parquet`)")
from pyarrow import parquet  # noqa: E402

from video_gn import load  # noqa: E402
from video_gn.__main__ import main  # noqa: E402
from video_gn.evaluation.predictor import Predictor  # noqa: E402
from video_gn.labelling.lines import LinesFile  # noqa: E402
from video_gn.models import i3d  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """To build a network takes most of the time of a command on a few tiny videos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "from_checkpoint", functools.cache(Predictor.from_checkpoint))
        yield


@pytest.fixture(scope="module")
def here(loaded_once, tiny_videos, tmp_path_factory):
    """a.ckpt, v/0.mp4 to v/4.mp4, of which v/2.mp4 is broken; labels without embeddings, and with them."""
    here = tmp_path_factory.mktemp("embeddings")
    torch.manual_seed(0)
    net = i3d(50, norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False)
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": state}, here / "a.ckpt")
    (here / "v").mkdir()
    for number, video in enumerate(sorted(tiny_videos.rglob("*.mp4"))[:5]):
        shutil.copy(video, here / f"v/{number}.mp4")
    (here / "v/2.mp4").write_text("<html>")
    (here / "list.txt").write_text("".join(f"v/{number}.mp4\n" for number in range(5)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("VIDEO_GN_KEEP_MEMORY", "0")
        assert infer("--output=plain.jsonl") == 3
        assert infer("--output=one.jsonl", "--embeddings=one.parquet") == 3
    return here


@pytest.fixture(autouse=True)
def in_it(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setenv("VIDEO_GN_KEEP_MEMORY", "0")


def infer(*more):
    return main(["infer", "--list=list.txt", "--checkpoint=a.ckpt", "--num_workers=0", "--quiet", *more])


def refused(capsys, words, *parts):
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("video-gn: error: ")
    assert all(part in error for part in parts), error


def test_labels_are_unchanged_and_rows_are_the_predictors(here, capsys):
    assert (here / "one.jsonl").read_bytes() == (here / "plain.jsonl").read_bytes()
    rows = parquet.read_table("one.parquet").to_pylist()
    entries = [json.loads(line) for line in (here / "one.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [entry["path"] for entry in entries if "top" in entry]
    assert [e["path"] for e in entries if "reason" in e] == ["v/2.mp4"]
    predictor = load("a.ckpt")
    for row, entry in zip(rows, (entry for entry in entries if "top" in entry), strict=True):
        assert row["embedding"] == predictor.embed(row["path"]).video.tolist()
        values = {name: row[name] for name in ("num_frames", "fps", "label", "score")}
        assert values == {"num_frames": entry["num_frames"], "fps": entry["fps"], **entry["top"][0]}
    schema = parquet.read_schema("one.parquet")
    assert schema.field("embedding").type == pa.list_(pa.float32(), 128)
    about = json.loads(schema.metadata[b"video_gn"])
    assert about["settings"]["checkpoint"] == f"SHA-256 {hashlib.sha256((here / 'a.ckpt').read_bytes()).hexdigest()}"
    assert about["rows"] == "videos" and about["settings"]["num_clips"] == 2
    assert not list(here.glob(".*features*"))


def test_rows_of_clips(here):
    assert infer("--output=c.json", "--embeddings=c.parquet", "--embeddings_of=clips") == 3
    assert len(json.loads((here / "c.json").read_text())["videos"]) == 4
    rows = parquet.read_table("c.parquet").to_pylist()
    predictor = load("a.ckpt")
    entry, found = predictor.predict("v/1.mp4"), predictor.embed("v/1.mp4")
    mine = [row for row in rows if row["path"] == "v/1.mp4"]
    assert len(rows) == 8 and len(mine) == 2
    for row, clip, features in zip(mine, entry.clips, found.clips, strict=True):
        assert row["embedding"] == features.tolist()
        assert (row["start_seconds"], row["end_seconds"]) == (clip["start_seconds"], clip["end_seconds"])
        assert {"label": row["label"], "score": row["score"]} == clip["top"][0]


@pytest.mark.parametrize(
    ("output", "line_is_written"),
    [
        ("s.jsonl", False),
        *(
            pytest.param(output, is_written, marks=pytest.mark.slow)
            for output, is_written in (("s.jsonl", True), ("s.json", False), ("s.csv", True), (None, False))
        ),
    ],
)
def test_a_stopped_run_resumes_without_loss(here, monkeypatch, output, line_is_written):
    words = [*([f"--output={output}"] if output else []), "--embeddings=s.parquet"]
    (here / "s.parquet").unlink(missing_ok=True)
    write, num = LinesFile.write, 0

    def stops(self, entry):
        nonlocal num
        num += 1
        if num < 4 or line_is_written:
            write(self, entry)
        if num == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LinesFile, "write", stops)
        assert infer(*words, "--overwrite" if output == "s.jsonl" else "--quiet") == 130
    assert not (here / "s.parquet").exists()
    assert infer(*words) == 3
    one, again = parquet.read_table("one.parquet"), parquet.read_table("s.parquet")
    assert again.equals(one)
    assert output != "s.jsonl" or (here / "s.jsonl").read_bytes() == (here / "one.jsonl").read_bytes()
    assert not [path.name for path in here.iterdir() if path.name.endswith((".features", ".lines"))]


def test_parts_and_what_is_finished(here, capsys):
    words = ["--output=p.jsonl", "--embeddings=p.parquet"]
    for part in ("0/2", "1/2"):
        infer(*words, f"--part={part}")
    assert sorted(path.name for path in here.glob("p.*.parquet")) == [
        "p.part-00000-of-00002.parquet",
        "p.part-00001-of-00002.parquet",
    ]
    assert main(["similar", "v/0.mp4", "--in=p.parquet", "--output=p.json"]) == 0
    assert main(["similar", "v/0.mp4", "--in=one.parquet", "--output=one.json"]) == 0
    parts, one = (json.loads((here / name).read_text())["similar"] for name in ("p.json", "one.json"))
    assert sorted(parts, key=str) == sorted(one, key=str) and len(one) == 3
    before = (here / "one.parquet").read_bytes()
    assert infer("--output=one.jsonl", "--embeddings=one.parquet") == 3  # nothing is left to do
    assert (here / "one.parquet").read_bytes() == before
    more = ["infer", "--list=list.txt", "--checkpoint=a.ckpt", "--num_workers=0"]
    advice = "Label all anew with --overwrite"
    refused(capsys, [*more, "--output=one.jsonl", "--embeddings=new.parquet"], "4 videos have labels, and", advice)
    refused(capsys, [*more, "--output=plain.jsonl", "--embeddings=new.parquet"], "--embeddings_of must be None", advice)


def test_similar_by_checkpoint_and_what_it_writes(here, capsys):
    shutil.copy("v/1.mp4", "copy.mp4")
    words = ["similar", "copy.mp4", "v/0.mp4", "--in=one.parquet", "--top_k=2"]
    assert main([*words, "--checkpoint=a.ckpt", "--output=q.csv"]) == 0
    rows = list(csv.DictReader((here / "q.csv").open()))
    assert list(rows[0]) == ["path", "similar_path", "similar_label", "similarity"]
    assert [row["path"] for row in rows] == ["copy.mp4"] * 2 + ["v/0.mp4"] * 2
    assert (rows[0]["similar_path"], float(rows[0]["similarity"])) == ("v/1.mp4", 1.0)
    assert "v/0.mp4" not in [row["similar_path"] for row in rows[2:]]
    printed = capsys.readouterr().out
    assert "similar video" in printed and "1.0000" in printed
    assert main(["similar", "./v/0.mp4", "--in=one.parquet", "--output=dot.csv"]) == 0
    assert "v/0.mp4,v/0.mp4" not in (here / "dot.csv").read_text()
    refused(capsys, words, "QUERY must be a path in one.parquet, or come with --checkpoint, got 'copy.mp4'")
    refused(capsys, [*words, "--checkpoint=no.ckpt"], "--checkpoint must be a run's directory or a file, got no.ckpt")
    table = parquet.read_table("one.parquet")
    for old, new in ((b'"crops": "center"', b'"crops": "left"'), (b'"num_clips": 2', b'"num_clips": "2"')):
        about = table.schema.metadata[b"video_gn"].replace(old, new)
        parquet.write_table(table.replace_schema_metadata({b"video_gn": about}), "bad.parquet")
        bad = ["similar", "copy.mp4", "--in=bad.parquet", "--checkpoint=a.ckpt"]
        refused(capsys, bad, "bad.parquet: its metadata must name settings of infer, got")
    (here / "b.ckpt").write_bytes(b"another")
    refused(capsys, [*words, "--checkpoint=b.ckpt"], "b.ckpt must be the one that one.parquet was made with, a.ckpt")
    assert main(["similar", "v/2.mp4", "--in=one.parquet", "--checkpoint=a.ckpt"]) == 3
    assert "v/2.mp4 could not be read" in capsys.readouterr().err


def test_near_copies_between_sets(here, capsys):
    (here / "val").mkdir()
    for number in (1, 3):
        shutil.copy(f"v/{number}.mp4", f"val/{number}.mp4")
    words = ["--checkpoint=a.ckpt", "--num_workers=0", "--quiet", "--embeddings=val.parquet"]
    assert main(["infer", "val", *words]) == 0
    assert main(["similar", "--in=one.parquet", "--and=val.parquet", "--above=1", "--output=n.json"]) == 0
    found = json.loads((here / "n.json").read_text())["similar"]
    assert [(row["path"], row["similar_path"]) for row in found] == [
        ("v/1.mp4", "val/1.mp4"),
        ("v/3.mp4", "val/3.mp4"),
    ]
    assert "2 pairs of near-copies" in capsys.readouterr().err
    table = parquet.read_table("val.parquet")
    about = table.schema.metadata[b"video_gn"].replace(b"SHA-256 ", b"SHA-256 0")
    parquet.write_table(table.replace_schema_metadata({b"video_gn": about}), "b.parquet")
    refused(capsys, ["similar", "--in=one.parquet", "--and=b.parquet"], "--and b.parquet: must be of the same checkp")
    assert main(["similar", "--in=val.parquet", "--above=1", "--output=none.csv"]) == 0
    assert (here / "none.csv").read_text() == "path,similar_path,similarity\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infer", "v", "--embeddings=x.csv"], "--embeddings must end in .parquet, got 'x.csv'"),
        (["infer", "v", "--embeddings_of=clips"], "--embeddings_of must stand with --embeddings"),
        (["infer", "v", "--embeddings=x.parquet", "--every=1"], "--embeddings must stand without --every"),
        (["infer", "--merge=x.jsonl", "--embeddings=x.parquet"], "--merge must stand alone, got --embeddings too"),
        (["similar", "a.mp4"], "--in must be given"),
        (["similar", "a.mp4", "--in=x.parquet"], "x.parquet: must be a parquet file of embeddings, got no file"),
        (["similar", "a.mp4", "--in=x.parquet", "--above=0.5"], "--above must stand without QUERY"),
        (["similar", "--in=x.parquet", "--top_k=5"], "--top_k must stand with QUERY"),
        (["similar", "--in=x.parquet", "--above=nan"], "--above must be above 0 and at most 1, got nan"),
        (["similar", "--in=x.parquet", "--output=x.txt"], "--output must end in .json or .csv"),
    ],
)
def test_wrong_words(words, message, capsys):
    refused(capsys, words, message)


def test_without_pyarrow(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    message = "x.parquet: a parquet file needs pyarrow. Install it (pip install 'video-gn[parquet]')."
    refused(capsys, ["infer", "v", "--checkpoint=a.ckpt", "--embeddings=x.parquet"], message)
    refused(capsys, ["similar", "--in=x.parquet"], message)
