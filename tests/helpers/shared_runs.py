"""A run directory with a checkpoint and the files of its test, without a training."""

import hashlib
import json

import torch
from small import ABOUT

from video_gn.models import NETWORKS

METRICS = {
    "top1": 0.75,
    "top5": None,
    "mean_class_accuracy": 0.625,
    "num_videos": 9,
    "num_failed": 1,
    "coverage": 8 / 9,
    "num_clips": 2,
    "num_crops": 3,
    "failed": [{"path": "/home/somebody/lost.mp4", "reason": "no such file"}],
    "checkpoint": "/home/somebody/runs/mine/checkpoints/best.ckpt",
}
CONFIG = """
seed_everything: 7
data: {train: /home/somebody/lists/train_list.csv, val: /home/somebody/lists/val.csv, TEST batch_size: 4}
model:
  weights: /home/somebody/zoo/start.pyth
  net: {class_path: video_gn.models.i3d, init_args: {depth: 50}}
  optimizer: {name: sgd, lr: 0.05}
trainer: {max_epochs: 12}
averaging: {kind: ema}
run_dir: /home/somebody/runs/mine
"""


def make_run(
    place,
    *,
    network="i3d",
    net=None,
    norm="group",
    classes=("a", "b", "ç, d"),
    test="test: /home/somebody/lists/held_out.csv,",
    **metrics,
):
    """A run of a random network of width 4, or of `net`, in a directory; returns it in evaluation mode."""
    torch.manual_seed(0)
    groups = {"num_groups": 2} if norm == "group" else {}
    of_i3d = {"depth": 50, "zero_init_last_norm": False} if network == "i3d" else {}
    net = (net or NETWORKS[network](norm=norm, width=4, num_classes=len(classes), **of_i3d, **groups)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    about = {**ABOUT, "version": "0.0.9", "net": net.arguments, "classes": list(classes)}
    about["environment"] = {
        "cpu": "of somebody",
        "python": "3.11.1",
        "torch": "2.11.0",
        "lightning": "2.6.0",
        "av": "18.0",
    }
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    path = place / "checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"video_gn": about, "state_dict": state, "global_step": 1234, "epoch": 3}, path)
    (place / "config.yaml").write_text(CONFIG.replace("TEST", test))
    (place / "test").mkdir()
    (place / "test/config.yaml").write_text(CONFIG.replace("TEST", test))
    digest = f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    (place / "test/metrics.json").write_text(json.dumps({**METRICS, "checkpoint_digest": digest, **metrics}))
    return net
