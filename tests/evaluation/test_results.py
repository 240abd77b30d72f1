import csv
import json
import os

import numpy as np
import pytest

from video_gn.clips import VideoNote
from video_gn.evaluation.results import top_labels, video_result, write_results


def test_top_labels_are_sorted_and_ties_go_to_the_lower_number():
    assert top_labels(np.array([0.2, 0.4, 0.4, 0.0]), ["a", "b", "c", "d"], 3) == [
        {"label": "b", "score": 0.4},
        {"label": "c", "score": 0.4},
        {"label": "a", "score": 0.2},
    ]
    assert [t["label"] for t in top_labels(np.array([0.2, 0.8]), [], 5)] == ["1", "0"]


def test_a_videos_scores_are_means_over_views_and_a_clips_over_its_crops():
    note = VideoNote("v.mp4", 100, 25.0, ((0.0, 1.28), (2.0, 3.28)))
    scores = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0]], dtype=np.float32)
    result = video_result(note, scores, ["a", "b"], num_crops=2, top_k=1)
    assert result == {
        "path": "v.mp4",
        "num_frames": 100,
        "fps": 25.0,
        "top": [{"label": "b", "score": 0.6}],
        "clips": [
            {"start_seconds": 0.0, "end_seconds": 1.28, "top": [{"label": "a", "score": 0.7}]},
            {"start_seconds": 2.0, "end_seconds": 3.28, "top": [{"label": "b", "score": 0.9}]},
        ],
    }


def test_files(tmp_path):
    note = VideoNote('odd "name", ü.mp4', 10, 5.0, ((0.0, 2.0),))
    videos = [video_result(note, np.array([[0.25, 0.75]]), ["x,y", "z"], top_k=2)]
    failed = [{"path": "b.mp4", "reason": "no video stream"}]
    write_results(tmp_path / "deep/a.json", videos, failed)
    assert json.loads((tmp_path / "deep/a.json").read_text()) == {"videos": videos, "failed": failed}
    write_results(tmp_path / "a.csv", videos, failed)
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "clip", "start_seconds", "end_seconds", "rank", "label", "score", "reason"],
        [note.path, "", "", "", "1", "z", "0.75", ""],
        [note.path, "", "", "", "2", "x,y", "0.25", ""],
        [note.path, "0", "0.0", "2.0", "1", "z", "0.75", ""],
        [note.path, "0", "0.0", "2.0", "2", "x,y", "0.25", ""],
        ["b.mp4", "", "", "", "", "", "", "no video stream"],
    ]
    with pytest.raises(ValueError, match=r"must end in \.json or \.csv"):
        write_results(tmp_path / "a.txt", [], [])


@pytest.mark.parametrize("num_videos", [0, 1, 3])
@pytest.mark.parametrize("num_failed", [0, 1, 2])
def test_json_written_entry_by_entry_is_jsons_own(tmp_path, num_videos, num_failed):
    note = VideoNote('a\n"b"\\\u2028ü.mp4', 10, 5.0, ((0.0, 2.0),))
    videos = [video_result(note, np.array([[0.25, 0.75]]), ["x,\n  y", "z"], top_k=k) for k in range(num_videos)]
    failed = [{"path": "b.mp4", "reason": f"{k}\n"} for k in range(num_failed)]
    write_results(tmp_path / "a.json", iter(videos), iter(failed))
    whole = json.dumps({"videos": videos, "failed": failed}, indent=2, ensure_ascii=False) + "\n"
    assert (tmp_path / "a.json").read_bytes() == whole.encode()

    def breaks():
        yield from videos
        raise KeyError

    with pytest.raises(KeyError):
        write_results(tmp_path / "a.json", breaks(), [])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == whole.encode()


def test_a_path_that_is_no_text_goes_through(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    for ending in ("json", "csv"):
        write_results(tmp_path / f"a.{ending}", [], [{"path": name, "reason": "empty"}])
        assert b"caf\xe9.mp4" in (tmp_path / f"a.{ending}").read_bytes()
