"""What a stopped test has left: whole lines alone are taken, and those of the same test."""

import errno
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from video_gn.clips import Failure
from video_gn.errors import RunError, StoppedError
from video_gn.evaluation import unfinished
from video_gn.evaluation.unfinished import Unfinished
from video_gn.evaluation.writer import EvaluationWriter

SETTINGS = {"checkpoint": "SHA-256 0", "data": {"views": {"num_clips": 2}, "sizes": (1, 2)}}
SCORES = np.random.default_rng(0).random((6, 2, 3)).astype(np.float32)


def fill(directory, ids=(4, 1, 7)):
    """A start that has scored some videos, and could not read one."""
    folder = Unfinished(directory)
    part = folder.files(folder.open(SETTINGS).start, 0)
    for video_id in ids[:2]:
        part.add(video_id, f"{video_id}.mp4", 1, SCORES[video_id % 6])
    part.add_failure(Failure(2, "a\udcffb.mp4", "broken"))
    for video_id in ids[2:]:
        part.add(video_id, f"{video_id}.mp4", -1, SCORES[video_id % 6])
    part.close()
    return part.path, part.path.with_suffix(".jsonl")


def assert_kept(directory, ids, failed=(2,)):
    kept = Unfinished(directory).open(SETTINGS)
    assert kept.video_ids == {*ids, *failed} and set(kept.places) == set(ids)
    for video_id, place in kept.places.items():
        assert np.array_equal(place.read(), SCORES[video_id % 6])
        assert place.label == (-1 if video_id == 7 else 1)
    return kept


def test_what_was_kept_comes_back(tmp_path):
    fill(tmp_path / "u")
    kept = assert_kept(tmp_path / "u", [4, 1, 7])
    assert kept.start == 2 and kept.failures == {2: Failure(2, "a\udcffb.mp4", "broken")}
    # A second start, in files of its own; what both have is taken once, from the first.
    part = Unfinished(tmp_path / "u").files(kept.start, 3)
    part.add(5, "5.mp4", 1, SCORES[5])
    part.add(4, "4.mp4", 1, SCORES[0])
    part.add(2, "a\udcffb.mp4", 1, SCORES[2])
    part.close()
    kept = assert_kept(tmp_path / "u", [4, 1, 7, 5, 2], failed=())
    assert kept.start == 3 and not kept.failures
    Unfinished(tmp_path / "u").remove()
    assert not (tmp_path / "u").exists()


def test_every_place_where_a_kill_can_cut(tmp_path):
    scores, lines = fill(tmp_path / "u")
    whole, ends = lines.read_bytes(), np.cumsum([len(line) for line in lines.read_bytes().splitlines(keepends=True)])
    for size in range(len(whole)):
        lines.write_bytes(whole[:size])
        count = sum(size >= end for end in ends)
        assert_kept(tmp_path / "u", [4, 1, 7][: count - (count > 2)], [2][: int(count > 2)])
    lines.write_bytes(whole)
    data = scores.read_bytes()
    for size, ids, failed in ((0, [], []), (24, [4], []), (47, [4], []), (48, [4, 1], [2]), (71, [4, 1], [2])):
        scores.write_bytes(data[:size])
        assert_kept(tmp_path / "u", ids, failed)
    scores.write_bytes(data[:30] + b"\xff" + data[31:])  # another process's page that never came to the disk
    assert_kept(tmp_path / "u", [4], [])
    scores.unlink()
    assert_kept(tmp_path / "u", [], [])


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (None, {**SETTINGS, "checkpoint": "SHA-256 1"}, "checkpoint: 'SHA-256 0' -> 'SHA-256 1'"),
        (None, {**SETTINGS, "data": {"views": {"num_clips": 3}}}, "num_clips: 2 -> 3"),
        (None, None, "its settings are not known"),
        ("{", SETTINGS, "u is damaged (its settings are not known): it is kept as u.damaged."),
        ("[]", SETTINGS, "u is damaged (its settings are not known): it is kept as u.damaged."),
        ('{"version": 0, "settings": {}, "environment": {}}', SETTINGS, "version: 0 -> 1"),
    ],
)
def test_another_test_starts_anew(tmp_path, caplog, content, settings, message):
    fill(tmp_path / "u")
    if content is not None:
        (tmp_path / "u/about.json").write_text(content)
    with caplog.at_level("INFO"):
        kept = Unfinished(tmp_path / "u").open(settings)
    assert kept.start == 1 and not kept.video_ids
    assert [p.name for p in (tmp_path / "u").iterdir()] == ["about.json"]
    assert json.loads((tmp_path / "u/about.json").read_text())["settings"] == json.loads(json.dumps(settings))
    is_damaged = "damaged" in message
    assert (f"{tmp_path / 'u'} belongs to another test (" in caplog.text) != is_damaged
    assert (tmp_path / "u.damaged/001-00000.f32").is_file() == is_damaged
    assert message in caplog.text
    assert "starting anew" in caplog.text


def test_another_machine_goes_on_and_says_so(tmp_path, caplog, monkeypatch):
    fill(tmp_path / "u")
    monkeypatch.setattr(unfinished, "environment_differences", lambda stored: ["threads: 2 there, 1 here"])
    assert_kept(tmp_path / "u", [4, 1, 7])
    assert "may differ in their rounding: threads: 2 there, 1 here" in caplog.text


def test_a_full_disk(tmp_path, monkeypatch):
    folder = Unfinished(tmp_path / "u")
    part = folder.files(folder.open(SETTINGS).start, 0)
    part.add(4, "4.mp4", 1, SCORES[4])

    class Full:
        name = str(part.path)

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(part, "_scores", Full())
    with pytest.raises(RunError, match=r"001-00000\.f32 could not be written: No space left .* Make room"):
        part.add(1, "1.mp4", 1, SCORES[1])
    assert_kept(tmp_path / "u", [4], [])


def test_a_job_that_was_asked_to_stop_in_a_test_is_started_again(tmp_path, caplog):
    asked = []
    writer = EvaluationWriter(tmp_path, requeue=lambda: asked.append(1))
    testing = SimpleNamespace(state=SimpleNamespace(fn="test"), is_global_zero=True)
    stopped = StoppedError("SIGUSR1: stopped.", status=128 + signal.SIGUSR1)
    writer.on_exception(testing, None, stopped)  # nothing has begun
    assert not asked and not caplog.text
    (tmp_path / "test/unfinished").mkdir(parents=True)
    writer.on_test_start(SimpleNamespace(global_rank=0), None)
    writer.on_exception(SimpleNamespace(state=SimpleNamespace(fn="fit"), is_global_zero=True), None, stopped)
    writer.on_exception(testing, None, StoppedError("SIGTERM: stopped.", status=128 + signal.SIGTERM))
    writer.on_exception(testing, None, RunError("something else"))
    assert not asked
    writer.on_exception(testing, None, stopped)
    assert asked == [1]
