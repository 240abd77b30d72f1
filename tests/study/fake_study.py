"""A small study, and commands that stand in for its processes: they only write what a run leaves."""

import json
from pathlib import Path

import yaml

from video_gn.run.metrics_file import format_metrics

BASE = {
    "trainer": {"max_epochs": 2},
    "model": {
        "net": {"class_path": "video_gn.models.i3d", "init_args": {"norm": "group", "num_groups": 4, "width": 16}},
        "optimizer": {"lr": 0.02, "reference_batch_size": 8},
    },
    "data": {"train": "videos", "batch_size": 8, "clip": {"num_frames": 16, "stride": 2}},
}
STUDY = {
    "base": "base.yaml",
    "norms": {"BN": {"norm": "batch"}, "GN": {"norm": "group", "num_groups": 2}},
    "batch_sizes": [8, 2],
    "seeds": {0: {"data.split.val_groups": ["a"]}, 1: {"data.split.val_groups": ["b"]}},
    "settings": {"trainer.max_epochs": 3},
}


def write_study(directory, config=None, **changes):
    """Write base.yaml and a study of it, with keys replaced or, where None, taken out."""
    (directory / "base.yaml").write_text(yaml.safe_dump(config or BASE))
    content = {key: value for key, value in (STUDY | changes).items() if value is not None}
    path = directory / "s.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# (line, batch size, seed) -> for each of four videos whether it is labelled rightly.
RIGHT = {
    ("bn", 8, 0): (1, 1, 1, 0), ("gn", 8, 0): (1, 1, 1, 1), ("bn", 2, 0): (0, 0, 1, 0), ("gn", 2, 0): (1, 1, 0, 1),
    ("bn", 8, 1): (1, 0, 1, 0), ("gn", 8, 1): (1, 1, 1, 0), ("bn", 2, 1): (0, 0, 0, 0), ("gn", 2, 1): (1, 0, 0, 1),
}  # fmt: skip


class Commands:
    """Stands in for processes: notes each command, and writes a run's files."""

    def __init__(self, *, fail=(), held_out=True):
        self.calls = []
        self.words = {}  # (command, directory) -> its options
        self.fail = fail
        self.held_out = held_out

    def __call__(self, words, log):
        options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
        name = Path(options["run_dir"]).name
        self.calls.append((words[0], name))
        assert options["ckpt_path"] == "last"
        log.write_text(log.read_text() + "epoch 1\nvideo-gn: error: no videos\nbye\n")
        if (words[0], name) in self.fail:
            return 2
        if log.parent.parent.name == "pretrain":
            norm, seed = name.split("_")
            key = (norm, 8, int(seed[1:]))
            if words[0] == "fit":
                (log.parent / "checkpoints").mkdir(exist_ok=True)
                (log.parent / "checkpoints/last.ckpt").write_text(f"weights of {name}, made by call {len(self.calls)}")
        else:
            norm, _, size, seed = name.split("_")
            key = (norm, int(size[1:]), int(seed[1:]))
        self.words[(words[0], name)] = options
        (self._fit if words[0] == "fit" else self._test)(log.parent, RIGHT[key], key)
        return 0

    def _fit(self, run_dir, right, key):
        rows, step = [], 0
        for epoch in range(3):
            for _ in range(20 // key[1]):  # 20 videos: batches of 8 leave four out
                step += 1
                rows.append({"step": step, "epoch": epoch, "train/loss": 3 - epoch + 0.1 * (step % 2)})
            rows[-1] |= {"val/loss": 2.0 - epoch / 2, "val/top1": sum(right) / 4 - (2 - epoch) / 10}
        columns = ("step", "epoch", "lr", "train/loss", "val/loss", "val/top1", "val/top5")
        (run_dir / "metrics.csv").write_text(format_metrics(rows, columns, header=True))

    def _test(self, run_dir, right, key):
        (run_dir / "test").mkdir(exist_ok=True)
        top1 = sum(right) / 4
        metrics = {
            "top1": top1,
            "top5": None,
            "mean_class_accuracy": top1 / 2,
            "num_videos": 4,
            "num_failed": 0,
            "coverage": 1.0,
        }
        (run_dir / "test/metrics.json").write_text(json.dumps(metrics))
        with (run_dir / "test/predictions.csv").open("w") as file:
            file.write("video,label,pred,score,top5,num_views\n")
            for number, is_right in enumerate(right):
                place = f"{key[2] if self.held_out else 0}/{number}.mp4"
                file.write(f"{place},run,{'run' if is_right else 'walk'},0.5,,2\n")


ORDER = [(command, cell) for cell in (
    "bn_16x2_b8_s0", "gn_16x2_b8_s0", "bn_16x2_b2_s0", "gn_16x2_b2_s0",
    "bn_16x2_b8_s1", "gn_16x2_b8_s1", "bn_16x2_b2_s1", "gn_16x2_b2_s1",
) for command in ("fit", "test")]  # fmt: skip
