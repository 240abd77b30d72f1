"""Every config is complete, parses, and builds its network at full size."""

from pathlib import Path

import pytest
import yaml
from runs import run

from video_gn.models import VideoNet
from video_gn.run.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "study")
TABLE_8 = sorted((ROOT / "configs/kinetics400").glob("*.yaml"))


def test_there_are_configs():
    assert len(TABLE_8) == 6
    assert {p.name for p in CONFIGS} >= {"demo.yaml", "finetune.yaml", "finetune_small.yaml", "weizmann.yaml"}


@pytest.fixture(scope="module")
def build():
    """Parses a config as `video-gn fit` does and builds data module, net and optimizer settings."""
    from video_gn.commands._settings import config_parser

    parser = config_parser()

    def run(path):
        return parser.instantiate_classes(parser.parse_path(str(path)))

    return run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_parses_and_builds(build, path):
    config = yaml.safe_load(path.read_text())
    assert config["seed_everything"] == 0
    built = build(path)
    net = built.model.net
    assert isinstance(net, VideoNet)
    for name, value in config["model"]["net"]["init_args"].items():
        assert value is None or net.arguments[name] == value, name
    assert built.data.clip.num_frames == config["data"]["clip"]["num_frames"]


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if "x3d" in p.stem else []) for p in CONFIGS]
)
def test_two_steps_at_reduced_size(path, tiny_videos, tmp_path):
    """The recipe as it stands; clips, width, videos and weights are small ones."""
    net = yaml.safe_load(path.read_text())["model"]["net"]["init_args"]
    small = [
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.max_epochs=-1",
        "--trainer.max_steps=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.precision=32-true",
        "--model.weights=null",
        "--model.schedule.name=constant",
        "--model.schedule.warmup=0",
        "--model.net.width=4",
        *(["--model.net.num_groups=2"] if net.get("num_groups") else []),
        f"--data.train={tiny_videos}",
        "--data.val=null",
        "--data.split.group_by=null",
        "--data.split.val_groups=null",
        "--data.batch_size=4",
        "--data.loader.num_workers=0",
        "--data.clip.num_frames=16",
        "--data.clip.stride=1",
        "--data.augment.short_side_px=[32,36]",
        "--data.augment.crop_px=32",
        "--data.views.short_side_px=32",
        "--data.views.crop_px=32",
    ]
    status, printed = run(["fit", "-c", str(path), f"--run_dir={tmp_path / 'run'}", *small], tmp_path)
    assert status == 0, printed
    rows = read_metrics(tmp_path / "run/metrics.csv")
    assert rows[-1]["step"] == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_header_says_what_it_is_and_how_to_run_it(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"video-gn fit -c {path.relative_to(ROOT)}" in text
    for word in ("Command", "Hardware", "Cost", "Score"):
        assert f"# {word}" in text
    if path in TABLE_8:
        assert "Table 8" in header[0]
        assert "--model.weights null" in text


@pytest.mark.parametrize("path", TABLE_8, ids=lambda p: p.stem)
def test_a_row_of_table_8(build, path):
    _, _, norm, clip, batch = path.stem.split("_")
    built = build(path)
    net, data = built.model.net, built.data
    assert net.arguments["norm"] == {"bn": "batch", "gn": "group"}[norm]
    assert sum(p.numel() for p in net.parameters()) == 28_043_472
    assert (data.clip.num_frames, data.clip.stride) == tuple(map(int, clip.split("x")))
    assert data.batch_size == int(batch.removeprefix("b"))
    assert (data.augment.short_side_px, data.augment.crop_px, data.augment.flip) == ((256, 320), 224, 0.5)
    assert (data.views.num_clips, data.views.spacing, data.views.crops) == (10, "nonlocal", "center")
    optimizer, schedule = built.model.optimizer_config, built.model.schedule_config
    assert (optimizer.lr, optimizer.reference_batch_size, optimizer.momentum, optimizer.nesterov) == (
        0.01,
        64,
        0.9,
        True,
    )
    assert (optimizer.weight_decay, optimizer.norm_weight_decay) == (1e-4, 0.0)
    assert (schedule.name, schedule.unit, list(schedule.milestones), schedule.gamma) == ("step", "epoch", [41, 82], 0.1)
    assert schedule.warmup == 0
    wanted = {"bn": "torchvision:resnet50.IMAGENET1K_V1", "gn": "timm:resnet50_gn.a1h_in1k"}[norm]
    assert built.model.weights == wanted
    assert built.model.input_is_told == (False, False), "mean and std are the weights'"
    assert built.trainer["max_epochs"] == 109


def test_bn_and_gn_differ_in_the_norm_alone():
    for clip in ("32x2_b8", "32x2_b4", "64x1_b4"):
        bn, gn = (
            yaml.safe_load((ROOT / f"configs/kinetics400/i3d_r50_{n}_{clip}.yaml").read_text()) for n in ("bn", "gn")
        )
        assert gn["model"]["net"]["init_args"].pop("num_groups") == 32
        assert bn["model"]["net"]["init_args"].pop("norm") == "batch"
        assert gn["model"]["net"]["init_args"].pop("norm") == "group"
        assert (bn["model"].pop("weights"), gn["model"].pop("weights")) == (
            "torchvision:resnet50.IMAGENET1K_V1",
            "timm:resnet50_gn.a1h_in1k",
        )
        assert bn == gn
