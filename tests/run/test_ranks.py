"""Who logs in a launch of several ranks, and that ranks with other lists than rank 0 are refused."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from video_gn.errors import CheckpointError, ManifestError
from video_gn.lists.manifest import Manifest
from video_gn.lists.records import VideoRecord
from video_gn.run.ranks import RankLog, SameData
from video_gn.run.torchrun import launched_rank


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 5),  # torchrun, one task for each node
        ({"SLURM_PROCID": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "2"}, 2),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, 1),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, 0),
        ({"RANK": "", "LOCAL_RANK": ""}, 0),
    ],
)
def test_the_number_in_a_launch(environment, rank):
    assert launched_rank(environment) == rank


@pytest.mark.parametrize("hook", ["on_train_start", "on_validation_start", "on_test_start", "on_predict_start"])
def test_other_ranks_are_silent_at_start_and_then_name_themselves(capsys, hook):
    log = logging.getLogger("video_gn")
    handler = logging.StreamHandler()
    log.addHandler(handler)

    def say():
        for level in (logging.INFO, logging.WARNING, logging.ERROR):
            log.getChild("somewhere").log(level, "%s of %s", logging.getLevelName(level), "a.mp4")
        return capsys.readouterr().err.splitlines()

    try:
        log.setLevel(logging.INFO)
        for rank, before, after in (
            (0, ["INFO", "WARNING", "ERROR"], ["INFO", "WARNING", "ERROR"]),
            (3, ["rank 3: ERROR"], ["rank 7: WARNING", "rank 7: ERROR"]),
        ):
            log_filter = RankLog(rank)
            with log_filter.installed():
                assert say() == [f"{word} of a.mp4" for word in before]
                # Only now it is known for certain.
                getattr(log_filter, hook)(SimpleNamespace(global_rank=7 if rank else 0), None)
                assert say() == [f"{word} of a.mp4" for word in after]
            assert len(say()) == 3
    finally:
        log.removeHandler(handler)


# ---- the same data -------------------------------------------------------------------------------


def manifest(*rows, root="/data", origin="list.csv"):
    records = [VideoRecord(f"{root}/{name}", label, *segment) for name, label, *segment in rows]
    return Manifest(records, ("a", "b"), origin)


ROWS = [("1.mp4", 0), ("2.mp4", 1, 0.5, 2.0), ("3.mp4", 1)]


def compare(mine, first, *, world_size=2, step=3):
    """As `mine` is compared by rank 1, at step 3, with what rank 0, on node1, has broadcast."""
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


def test_a_list_that_rank_0_has_not():
    with pytest.raises(ManifestError, match="the val list .* got 3 here, on .*, and 0 on node1"):
        compare({"val": manifest(*ROWS)}, {"train": manifest(*ROWS)})
