"""Lengths and rates, against lists by hand."""

import pytest

from video_gn.planning.job import Length, Machine, length_of, rate_of

TRAINER = {
    "limit_train_batches": None,
    "limit_val_batches": None,
    "accumulate_grad_batches": 1,
    "max_epochs": 3,
    "max_steps": -1,
    "check_val_every_n_epoch": 1,
    "val_check_interval": None,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Length(7, 21, 21, 3.0, 3)),
        ({"accumulate_grad_batches": 3}, Length(7, 21, 9, 3.0, 3)),  # 3 + 3 + 1 batches
        ({"accumulate_grad_batches": 20}, Length(7, 21, 3, 3.0, 3)),
        ({"max_steps": 10}, Length(7, 10, 10, 10 / 7, 1)),
        ({"max_steps": 100}, Length(7, 21, 21, 3.0, 3)),
        ({"max_epochs": -1, "max_steps": 4, "accumulate_grad_batches": 3}, Length(7, 10, 4, 10 / 7, 1)),
        ({"max_epochs": None, "max_steps": 14}, Length(7, 14, 14, 2.0, 2)),
        ({"limit_train_batches": 2}, Length(2, 6, 6, 3.0, 3)),
        ({"limit_train_batches": 0.5}, Length(3, 9, 9, 3.0, 3)),
        ({"check_val_every_n_epoch": 2}, Length(7, 21, 21, 3.0, 1)),
        ({"val_check_interval": 0.5}, Length(7, 21, 21, 3.0, 6)),  # after batches 3 and 6 of each epoch
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, Length(7, 21, 21, 3.0, 4)),
        ({"limit_val_batches": 0}, Length(7, 21, 21, 3.0, 0)),
    ],
)
def test_length(changes, expected):
    assert length_of({**TRAINER, **changes}, 7) == expected


def test_rates_by_hand():
    gpus = Machine(num_processes=4, num_cores=16, num_workers=8, num_threads=0)
    assert rate_of(gpus, 1 / 50, 1 / 25) == (200, "computing")  # 16 cores load 400
    assert rate_of(gpus, 1 / 50, 1 / 10) == (160, "cores for loading")
    few = Machine(num_processes=4, num_cores=64, num_workers=1, num_threads=0)
    assert rate_of(few, 1 / 50, 1 / 10) == (40, "loading workers")
    alone = Machine(num_processes=2, num_cores=2, num_workers=0, num_threads=0)
    assert rate_of(alone, 1 / 50, 1 / 50) == (50, "loading without workers")  # each 25, in turns
    cpu = Machine(num_processes=1, num_cores=2, num_workers=2, num_threads=2)
    rate, by = rate_of(cpu, 0.1, 0.05)  # two cores for 0.1 s, then 0.05 s of one, for which the other waits
    assert rate == pytest.approx(1 / (0.1 + 0.05)) and by == "cores, which compute and load"
    partly = Machine(num_processes=1, num_cores=3, num_workers=2, num_threads=2)
    rate, by = rate_of(partly, 0.1, 0.15)  # three cores for 2 x 0.1 + 0.15 s
    assert rate == pytest.approx(3 / (2 * 0.1 + 0.15)) and by == "cores, which compute and load"
    spare = Machine(num_processes=1, num_cores=4, num_workers=2, num_threads=2)
    assert rate_of(spare, 0.1, 0.05) == (10, "computing")
