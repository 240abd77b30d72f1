"""A run directory is one run of its tracker, over kills, resumes and a test, with each figure of each step once."""

import json
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from runs import TINY, forked_after
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_gn.errors import ConfigError
from video_gn.run.metrics_file import read_metrics
from video_gn.training import trackers
from video_gn.training.trackers import Tracker, build_logger

STEPS = 8
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
FIT = [
    "fit",
    *TINY,
    "--run_dir=runs/mine",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
    "--checkpoint.every_n_steps=2",
]


# ---- without a tracker's package -----------------------------------------------------------------


class Fails(DummyLogger):
    """A tracker's client that takes nothing while `is_down`."""

    is_down = False

    def __init__(self):
        super().__init__()
        self.told = []
        self.calls = 0

    def _take(self, *what):
        self.calls += 1
        if self.is_down:
            raise ConnectionError("refused")
        self.told.append(what)

    def log_hyperparams(self, params):
        self._take("settings", params)

    def log_metrics(self, metrics, step=None):
        self._take(step, metrics)

    def finalize(self, status):
        self._take(status)


class FailsSoftly(Tracker, Fails):
    extra = "mlflow"
    version = "abc"


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    return now


def test_what_a_tracker_could_not_take_comes_later_in_order(tmp_path, clock, caplog):
    logger = FailsSoftly()
    logger.begin(tmp_path, {"model.optimizer.lr": 0.1}, resumes=True)
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"mlflow": {"run": "abc", "steps": {}}}
    logger.is_down = True
    for step in range(3):
        logger.log_metrics({"train/loss": step / 2}, step)
    assert logger.calls == 2  # one attempt a minute
    logger.is_down = False
    clock[0] += 61
    logger.log_metrics({"train/loss": 1.5}, 3)
    assert logger.told == [
        ("settings", {"model.optimizer.lr": 0.1}),
        *((step, {"train/loss": step / 2}) for step in range(4)),
    ]
    assert trackers.read_record(tmp_path)["mlflow"]["steps"] == {"train/loss": 3}
    assert len(caplog.messages) == 1 and "mlflow: ConnectionError: refused. The training continues" in caplog.text


def test_what_a_tracker_never_takes_is_counted_at_the_end(tmp_path, clock, caplog):
    logger = FailsSoftly()
    logger.is_down = True
    logger.begin(tmp_path, {}, resumes=False)
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.finalize("failed")
    assert logger.told == [] and "not given to the tracker: 5" in caplog.messages[-1]


@pytest.mark.parametrize("keeps_at_once", [True, False])
def test_a_resume_logs_what_the_tracker_does_not_have(tmp_path, clock, keeps_at_once):
    """Killed in the validation after step 3, whose loss the tracker has; metrics.csv is cut back."""
    logger = FailsSoftly()
    logger.keeps_at_once = lambda: keeps_at_once  # else the kill takes what it had
    logger.begin(tmp_path, {}, resumes=True)
    for step, loss in enumerate((0.5, 0.4, 0.3)):
        logger.log_metrics({"train/loss": loss}, step)
    # A kill while the checkpoint of step 2 was saved had kept its validation from the tracker.
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/loss,clips\n1,0,0.5,,4\n2,0,0.4,0.7,8\n")
    logger = FailsSoftly()
    logger.begin(tmp_path, {}, resumes=True)
    logger.log_metrics({"train/loss": 0.3}, 2)
    logger.log_metrics({"val/loss": 0.6, "epoch": 0}, 2)
    logger.renumber()
    logger.log_metrics({"train/loss": 0.1}, 1)
    loss = [{}, {}, {}] if keeps_at_once else [{"train/loss": value} for value in (0.5, 0.4, 0.3)]
    assert [told for told in logger.told if told[1]] == [
        (0, {"epoch": 0, **loss[0]}),
        (1, {"epoch": 0, "val/loss": 0.7, **loss[1]}),
        *([(2, loss[2])] if loss[2] else []),
        (2, {"val/loss": 0.6, "epoch": 0}),
        (1, {"train/loss": 0.1}),
    ]


