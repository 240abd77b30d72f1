"""Runs of the command line in processes forked after the imports: a run then costs a second, not ten."""

import contextlib
import importlib
import multiprocessing
import os
import resource
import socket
import sys
import time
from pathlib import Path

from lightning import Callback

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "video_gn.commands.fit",
        "video_gn.evaluation.predictor",
        "video_gn.commands.data",
        "video_gn.commands.infer",
        "video_gn.labelling.running",
        "torch.distributed.run",
        "torch.utils.tensorboard",
        "runs",
        "torchruns",
    ]
)

# The smallest real network and clips: ResNet-50, width 4, 8 frames of 32 px.
TINY = [
    "--seed_everything=0",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--model.net=video_gn.models.i3d",
    "--model.net.width=4",
    "--model.net.norm=group",
    "--model.net.num_groups=2",
    "--model.optimizer.reference_batch_size=null",
    "--model.schedule.name=constant",
    "--data.clip.num_frames=8",
    "--data.clip.stride=2",
    "--data.augment.short_side_px=[32, 36]",
    "--data.augment.crop_px=32",
    "--data.augment.flip=0",
    "--data.views.short_side_px=32",
    "--data.batch_size=4",
    "--data.loader.num_workers=0",
]


class StepLog(Callback):
    """Appends a line for each optimizer step that is executed, and one where a run starts.

    Args:
        path: of the file.
        pause: seconds to wait after a step.
        slow_rank: the process that waits; None is all.
    """

    def __init__(self, path: str, pause: float = 0.0, slow_rank: int | None = None) -> None:
        self.path = path
        self.pause = pause
        self.slow_rank = slow_rank

    def _write(self, line):
        with Path(self.path).open("a") as file:
            file.write(line + "\n")

    def on_train_start(self, trainer, pl_module):
        self._write(f"start {trainer.global_step}")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._write(f"step {trainer.global_step} {batch.video_ids.tolist()} {float(outputs['loss'])!r}")
        if self.slow_rank in (None, trainer.global_rank):
            time.sleep(self.pause)

    def on_validation_start(self, trainer, pl_module):
        self._write(f"validation {trainer.global_step}")

    def on_train_epoch_start(self, trainer, pl_module):
        self._write(f"epoch {trainer.current_epoch} at {trainer.global_step}")


class EvalLog(Callback):
    """Appends a line for each video that a test has scored.

    Args:
        path: of the file.
        pause: seconds to wait after each.
    """

    def __init__(self, path: str, pause: float = 0.0) -> None:
        self.path = path
        self.pause = pause

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        with Path(self.path).open("a") as file:
            file.writelines(f"{i}\n" for i in (*batch.video_ids.tolist(), *(f.video_id for f in batch.failures)))
        time.sleep(self.pause)


class HookLog(Callback):
    """Appends a line for each hook of a training, with what it sees; waits where a kill is wanted.

    Args:
        path: of the file; each process of several has its own where it holds "{rank}".
        pause: seconds to wait inside a save, a validation and an accumulation window.
    """

    def __init__(self, path: str, pause: float = 0.0) -> None:
        self.path = path
        self.pause = pause

    def _write(self, line, *, waits=False):
        with Path(self.path).open("a") as file:
            file.write(line + "\n")
        if waits:
            time.sleep(self.pause)

    def on_train_start(self, trainer, pl_module):
        if trainer.world_size > 1:
            self.path = self.path.format(rank=trainer.global_rank)
        self._write(f"start {trainer.global_step}")

    def on_train_end(self, trainer, pl_module):
        self._write(f"end {trainer.global_step}")

    def on_train_epoch_start(self, trainer, pl_module):
        self._write(f"epoch {trainer.current_epoch} at {trainer.global_step}")

    def on_train_epoch_end(self, trainer, pl_module):
        self._write(f"epoch end {trainer.current_epoch} at {trainer.global_step}")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._write(f"batch {batch_idx} {batch.video_ids.tolist()} {int(batch.frames_NKTCHW.long().sum())}")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rates = [group["lr"] for group in optimizer.param_groups]
        self._write(f"optimizer {trainer.global_step} {rates}")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._write(f"batch end {batch_idx} at {trainer.global_step} {float(outputs['loss'])!r}", waits=True)

    def on_validation_start(self, trainer, pl_module):
        self._write(f"validation at {trainer.global_step}")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._write(f"validation batch {batch_idx}", waits=True)

    def on_validation_end(self, trainer, pl_module):
        values = {k: float(v) for k, v in sorted(trainer.callback_metrics.items()) if k.startswith("val/")}
        self._write(f"validation end {values}")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._write(f"save {trainer.global_step}", waits=True)


