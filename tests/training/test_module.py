from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from video_gn.clips import ClipBatch
from video_gn.errors import CheckpointError
from video_gn.evaluation.scores import normalize_clips, score_views
from video_gn.models import i3d
from video_gn.training.module import VideoClassifier, check_same_net


def net(**changes):
    torch.manual_seed(0)
    made = i3d(50, **{"width": 4, "num_groups": 2, "num_classes": 6, "dropout": 0.0, **changes})
    with torch.no_grad():  # scores that differ between clips: at the start the last norms are 0
        for name, parameter in made.named_parameters():
            if name.endswith("norm_c.weight"):
                parameter.fill_(1.0)
        made.classifier.weight.normal_(std=1.0)
    return made


def batch(num_videos=2, num_views=3):
    generator = torch.Generator().manual_seed(num_videos)
    shape = (num_videos, num_views, 8, 40, 44, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 1, 2, 5, 3, 4)
    ids = torch.arange(num_videos)
    return ClipBatch(frames, ids % 6, ids)


def task(**changes):
    made = VideoClassifier(net(), mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], **changes)
    made.log = lambda *args, **kwargs: None
    return made


def test_pixels_become_normalized_and_channels_last():
    frames = batch().frames_NKTCHW[:, 0]
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    x = normalize_clips(frames, mean, std)
    wanted = (frames.double() / 255 - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
    assert x.shape == (2, 3, 8, 40, 44)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(x.double(), wanted.transpose(1, 2), rtol=0, atol=2e-6)  # float32 at values up to 3


def test_the_training_loss_is_the_mean_cross_entropy_of_all_clips():
    module = task().train()
    b = batch()
    module._trainer = None
    module.optimizers = lambda: SimpleNamespace(param_groups=[{"lr": 0.1}])
    loss = module.training_step(b, 0)
    logits = module.net(normalize_clips(b.frames_NKTCHW.flatten(0, 1), module.mean, module.std))
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([0, 0, 0, 1, 1, 1])))


@pytest.mark.parametrize("views_per_forward", [1, 2, 3, 10])
def test_a_videos_scores_do_not_depend_on_its_neighbours(views_per_forward):
    module = task(views_per_forward=views_per_forward).eval()
    b = batch(num_videos=3)
    with torch.no_grad():
        together = module.predict_step(b, 0)
        for row in range(3):
            alone = ClipBatch(
                b.frames_NKTCHW[row : row + 1],
                b.labels[row : row + 1],
                b.video_ids[row : row + 1],
            )
            assert torch.equal(module.predict_step(alone, 0)[0], together[row]), "bit for bit"
    torch.testing.assert_close(together.sum(-1), torch.ones(3, 3))


def test_views_are_scored_one_softmax_each():
    module = task().eval()
    frames = batch().frames_NKTCHW[0]
    with torch.no_grad():
        scores = score_views(module.net, frames, mean_C=module.mean, std_C=module.std, views_per_forward=2)
        for view in range(3):
            x = normalize_clips(frames[view : view + 1], module.mean, module.std)
            torch.testing.assert_close(scores[view], module.net.logits(x).softmax(-1)[0], rtol=1e-4, atol=1e-6)


def test_a_batch_of_no_video_has_no_scores():
    module = task().eval()
    b = batch()
    empty = ClipBatch(*(t[:0] for t in (b.frames_NKTCHW, b.labels, b.video_ids)))
    assert module.test_step(empty, 1).shape == (0, 0, 6)
    assert module.validation_step(empty, 1).shape == (0, 1, 6)


@pytest.mark.parametrize("settings", [{"views_per_forward": 0}, {"mean": [0.5]}, {"std": [0.2, 0.2, 0.0]}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="views_per_forward must be|mean and std must be"):
        VideoClassifier(net(), **settings)


def test_checkpoints_of_other_networks():
    one, other = net().arguments, net(dropout=0.7).arguments
    check_same_net(one, other)
    with pytest.raises(CheckpointError, match="norm: 'group' there, 'batch' here"):
        check_same_net(one, {**one, "norm": "batch"})
    own = {"network": "own", "class": "my_net.MyNet"}
    with pytest.raises(CheckpointError, match=r"\(network: 'my_net.MyNet' there, 'i3d' here\)"):
        check_same_net(own, one)
    with pytest.raises(CheckpointError, match="no key 'video_gn'"):
        task().on_load_checkpoint({})


def test_order_and_names_of_classes_are_checked():
    module = task()
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(classes=("a", "b")))
    stored = {"net": module.net.arguments, "classes": ["b", "a"]}
    with pytest.raises(CheckpointError, match="have another order than the data"):
        module.on_load_checkpoint({"video_gn": stored})
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: \['c'\], only in the data: \['b'\]"):
        module.on_load_checkpoint({"video_gn": {**stored, "classes": ["a", "c"]}})
    module.on_load_checkpoint({"video_gn": {**stored, "classes": ["a", "b"]}})
    assert module.classes == ["a", "b"]
    module._trainer.datamodule.classes = ("ride_bike", "a")
    module.on_load_checkpoint({"video_gn": {**stored, "classes": ["ride bike", "a"]}})  # the same classes


def test_what_a_checkpoint_says_is_plain_and_loads_without_executing_anything(tmp_path):
    checkpoint = {}
    task().on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    about = torch.load(tmp_path / "a.ckpt", weights_only=True)["video_gn"]
    assert about["mean"] == pytest.approx([0.4, 0.5, 0.6])
    rebuilt = i3d(**about["net"])
    assert [n for n, _ in rebuilt.named_parameters()] == [n for n, _ in net().named_parameters()]


def test_a_runs_directory_as_weights_is_its_best_checkpoint(tmp_path):
    first, second = (i3d(50, norm="group", width=8, num_classes=3) for _ in range(2))
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    torch.save(first.state_dict(), tmp_path / "run/checkpoints/best.ckpt")
    VideoClassifier(second, weights=str(tmp_path / "run")).load_weights()
    theirs = first.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in second.state_dict().items())
    with pytest.raises(CheckpointError, match="is a directory without checkpoints/best.ckpt or last.ckpt"):
        VideoClassifier(second, weights=str(tmp_path)).load_weights()
