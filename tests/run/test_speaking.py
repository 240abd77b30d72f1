"""Who speaks in a launch of several processes."""

import logging
from types import SimpleNamespace

import pytest

from video_gn.run.speaking import OneSpeaks
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
def test_other_processes_are_silent_at_start_and_then_name_themselves(capsys, hook):
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
            (3, ["process 3: ERROR"], ["process 7: WARNING", "process 7: ERROR"]),
        ):
            speaks = OneSpeaks(rank)
            with speaks.heard():
                assert say() == [f"{word} of a.mp4" for word in before]
                # Only now it is known for certain.
                getattr(speaks, hook)(SimpleNamespace(global_rank=7 if rank else 0), None)
                assert say() == [f"{word} of a.mp4" for word in after]
            assert len(say()) == 3
    finally:
        log.removeHandler(handler)