def runs_of(path):
    """Hooks of each start of a run that a `HookLog` has written to hooks.txt: (first step, lines)."""
    runs = []
    for line in (path / "hooks.txt").read_text().splitlines():
        if line.startswith("start"):
            runs.append((int(line.split()[1]), []))
        else:
            runs[-1][1].append(line)
    return runs


def _run(argv, cwd, log, environment, *, output=True, stdin=None):
    import torch

    os.chdir(cwd)
    os.environ.update(environment)  # the fork server has that of its own start
    torch.set_num_threads(1)
    if stdin is not None:
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
    if output:
        with Path(log).open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    from video_gn.__main__ import main

    sys.argv = ["video-gn", *argv]
    status = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def start(argv, cwd, log, *, stdin=None, **more):
    """Start `video-gn ARGV... < STDIN`; stdout and stderr are appended to `log`, and `more` is its environment's."""
    environment = {k: v for k, v in os.environ.items() if k.startswith("VIDEO_GN_")} | more
    with _importable():
        args = [str(a) for a in argv], str(cwd), str(log), environment
        process = _CONTEXT.Process(target=_run, args=args, kwargs={"stdin": stdin})
        process.start()
    return process


def run(argv, cwd, log=None):
    """Run `video-gn ARGV...` to its end.

    Returns:
        (exit status, what it printed).
    """
    return run_with(start, argv, cwd, log)


def run_with(start, argv, cwd, log=None, **more):
    """Run what `start` starts to its end; see `run`."""
    log = Path(log or Path(cwd) / "log.txt")
    before = log.stat().st_size if log.exists() else 0
    process = start(argv, cwd, log, **more)
    process.join(240)
    assert process.exitcode is not None, f"still running after 240 s:\n{log.read_bytes()[before:].decode()}"
    return process.exitcode, log.read_bytes()[before:].decode()


@contextlib.contextmanager
def forked_after(*modules, **environment):
    """A `run` in processes forked after these imports too, which take seconds each; it takes `more` as `start`.

    A process of its own forks them: this one may have threads of torch.
    """
    ours, theirs = _CONTEXT.Pipe()
    with _importable():
        server = _CONTEXT.Process(target=_serve, args=(theirs, modules, environment))
        server.start()

    def run(argv, cwd, **more):
        log = Path(cwd) / "log.txt"
        before = log.stat().st_size if log.exists() else 0
        ours.send(([str(a) for a in argv], str(cwd), str(log), more))
        assert ours.poll(240), f"still running after 240 s:\n{log.read_bytes()[before:].decode()}"
        return ours.recv(), log.read_bytes()[before:].decode()

    yield run
    server.kill()


def _serve(channel, modules, environment):
    os.environ.update(environment)
    for name in modules:
        importlib.import_module(name)
    while True:
        words = channel.recv()
        child = os.fork()
        if not child:
            _run(*words)
        channel.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def children(pid):
    """Processes that one has started; none where it is gone."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def free_port():
    """A port of this machine, as the environment has it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start_together(argv, cwd, num_processes):
    """Start the processes of one run, as a launcher does; each appends to a `log-R.txt` of its own.

    Returns:
        The processes, by rank.
    """
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(num_processes)}
    argv = [*argv, f"--trainer.devices={num_processes}"]
    return [
        start(argv, cwd, Path(cwd) / f"log-{rank}.txt", **common, NODE_RANK="0", LOCAL_RANK=str(rank))
        for rank in range(num_processes)
    ]


