"""Weights on the command line: `--model.weights`, `infer` from a zoo's file, `weights inspect` and `convert`."""

import json

import pytest
import torch
import weight_files as files
import yaml
from runs import TINY, run

from video_gn.models import i3d
from video_gn.weights.keymaps import KEYMAPS

MORE = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=2"]


def fit(videos, run_dir, *more):
    return ["fit", *TINY, f"--data.train={videos}", f"--run_dir={run_dir}", *MORE, *more]


def state(zoo, *, num_classes=3, layout="nonlocal", seed=0):
    torch.manual_seed(seed)
    net = i3d(50, layout=layout, norm="batch", width=4, num_classes=num_classes, zero_init_last_norm=False)
    return {KEYMAPS[zoo].to_theirs(k): v for k, v in net.state_dict().items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Weights of an image network, width 4, in torchvision's names."""
    path = tmp_path_factory.mktemp("images") / "resnet50.pth"
    flat = {k: v.sum(2) if v.ndim == 5 else v for k, v in state("torchvision", num_classes=1000).items()}
    return files.flat_pth(path, flat)


@pytest.mark.slow
def test_a_training_starts_from_a_zoos_weights_and_goes_on_without_them(tiny_videos, tmp_path, images):
    weights = tmp_path / "r50.pth"
    weights.write_bytes(images.read_bytes())
    words = fit(tiny_videos, tmp_path / "run", f"--model.weights={weights}")
    status, printed = run(words, tmp_path)
    assert status == 2, printed
    assert "its norms are 'batch', the network's 'group'" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()

    words.append("--model.weights_options.norm_mismatch=reinit")
    status, printed = run(words, tmp_path)
    assert status == 0, printed
    assert "inflated" in printed
    assert "it has 1,000 classes, the network 3" in printed
    report = json.loads((tmp_path / "run/weights.json").read_text())
    assert len([e for e in report["entries"] if "inflated" in e["changes"]]) == 53
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["model"]["weights"] == str(weights)
    assert config["model"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    about = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["video_gn"]
    assert about["std"] == pytest.approx([0.229, 0.224, 0.225])

    # The checkpoint comes before the weights, which need not be there any more; its mean and std come with it.
    weights.unlink()
    status, printed = run([*words, "--ckpt_path=last", "--trainer.max_epochs=2"], tmp_path)
    assert status == 0, printed
    about = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["video_gn"]
    assert about["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert (tmp_path / "run/weights.json").is_file()
    test = ["test", *TINY, f"--data.test={tiny_videos}", f"--run_dir={tmp_path / 'run'}"]
    status, printed = run(test, tmp_path)
    assert status == 0, printed
    config = yaml.safe_load((tmp_path / "run/test/config.yaml").read_text())
    assert config["model"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    status, printed = run([*test, "--model.mean=[0.45, 0.45, 0.45]"], tmp_path)
    assert status == 0, printed
    assert "model.mean is set to [0.45, 0.45, 0.45], but the checkpoint's weights were trained with" in printed


def test_the_first_step_is_the_loaded_networks(tiny_videos, tmp_path):
    """With a learning rate of all but 0 the checkpoint holds the file's tensors."""
    given = state("mmaction", layout="mmaction")
    path = files.mmaction_pth(tmp_path / "m.pth", given)
    words = fit(tiny_videos, tmp_path / "run", f"--model.weights={path}", "--model.optimizer.lr=1e-30")
    words += ["--model.net.norm=batch", "--model.net.num_groups=null", "--model.net.layout=mmaction"]
    status, printed = run(words, tmp_path)
    assert status == 0, printed
    kept = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for key, tensor in given.items():
        if "running" not in key and "num_batches" not in key:
            # Biases that start at 0 have moved by less than 1e-20; everything else is too large to move.
            got = kept["net." + KEYMAPS["mmaction"].to_ours(key)]
            torch.testing.assert_close(got, tensor, rtol=0, atol=1e-20, msg=key)


def test_a_zoos_weights_are_tested_without_any_training(tiny_videos, tmp_path):
    path = files.slowfast_pyth(tmp_path / "s.pyth", state("slowfast", layout="slowfast"))
    words = ["test", *TINY, f"--data.test={tiny_videos}", f"--run_dir={tmp_path / 'run'}", "--data.views.num_clips=2"]
    words += ["--model.net.norm=batch", "--model.net.num_groups=null", "--model.net.layout=slowfast"]
    status, printed = run([*words, f"--model.weights={path}"], tmp_path)
    assert status == 0, printed
    assert json.loads((tmp_path / "run/test/metrics.json").read_text())["num_videos"] == 30
    other = files.slowfast_pyth(tmp_path / "o.pyth", state("slowfast", layout="slowfast", num_classes=9))
    status, printed = run([*words, f"--model.weights={other}"], tmp_path)
    assert status == 1, printed
    assert "leaves 2 tensors at their initial values (blocks.6.proj.weight, ...). Train first" in printed


def test_infer_straight_from_a_zoos_file(tiny_videos, tmp_path):
    video = tiny_videos / "one/00.mp4"
    path = files.pytorchvideo_pyth(tmp_path / "p.pyth", state("pytorchvideo", layout="slowfast", num_classes=400))
    words = ["infer", video, "--num_clips=2", "--output=out.json"]
    status, printed = run([*words, f"--checkpoint={path}"], tmp_path)
    assert status == 0, printed
    from video_gn.lists.class_names import kinetics400

    top = json.loads((tmp_path / "out.json").read_text())["videos"][0]["top"]
    assert {t["label"] for t in top} <= set(kinetics400())

    path = files.caffe2_pkl(tmp_path / "c.pkl", caffe2_blobs())
    (tmp_path / "labels.txt").write_text("left\nright\nup\n")
    status, printed = run([*words, f"--checkpoint={path}", "--labels=labels.txt"], tmp_path)
    assert status == 0, printed
    assert "does not say its layout: taking 'nonlocal'" in printed
    top = json.loads((tmp_path / "out.json").read_text())["videos"][0]["top"]
    assert {t["label"] for t in top} == {"left", "right", "up"}
    status, printed = run([*words, f"--checkpoint={path}", "--labels=labels.txt", "--layout=slowfast"], tmp_path)
    assert status == 0, printed
    assert "does not say" not in printed
    other = json.loads((tmp_path / "out.json").read_text())["videos"][0]["top"]
    assert top != other, "the layout changes what the network computes"

    (tmp_path / "labels.txt").write_text("left\nright\n")
    status, printed = run([*words, f"--checkpoint={path}", "--labels=labels.txt"], tmp_path)
    assert status == 2
    assert "has 3 classes, but 2 labels are given" in printed


def caffe2_blobs():
    blobs = {}
    for key, tensor in state("pytorchvideo").items():
        name = KEYMAPS["caffe2"].to_theirs(key)
        if name is not None:
            blobs[name] = tensor.numpy()
    return blobs


def test_an_image_networks_weights_cannot_label_videos(tiny_videos, tmp_path, images):
    status, printed = run(["infer", tiny_videos / "one/00.mp4", f"--checkpoint={images}"], tmp_path)
    assert status == 2
    assert "holds an image network's weights, so it cannot label videos" in printed


def test_inspect_and_convert(tmp_path, images):
    status, printed = run(["weights", "inspect", images], tmp_path)
    assert status == 0, printed
    assert "ResNet-50, 2-D, to be inflated, width 4" in printed
    status, printed = run(["weights", "convert", images, "i3d.safetensors", "--layout=nonlocal"], tmp_path)
    assert status == 0, printed
    assert "inflated" in printed
    status, printed = run(["weights", "inspect", "i3d.safetensors", "--tensors"], tmp_path)
    assert status == 0, printed
    for words in ("format     video_gn\n", "layout     nonlocal", "blocks.0.conv.weight", "(4, 3, 5, 7, 7)"):
        assert words in printed
    status, printed = run(["weights", "convert", images, "i3d.safetensors", "--layout=nonlocal"], tmp_path)
    assert status == 2
    assert "exists already" in printed
    status, printed = run(["weights", "inspect", images, "--format=onnx"], tmp_path)
    assert status == 2
    assert "--format must be auto, video_gn, pytorchvideo" in printed
    status, printed = run(["weights", "inspect", "gone.pth"], tmp_path)
    assert status == 2
    assert "gone.pth" in printed


def test_a_converted_checkpoint_is_tested_as_the_original(tiny_videos, tmp_path):
    status, printed = run(fit(tiny_videos, tmp_path / "run"), tmp_path)
    assert status == 0, printed
    best = tmp_path / "run/checkpoints/best.ckpt"
    for source, target in ((best, "a.safetensors"), ("a.safetensors", "b.ckpt")):
        status, printed = run(["weights", "convert", source, target], tmp_path)
        assert status == 0, printed
    for name, checkpoint in (("one", best), ("two", tmp_path / "b.ckpt")):
        words = [
            "test",
            *TINY,
            f"--data.test={tiny_videos}",
            f"--run_dir={tmp_path / name}",
            "--data.views.num_clips=2",
        ]
        status, printed = run([*words, f"--ckpt_path={checkpoint}"], tmp_path)
        assert status == 0, printed
    one, two = ((tmp_path / n / "test/predictions.csv").read_bytes() for n in ("one", "two"))
    assert one == two


def test_weights_alone_are_no_checkpoint_to_go_on_from(tiny_videos, tmp_path):
    source = i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3)
    about = {"net": source.arguments, "classes": ["one", "three", "two"], "mean": [0.5] * 3, "std": [0.5] * 3}
    torch.save(
        {"video_gn": about, "state_dict": {f"net.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    for target in ("b.ckpt", "b.safetensors", "b.pyth"):
        status, printed = run(["weights", "convert", "a.ckpt", target], tmp_path)
        assert status == 0, printed
    test = ["test", *TINY, f"--data.test={tiny_videos}", "--data.views.num_clips=2"]
    for name, words in (("b.safetensors", "checkpoint of a run"), ("b.pyth", "has no key 'state_dict'")):
        status, printed = run([*test, f"--run_dir={tmp_path / 'x'}", f"--ckpt_path={name}"], tmp_path)
        assert status == 2, printed
        assert words in printed
        assert "--model.weights" in printed
    status, printed = run(fit(tiny_videos, tmp_path / "y", "--ckpt_path=b.ckpt"), tmp_path)
    assert status == 2, printed
    assert "has no key 'optimizer_states': it is no checkpoint of a run to resume" in printed
    outputs = []
    for number, name in enumerate(("--ckpt_path=b.ckpt", "--model.weights=b.safetensors", "--model.weights=b.pyth")):
        status, printed = run([*test, f"--run_dir={tmp_path / str(number)}", name], tmp_path)
        assert status == 0, printed
        outputs.append((tmp_path / str(number) / "test/predictions.csv").read_bytes())
    assert len(set(outputs)) == 1
    words = [
        "predict",
        *TINY,
        f"--data.predict={tiny_videos}",
        f"--run_dir={tmp_path / 'p'}",
        "--data.views.num_clips=1",
    ]
    status, printed = run([*words, "--model.weights=b.safetensors"], tmp_path)
    assert status == 0, printed
    found = json.loads((tmp_path / "p/predict/predictions.json").read_text())["videos"]
    assert {t["label"] for t in found[0]["top"]} == {"one", "three", "two"}


def test_fresh_norms_are_not_tested(tiny_videos, tmp_path):
    path = files.slowfast_pyth(tmp_path / "s.pyth", state("slowfast", layout="slowfast"))
    words = [
        "test",
        *TINY,
        f"--data.test={tiny_videos}",
        f"--run_dir={tmp_path / 'run'}",
        "--model.net.layout=slowfast",
    ]
    words += [f"--model.weights={path}", "--model.weights_options.norm_mismatch=reinit"]
    status, printed = run(words, tmp_path)
    assert status == 1, printed
    assert "leaves 106 tensors at their initial values" in printed
    status, printed = run([*words, "--model.weights=gone.pth"], tmp_path)
    assert status == 2, printed
    assert "no checkpoint in" in printed
    assert "gone.pth: no such file" in printed


def test_from_python_any_stage_loads_the_weights(tiny_videos, tmp_path):
    from lightning import Trainer

    from video_gn.data.datamodule import build_datamodule
    from video_gn.training.module import VideoClassifier

    path = files.slowfast_pyth(tmp_path / "s.pyth", state("slowfast", layout="slowfast"))
    for stage in ("test", "validate", "predict"):
        net = i3d(50, layout="slowfast", norm="batch", width=4, num_classes=3)
        model = VideoClassifier(net, weights=str(path))
        data = build_datamodule(
            {
                "test": str(tiny_videos),
                "predict": str(tiny_videos),
                "clip": {"num_frames": 8},
                "augment": {"short_side_px": (32, 36), "crop_px": 32},
                "views": {"num_clips": 1, "short_side_px": 32},
                "loader": {"num_workers": 0},
            }
        )
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False,
            enable_checkpointing=False, limit_test_batches=1, limit_val_batches=1, limit_predict_batches=1,
        )  # fmt: skip
        getattr(trainer, stage)(model, datamodule=data)
        assert model.load_report is not None
        assert len(model.load_report.taken) == 320