@pytest.mark.parametrize("text", ["[1", '{"mlflow": "abc"}', '{"mlflow": {"run": 3, "steps": {}}}'])
def test_a_damaged_record_is_set_aside(tmp_path, caplog, text):
    (tmp_path / "trackers.json").write_text(text)
    assert trackers.read_record(tmp_path) == {}
    assert (tmp_path / "trackers.json.damaged").read_text() == text and "The trackers get a new run" in caplog.text


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_names_its_extra(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed. .*pip install 'video-gn\[{name}\]'"):
        build_logger(getattr(trackers, name), tmp_path, step=0, continues=False, settings={})


UNSET = dict.fromkeys(("tracking_uri", "artifact_location", "run_id", "run_name", "experiment_name"))


def test_runs_that_start_together_open_a_database_one_by_one(monkeypatch, tmp_path):
    """Each would make the tables of a new one, and all but one would fail."""
    running, most = [], []

    class Slow(trackers.mlflow):
        def __init__(self, **settings):
            running.append(self)
            most.append(len(running))
            time.sleep(0.05)
            running.pop()

    monkeypatch.setattr(trackers, "needed", lambda *names, **settings: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with ThreadPoolExecutor(3) as pool:
        for name in "abc":
            pool.submit(build_logger, Slow, tmp_path / name, step=0, continues=False, settings=dict(UNSET))
    assert most == [1, 1, 1] and not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_be_opened_ends_no_run_that_goes_on(monkeypatch, tmp_path, caplog):
    class Broken(trackers.mlflow):
        def __init__(self, **settings):
            raise RuntimeError("file is not a database.")

    monkeypatch.setattr(trackers, "needed", lambda *names, **settings: None)
    given = UNSET | {"tracking_uri": "x://y"}
    with pytest.raises(ConfigError, match=r"^mlflow cannot open x://y: RuntimeError: file is not a database. Mend or"):
        build_logger(Broken, tmp_path, step=0, continues=False, settings=dict(given))
    assert type(build_logger(Broken, tmp_path, step=8, continues=True, settings=dict(given))) is DummyLogger
    assert "file is not a database. This command goes on without it" in caplog.text


# ---- real trackers -------------------------------------------------------------------------------


def points_of(uri, run_id):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    names = client.get_run(run_id).data.metrics
    return {name: [(m.step, pytest.approx(m.value)) for m in client.get_metric_history(run_id, name)] for name in names}


def records_of(path):
    """The records in a .wandb file: a header of 7 bytes, then LevelDB's log of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no room for a header: the block's rest is empty
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


@pytest.fixture(scope="module")
def play():
    with forked_after("mlflow", "wandb", **QUIET) as run:
        yield run


def key_of(item):
    return item.key or ".".join(item.nested_key)


@pytest.mark.slow
@pytest.mark.needs_trackers
def test_a_killed_resumed_and_tested_run_is_one_run_of_its_trackers(play, tiny_videos, tmp_path):
    """MLflow's file and W&B's own files hold what metrics.csv does, read by MLflow's client and from W&B's log."""
    words = [*FIT, f"--data.train={tiny_videos}", "--trainer.logger=mlflow"]
    kill = ["--trainer.callbacks+=runs.SignalAt", "--trainer.callbacks.steps={3: 9}"]
    status, printed = play([*words, *kill], tmp_path)
    assert status == -9, printed
    place = tmp_path / "runs/mine"
    run_id = runs_in(place)["mlflow"]
    resume = ["fit", "--run_dir=runs/mine", "--ckpt_path=last", "--trainer.logger=[mlflow,wandb,tensorboard]"]
    status, printed = play([*resume, "--trainer.callbacks.steps={5: 15}"], tmp_path)
    assert "(step 2)" in printed and "stopped" in printed, printed
    known = runs_in(place)
    status, printed = play([*resume, "--trainer.callbacks=null"], tmp_path)
    assert status == 0 and "(step 6)" in printed, printed
    status, printed = play(["test", "--run_dir=runs/mine"], tmp_path)
    assert status == 0, printed
    assert runs_in(place) == known and known["mlflow"] == run_id

    rows = read_metrics(place / "metrics.csv")
    names = ("train/loss", "lr", "val/loss", "val/top1")
    curves = {name: [(row["step"] - 1, row[name]) for row in rows if name in row] for name in names}
    assert [step for step, _ in curves["train/loss"]] == list(range(STEPS))
    tested = json.loads((place / "test/metrics.json").read_text())
    check_mlflow(tmp_path / "runs/mlflow.db", run_id, curves, tested, place)
    check_wandb(place, known["wandb"], curves, tested)
    events = EventAccumulator(str(place / "tensorboard"))
    events.Reload()
    for name, curve in curves.items():  # a logger that the second command has added
        assert [(e.step, pytest.approx(e.value)) for e in events.Scalars(name)] == curve[-len(events.Scalars(name)) :]


def runs_in(run_dir):
    return {name: entry["run"] for name, entry in json.loads((run_dir / "trackers.json").read_text()).items()}


def check_mlflow(database, run_id, curves, tested, place):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (run_id, "mine", "FINISHED")
    assert found.data.params["model.net.init_args.norm"] == "group"
    assert found.data.params["run_dir"] == "runs/mine"
    for name, curve in curves.items():
        assert [(m.step, pytest.approx(m.value)) for m in client.get_metric_history(run_id, name)] == curve
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "test/top1")] == [(STEPS, tested["top1"])]
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["best.ckpt", "report.html"]
    for path in (place / "checkpoints/best.ckpt", place / "report.html"):
        copy = client.download_artifacts(run_id, path.name)
        assert Path(copy).read_bytes() == path.read_bytes()


def check_wandb(place, run_id, curves, tested):
    told, artifacts = {}, []
    files = sorted(place.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 3
    for path in files:
        records = list(records_of(path))
        (opened,) = (record.run for record in records if record.HasField("run"))
        assert (opened.run_id, opened.display_name, opened.project) == (run_id, "mine", "video-gn")
        settings = {key_of(u): u.value_json for r in records if r.HasField("config") for u in r.config.update}
        assert settings["model.net.init_args.norm"] == '"group"'
        artifacts += [record.artifact for record in records if record.HasField("artifact")]
        for record in (record.history for record in records if record.HasField("history")):
            row = {key_of(item): json.loads(item.value_json) for item in record.item}
            for name in row:
                told.setdefault(name, []).append((row.get("trainer/global_step"), row[name]))
    for name, curve in curves.items():
        assert [(step, pytest.approx(value)) for step, value in told[name]] == curve
    assert told["test/top1"] == [(STEPS, tested["top1"])]
    assert [(a.type, a.name) for a in artifacts] == [
        ("report", f"report-{run_id}"), ("model", f"best-{run_id}"), ("report", f"report-{run_id}"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.needs_trackers
def test_unreachable_trackers_cost_a_warning(play, tiny_videos, tmp_path):
    """Nothing listens at either address: MLflow's figures are lost, W&B's lie in its files."""
    words = [*FIT, f"--data.train={tiny_videos}", "--trainer.logger=[mlflow,wandb]", "--trainer.max_epochs=1"]
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    status, printed = play(words, tmp_path, **away, WANDB_MODE="online", WANDB_API_KEY="0" * 40, WANDB_INIT_TIMEOUT="3")
    assert status == 0, printed
    assert len(read_metrics(tmp_path / "runs/mine/metrics.csv")) == 4
    assert printed.count("it is tried again every minute") == 1
    assert "wandb works offline" in printed and list((tmp_path / "runs/mine/wandb").glob("offline-run-*"))
    assert "mlflow" not in json.loads((tmp_path / "runs/mine/trackers.json").read_text())


@pytest.mark.slow
@pytest.mark.needs_trackers
def test_a_damaged_database_is_one_error_before_a_training(play, tiny_videos, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mlflow.db").write_text("no database")
    status, printed = play([*FIT, f"--data.train={tiny_videos}", "--trainer.logger=mlflow"], tmp_path)
    assert status in (1, 2) and [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]
    error = printed.splitlines()[-1]
    assert "error: mlflow cannot open sqlite:///" in error and "another --trainer.logger." in error, printed