def run_together(argv, cwd, num_processes):
    """Run `video-gn ARGV...` on several processes to its end.

    Returns:
        (exit status, what it printed) of each, by rank.
    """
    Path(cwd).mkdir(parents=True, exist_ok=True)
    if num_processes == 1:
        return [run([*argv, "--trainer.devices=1"], cwd, Path(cwd) / "log-0.txt")]
    processes = start_together(argv, cwd, num_processes)
    deadline = time.monotonic() + 240
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    found = []
    for rank, process in enumerate(processes):
        printed = (Path(cwd) / f"log-{rank}.txt").read_text()
        assert process.exitcode is not None, f"process {rank} still runs after 240 s:\n{printed}"
        found.append((process.exitcode, printed))
    return found


@contextlib.contextmanager
def _importable():
    """The fork server finds this module by name."""
    here = str(Path(__file__).parent)
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = here if not old else f"{here}{os.pathsep}{old}"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if old is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = old


class Crash(Callback):
    """Dies in the first step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        os._exit(7)


class Fails(Callback):
    """Raises an error in the first step, or sends this process a signal before it.

    Args:
        number: of the signal; 0 for the error.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def on_fit_start(self, trainer, pl_module):
        if self.number:
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        raise MemoryError("as where a batch is too large")


def _play(function, environment, path, args):
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.save(function(*args), path)
    # Threads of a process group may still run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def play_together(function, num_processes, directory, *args):
    """Call a test module's function in several processes that a Lightning trainer takes for its own.

    Returns:
        What each returned, by rank: tensors and plain containers.
    """
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(num_processes)}
    paths = [Path(directory) / f"played-{rank}.pt" for rank in range(num_processes)]
    processes = []
    with _importable():
        for rank, path in enumerate(paths):
            environment = common | {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}
            processes.append(_CONTEXT.Process(target=_play, args=(function, environment, str(path), args)))
            processes[-1].start()
    try:
        for rank, process in enumerate(processes):
            process.join(240)
            assert process.exitcode == 0, f"process {rank} of {function.__name__}: exit status {process.exitcode}"
    finally:
        for process in processes:
            process.kill()  # those that wait for one that has failed
    import torch

    return [torch.load(path) for path in paths]


class SpawnedWorkers(Callback):
    """Loading workers are new processes, as where there is no fork."""

    def __init__(self) -> None:
        multiprocessing.set_start_method("spawn", force=True)
        multiprocessing.get_all_start_methods = lambda: ["spawn"]


class FileLimit(Callback):
    """Lets no file grow above a size, like a disk that fills up, once a training has begun.

    Args:
        num_bytes: that a file may have.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def on_train_start(self, trainer, pl_module):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, resource.RLIM_INFINITY))


class Faults(Callback):
    """Writes to faults.txt how many page faults the allocation of freed memory takes, once a training has begun.

    The fewest of some times: what was freed may be too small by the bytes that an aligned block needs.
    """

    def on_train_start(self, trainer, pl_module):
        import torch

        taken = []
        for _ in range(6):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            blocks = [torch.ones(20_000_000) for _ in range(2)]
            del blocks
            taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        Path("faults.txt").write_text(str(min(taken)))


class Float64(Callback):
    """Trains in float64, where sums in another order do not flip a ReLU."""

    def setup(self, trainer, pl_module, stage):
        pl_module.double()


class OwnParameters(Callback):
    """Writes how many parameters a process holds by itself.

    Args:
        path: of the file, with "{rank}" in it.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_start(self, trainer, pl_module):
        own = [p.to_local() if hasattr(p, "to_local") else p for p in pl_module.parameters()]
        Path(self.path.format(rank=trainer.global_rank)).write_text(str(sum(p.numel() for p in own)))


class SignalAt(Callback):
    """Sends this process a signal before a step.

    Args:
        steps: number of the signal by how many steps are done by then.
    """

    def __init__(self, steps: dict[int, int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in self.steps:
            os.kill(os.getpid(), self.steps[trainer.global_step])
