"""torchrun in a process forked after the imports, and so are its processes: a start then costs a second, not twenty."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import runs


class _Forked:
    """What torchrun asks of a process that it started: a Popen."""

    def __init__(self, words, environment):
        self.returncode = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.closerange(3, 4096)  # the agent's sockets: a started program has none of them
            os.environ.clear()
            # words: python, -u, -m, video_gn, ...
            runs._run(words[words.index("video_gn") + 1 :], Path.cwd(), os.devnull, environment, output=False)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.01)
        return self.returncode


def _agent(words, cwd, log, environment):
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    os.chdir(cwd)
    os.environ.update(environment)
    os.environ["OMP_NUM_THREADS"] = "1"
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    SubprocessHandler._popen = lambda self, words, environment: _Forked(words, environment)
    run.main(words)


def start(argv, cwd, log, *, nodes=1, node_rank=0, per_node=2, port=None):
    """Start `torchrun -m video_gn ARGV...`; what it and its processes print is appended to `log`."""
    meeting = ["--master_addr=127.0.0.1", f"--master_port={port or runs.free_port()}"]
    size = [f"--nproc_per_node={per_node}", f"--nnodes={nodes}", f"--node_rank={node_rank}", "--monitor_interval=0.1"]
    words = [*size, *meeting, "-m", "video_gn", *map(str, argv)]
    environment = {k: v for k, v in os.environ.items() if k.startswith("VIDEO_GN_")}
    with runs._importable():
        process = runs._CONTEXT.Process(target=_agent, args=(words, str(cwd), str(log), environment))
        process.start()
    return process


def run(argv, cwd, log=None, **more):
    """Run `torchrun -m video_gn ARGV...` to its end: (exit status, what it printed)."""
    return runs.run_with(start, argv, cwd, log, **more)


def descendants(pid):
    """Processes that one has started, and theirs, and so on."""
    return [p for child in runs.children(pid) for p in (child, *descendants(child))]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
