"""The disk that both nodes write to is full."""

import re

import pytest
from clusters import ENDED, EVERY_STEPS, STEPS, assert_equal_end, read, running, starts_of, wait_for, words
from disks import fill, small_disk

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(900)]


def test_the_old_checkpoint_stays_and_the_same_command_goes_on(whole, tiny_videos, tmp_path):
    with small_disk(tmp_path / "disk", 16) as disk, running("linuxproc") as cluster:
        log, last = tmp_path / "slurm.log", disk / "run/checkpoints/last.ckpt"
        job = cluster.submit(tmp_path, *words(tiny_videos, disk, pause=0.5))
        wait_for(disk / "steps.txt", rf"^step {EVERY_STEPS + 1} ", log=log)
        # Room for the lines of some more steps, not for a checkpoint.
        filler, saved = fill(disk, leave=100_000), last.read_bytes()
        found = cluster.wait(job, *ENDED)
        printed = read(log)
        # Somebody has to make room: it is not started again to fail again.
        assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("FAILED", "0", "2:0"), printed
        told = (
            rf"{re.escape(str(last))} could not be written: No space left on device\. 0\.1 of 16\.8 MB are free there"
        )
        assert len(re.findall(told, printed)) == 1, printed
        assert "Traceback" not in printed
        assert last.read_bytes() == saved
        assert not list(last.parent.glob(".*"))
        filler.unlink()
        found = cluster.wait(cluster.submit(tmp_path, *words(tiny_videos, disk)), *ENDED)
        assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "0"), read(log)
        (zero, _), (begin, rest) = starts_of(disk)
        assert (zero, begin, rest) == (0, EVERY_STEPS, list(range(EVERY_STEPS + 1, STEPS + 1)))
        assert_equal_end(disk, whole)
