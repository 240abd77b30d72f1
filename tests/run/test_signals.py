"""Signals: what stops a process at once, what waits, and what children and workers do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from video_gn.errors import StoppedError
from video_gn.run import signals


def test_outside_of_a_training_the_signal_ends_it_where_it_is():
    flag = signals.StopFlag()
    before = [signal.getsignal(n) for n in signals.SIGNALS]
    with flag.installed(), pytest.raises(StoppedError, match="SIGUSR1: stopped") as found:
        signal.raise_signal(signal.SIGUSR1)
    assert found.value.status == 138
    assert [signal.getsignal(n) for n in signals.SIGNALS] == before


def test_the_first_signal_is_the_one_that_is_waited_for():
    flag = signals.StopFlag()
    with flag.installed(), flag.waiting("step"):
        before = time.monotonic()
        signal.raise_signal(signal.SIGUSR1)
        first = flag.since_seconds
        signal.raise_signal(signal.SIGTERM)
        assert flag.number == signal.SIGTERM
    assert before <= first == flag.since_seconds <= time.monotonic()


def test_ctrl_c_twice_is_at_once(capfd):
    flag = signals.StopFlag()
    with flag.installed(), flag.waiting("step"):
        signal.raise_signal(signal.SIGINT)
        assert flag.number == signal.SIGINT
        with pytest.raises(StoppedError, match="SIGINT: stopped"):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "SIGINT: stopping at the end of this step (once more: at once)\n"


def test_a_worker_ignores_signals_and_can_be_ended_all_the_same(tmp_path):
    context = multiprocessing.get_context("fork")

    def work():
        signals.ignore_in_worker(0)
        (tmp_path / "ready").touch()
        time.sleep(60)

    with signals.held_back():
        process = context.Process(target=work)
        process.start()
        subprocess.run(["kill", "-TERM", str(process.pid)], check=True)  # before it is ready: it waits
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    # From somebody else than its parent, as a cluster sends them.
    subprocess.run(["bash", "-c", f"for s in TERM USR1 INT; do kill -$s {process.pid}; done"], check=True)
    time.sleep(0.2)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


# ---- child processes -----------------------------------------------------------------------------

CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, {handler})
print("up", flush=True)
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("handler", "grace_seconds", "status"),
    [("lambda *_: sys.exit(5)", 60.0, 5), ("signal.SIG_IGN", 0.1, -signal.SIGKILL)],
)
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_ends_the_child(number, handler, grace_seconds, status):
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(handler=handler)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n"
    flag = signals.StopFlag()
    sender = threading.Timer(0.5, os.kill, (os.getpid(), number))
    sender.start()
    with flag.installed(), pytest.raises(StoppedError, match=f"{number.name}: stopped") as found:
        flag.wait_for(child, grace_seconds=grace_seconds)
    assert found.value.status == 128 + number and child.returncode == status


def test_the_status_of_a_child_that_ends_by_itself():
    flag = signals.StopFlag()
    with flag.installed():
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(7)"])
        assert flag.wait_for(child, grace_seconds=1.0) == 7


def test_an_error_ends_the_child_too():
    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                raise KeyboardInterrupt
            return super().wait(timeout)

    child = Interrupted([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(KeyboardInterrupt):
        signals.StopFlag().wait_for(child, grace_seconds=60.0)
    assert child.returncode == -signal.SIGTERM
