"""Parts of a list: their numbers, also from SLURM, and their files."""

import pytest

from video_gn.errors import ConfigError
from video_gn.parts import Part, find_parts, parse_part, slurm_part


def slurm(task, first, last, step, count):
    values = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_names_of_parts(tmp_path):
    output = tmp_path / "la[be]ls.x.jsonl"
    assert Part(2, 8).path(output) == tmp_path / "la[be]ls.x.part-00002-of-00008.jsonl"
    for part in (Part(1, 8), Part(0, 8), Part(0, 12)):
        part.path(output).touch()
    (tmp_path / "other.part-00000-of-00008.jsonl").touch()
    assert [part for part, _ in find_parts(output)] == [Part(0, 8), Part(1, 8), Part(0, 12)]
    assert find_parts(tmp_path / "none/x.jsonl") == []


def test_parts_of_the_command_line():
    assert parse_part("0/1", {}) == Part(0, 1)
    assert parse_part("2/8", {}) == Part(2, 8)
    for text in ("3/3", "x", "-1/3", "1/0", "1", "1/2/3", "", "0/0"):
        with pytest.raises(ConfigError, match=f"--part must be I/N with I from 0 to N - 1, or slurm, got '{text}'"):
            parse_part(text, {})


@pytest.mark.parametrize(
    ("tasks", "first", "last", "step"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 0, 7, 1),  # --array=0-7, and 0-7%2
        ([1, 2, 3], 1, 3, 1),  # --array=1-3
        ([10, 17, 24, 31], 10, 31, 7),  # --array=10-31:7
        ([10, 17, 24], 10, 30, 7),  # --array=10-30:7, should the end be told as it was asked for
        ([5], 5, 5, 1),  # --array=5
    ],
)
def test_slurms_tasks_are_ranks(tasks, first, last, step):
    found = [slurm_part(slurm(task, first, last, step, len(tasks))) for task in tasks]
    assert found == [Part(rank, len(tasks)) for rank in range(len(tasks))]
    without_end = slurm(tasks[-1], first, last, step, len(tasks))
    del without_end["SLURM_ARRAY_TASK_MAX"]
    assert parse_part("slurm", without_end) == found[-1]


def test_slurms_arrays_with_gaps_are_refused_by_every_task():
    for tasks in ([1, 5, 6], [1, 2, 9], [0, 1, 3]):
        for task in tasks:
            with pytest.raises(ConfigError, match="must have an array of equal steps.*Write the part out"):
                slurm_part(slurm(task, tasks[0], tasks[-1], 1, len(tasks)))
    for odd in (slurm(11, 10, 31, 7, 4), slurm(0, 0, 3, 0, 4), slurm(9, 10, 31, 7, 4)):
        with pytest.raises(ConfigError, match="equal steps"):
            slurm_part(odd)


def test_slurms_missing_variables_are_named():
    with pytest.raises(ConfigError, match=r"got none in SLURM_ARRAY_TASK_ID, SLURM_.*--part \$SLURM_ARRAY_TASK_ID/8"):
        slurm_part({})
    environment = slurm(1, 0, 3, 1, 4)
    del environment["SLURM_ARRAY_TASK_COUNT"]
    with pytest.raises(ConfigError, match="got none in SLURM_ARRAY_TASK_COUNT. Is this"):
        slurm_part(environment)
