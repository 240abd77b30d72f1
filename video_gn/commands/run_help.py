"""The short help of fit, validate, test and predict: it answers at once, without Lightning."""

from __future__ import annotations

from video_gn.commands._options import Options

USAGE = {
    "fit": "video-gn fit -c CONFIG [--run_dir DIR] [--ckpt_path last|FILE] [--KEY VALUE ...]",
    **{
        name: f"video-gn {name} --run_dir DIR [-c CONFIG] [--ckpt_path best|last|FILE] [--KEY VALUE ...]"
        for name in ("validate", "test", "predict")
    },
}
ABOUT = {
    "fit": "Train a network, and write what it leaves into a run directory.",
    "validate": "Print a checkpoint's loss and accuracy on one clip of each validation video.",
    "test": "Test a checkpoint on all views of each test video.",
    "predict": "Label the videos of data.predict with a checkpoint, on all ranks of a launch.",
}

# Heading -> (option, value, what it is and its default).
_RUN = (
    ("--run_dir", "DIR", "directory of the run (runs/<the config's stem>)"),
    ("--ckpt_path", "CKPT", "checkpoint: best, last or a file (fit: none, the others: best)"),
    ("--seed_everything", "N", "seed of everything random (0)"),
    ("--print_config", None, "print all settings as a config, and exit"),
)
_TRAINING = {
    "videos": (
        ("--data.train", "PATH", "folders by class, a list or a csv of training videos"),
        ("--data.val", "PATH", "validation videos (a part of those of data.train)"),
        ("--data.batch_size", "N", "clips of a batch on one rank (8)"),
        ("--data.clip.num_frames", "T", "frames of a clip (32)"),
        ("--data.clip.stride", "N", "from one frame of a clip to the next (2)"),
        ("--data.augment.short_side_px", "[A, B]", "sides that the short side is drawn from, px ([256, 320])"),
        ("--data.augment.crop_px", "PX", "side of the random crop (224)"),
        ("--data.loader.num_workers", "N", "processes that decode (one a core, shared by the ranks)"),
    ),
    "network": (
        ("--model.net.init_args.norm", "NORM", "group, batch, sync_batch, frozen_batch, layer, instance, ..."),
        ("--model.net.init_args.num_groups", "G", "groups of Group Norm (32)"),
        ("--model.weights", "FILE", "weights to start from: a run, a file of any zoo, or a name"),
    ),
    "training": (
        ("--model.optimizer.lr", "RATE", "learning rate at the reference batch size"),
        ("--trainer.max_epochs", "N", "epochs"),
        ("--trainer.accumulate_grad_batches", "N", "batches of a step (1)"),
        ("--trainer.devices", "N", "GPUs, or processes on CPUs (all GPUs)"),
        ("--trainer.precision", "P", "32-true, bf16-mixed, 16-mixed (32-true)"),
    ),
}
_TESTING = {
    "videos": (
        ("--data.test", "PATH", "test videos (the validation videos)"),
        ("--data.predict", "PATH", "videos without labels, for predict"),
        ("--data.views.num_clips", "K", "clips of a video (10)"),
        ("--data.views.crops", "CROPS", "crops of a clip: center, three or full (center)"),
        ("--data.loader.num_workers", "N", "processes that decode (one a core, shared by the ranks)"),
        ("--trainer.devices", "N", "GPUs, or processes on CPUs (all GPUs)"),
    )
}


def short_help(command: str) -> Options:
    """A parser of the options that most runs use, for its help alone."""
    parser = Options(
        prog=f"video-gn {command}",
        usage=USAGE[command],
        description=ABOUT[command],
        epilog="Every line of a config is an option. `--help_all` lists all of them, "
        "`--model.net.help video_gn.models.i3d` those of the network.",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show these options, and exit")
    parser.add_argument("--help_all", action="store_true", help="show every option, and exit; takes some seconds")
    parser.add_argument("-c", "--config", metavar="FILE", help="config, such as configs/demo.yaml")
    groups = {"run": _RUN, **(_TRAINING if command == "fit" else _TESTING)}
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for name, value, text in options:
            if value is None:
                group.add_argument(name, action="store_true", help=text)
            else:
                group.add_argument(name, metavar=value, help=text)
    return parser
