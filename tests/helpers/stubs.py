"""Results without a network: what a run writes of any list of names."""

import json

from video_gn.clips import Failure
from video_gn.labelling.inputs import Inputs
from video_gn.labelling.lines import About
from video_gn.labelling.running import label

SETTINGS = {"checkpoint": "SHA-256 12", "num_clips": 2, "top_k": 5}


class Predict:
    """A label for each record, drawn from its path; a failure for one with an error or "bad" in its name.

    Args:
        seen: paths that have been asked for, in their order.
    """

    def __init__(self):
        self.seen = []

    def __call__(self, records):
        for place, record in enumerate(records):
            self.seen.append(record.path)
            yield result_of(record, place)


def result_of(record, place=0):
    if record.error or "bad" in record.path:
        return Failure(place, record.path, record.error or "no video stream")
    score = round(sum(record.path.encode("utf-8", "surrogateescape")) % 1000 / 1000, 6)
    top = [{"label": "ä b", "score": score}, {"label": "c,d", "score": 1 / 3}]
    clips = [{"start_seconds": 0.0, "end_seconds": 1.28, "top": top}]
    return {"path": record.path, "num_frames": 10, "fps": 25.0, "top": top, "clips": clips}


def expected(records):
    """(videos, failed) as one run holds them."""
    results = [result_of(record) for record in records]
    failed = [{"path": r.path, "reason": r.reason} for r in results if isinstance(r, Failure)]
    return [r for r in results if not isinstance(r, Failure)], failed


def lines_of(records):
    """The bytes of a whole file of lines."""
    results = [result_of(record) for record in records]
    entries = [{"path": r.path, "reason": r.reason} if isinstance(r, Failure) else r for r in results]
    return b"".join(json.dumps(e, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n" for e in entries)


def write_list(path, names):
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def run(listed, output, *, part=None, predict=None, settings=SETTINGS, overwrite=False, paths=()):
    """What `video-gn infer` does after its checkpoint is read."""
    inputs = Inputs([str(p) for p in paths], None if listed is None else str(listed), part=part)
    path = output if part is None else part.path(output)
    about = About(settings, "best.ckpt", None if part is None else str(part))
    return label(
        predict or Predict(),
        inputs,
        path,
        about=about,
        overwrite=overwrite,
        progress=lambda items, total, done: items,
    )
