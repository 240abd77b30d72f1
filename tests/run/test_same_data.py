"""Processes that read other lists than the first one are refused."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from video_gn.errors import CheckpointError, ManifestError
from video_gn.lists.read import Manifest, VideoRecord
from video_gn.run.same_data import SameData


def manifest(*rows, root="/data", origin="list.csv"):
    records = [VideoRecord(f"{root}/{name}", label, *segment) for name, label, *segment in rows]
    return Manifest(records, ("a", "b"), origin)


ROWS = [("1.mp4", 0), ("2.mp4", 1, 0.5, 2.0), ("3.mp4", 1)]


def compare(mine, first, *, world_size=2, step=3):
    """As `mine` is compared by the second process, at step 3, with what the first one, on node1, has told."""
    told = {part: (len(m.records), m.digest(of_copies=True)) for part, m in first.items()}
    strategy = SimpleNamespace(broadcast=lambda value: ("node1", step, told))
    SameData(mine, run_dir=Path("runs/a"), step=3).setup(
        SimpleNamespace(world_size=world_size, strategy=strategy), None, "fit"
    )


def test_copies_in_other_directories_are_the_same():
    compare(
        {"train": manifest(*ROWS, root="/scratch/node2"), "val": manifest(*ROWS[:1])},
        {"train": manifest(*ROWS), "val": manifest(*ROWS[:1]), "test": manifest(*ROWS)},
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ROWS[:2],
            rf"list\.csv: the train list must .* got 2 here, on {os.uname().nodename}, and 3 on node1\. Put the",
        ),
        ([*ROWS, ROWS[0]], "got 4 here"),
        (ROWS[::-1], rf"got others on {os.uname().nodename} than on node1\. Put the same files on each"),
        ([*ROWS[:2], ("3.mp4", 0)], "got others"),
        ([*ROWS[:2], ("4.mp4", 1)], "got others"),
        ([ROWS[0], ("2.mp4", 1, 0.5, 2.5), ROWS[2]], "got others"),
    ],
)
def test_others_are_refused(rows, message):
    with pytest.raises(ManifestError, match=message):
        compare({"train": manifest(*rows)}, {"train": manifest(*ROWS)})
    compare({"train": manifest(*rows)}, {"train": manifest(*ROWS)}, world_size=1)


def test_a_run_directory_that_only_the_first_node_sees():
    message = (
        rf"runs/a: the checkpoint must .* got step 3 on {os.uname().nodename} and step 12 on node1\. Give a --run_d"
    )
    with pytest.raises(CheckpointError, match=message):
        compare({"train": manifest(*ROWS)}, {"train": manifest(*ROWS)}, step=12)


def test_a_list_that_the_first_process_has_not():
    with pytest.raises(ManifestError, match="the val list .* got 3 here, on .*, and 0 on node1"):
        compare({"val": manifest(*ROWS)}, {"train": manifest(*ROWS)})
