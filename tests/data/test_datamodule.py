import re
import shutil

import numpy as np
import pytest
import torch
from media import write_numbered_video

from video_gn.data.datamodule import (
    AugmentConfig,
    LoaderConfig,
    SourceConfig,
    SplitConfig,
    VideoDataModule,
    ViewsConfig,
)
from video_gn.data.dataset import ClipConfig
from video_gn.errors import ConfigError, ManifestError
from video_gn.lists import lines

SMALL = {
    "clip": ClipConfig(num_frames=4, stride=2),
    "augment": AugmentConfig(short_side_px=(32, 36), crop_px=32, flip=0.0),
    "views": ViewsConfig(num_clips=3, short_side_px=32),
    "loader": LoaderConfig(num_workers=0),
    "batch_size": 4,
}


def module(*paths, **changes):
    return VideoDataModule(*[str(p) for p in paths], **{**SMALL, **changes})


def batches(loader):
    return [(b.frames_NKTCHW, b.labels.tolist(), b.video_ids.tolist()) for b in loader]


def test_folders_without_parts_are_split_by_class_and_seed(tiny_videos):
    data = module(tiny_videos)
    data.setup("fit")
    train, val = data.manifests["train"], data.manifests["val"]
    assert data.classes == ("one", "three", "two")
    assert (len(train.records), len(val.records)) == (24, 6)
    assert np.bincount([r.label for r in val.records]).tolist() == [2, 2, 2]
    assert not {r.path for r in train.records} & {r.path for r in val.records}
    again = module(tiny_videos)
    again.setup("test")
    assert [r.path for r in again.manifests["test"].records] == [r.path for r in val.records]
    other = module(tiny_videos, seed=1)
    other.setup("fit")
    assert [r.path for r in other.manifests["val"].records] != [r.path for r in val.records]


def test_parts_of_a_folder_are_taken_as_they_are(tiny_videos, tmp_path):
    for part, names in (("train", ("00", "01", "02")), ("val", ("03",)), ("test", ("04", "05"))):
        for label in ("one", "two"):
            for name in names:
                target = tmp_path / part / label / f"{name}.mp4"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tiny_videos / label / f"{name}.mp4", target)
    data = module(tmp_path)
    data.setup("fit")
    assert [len(data.manifests[n].records) for n in ("train", "val", "test")] == [6, 2, 2]
    named = VideoDataModule(str(tmp_path), test=str(tmp_path), **SMALL)
    named.setup("fit")
    assert [len(named.manifests[n].records) for n in ("train", "val", "test")] == [6, 2, 4]


@pytest.mark.parametrize("as_list", [False, True])
def test_training_and_test_parts_without_one_for_validation(tiny_videos, tmp_path, caplog, as_list):
    """Validation is held out of the training part, and the test part is only tested."""
    for path in sorted(tiny_videos.rglob("*.mp4")):
        target = tmp_path / ("Testing" if path.stem > "06" else "train_set") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    source = tmp_path
    if as_list:
        source = tmp_path / "list.csv"
        videos = sorted(tmp_path.rglob("*.mp4"))
        lines = [f"{p.relative_to(tmp_path)},{p.parent.name},{p.parts[-3]}" for p in videos]
        source.write_text("\n".join(["path,label,split", *lines]) + "\n")
    with caplog.at_level("INFO"):
        data = module(source)
        data.setup("fit")
    found = {name: [r.path for r in data.manifests[name].records] for name in ("train", "val", "test")}
    assert {name: len(paths) for name, paths in found.items()} == {"train": 18, "val": 3, "test": 9}
    assert not set(found["train"]) & set(found["val"])
    assert all("Testing" in path for path in found["test"]) and not any("Testing" in p for p in found["val"])
    assert (
        "has no part 'val': 3 videos of 'train' are held out for validation; tests use its part 'test'" in caplog.text
    )
    again = module(source)
    again.setup("test")
    assert [r.path for r in again.manifests["test"].records] == found["test"]
    shutil.rmtree(tmp_path / "Testing")
    if not as_list:
        data = module(source)
        data.setup("fit")
        assert data.manifests["test"] is data.manifests["val"] and len(data.manifests["train"]) == 18


@pytest.mark.parametrize(
    ("parts", "paths", "message"),
    [
        ("val test", {}, "data.train must have a part 'train', or one part alone, got ['val', 'test']"),
        ("fold1 fold2", {}, "data.train must have a part 'train', or one part alone, got ['fold1', 'fold2']. Rename"),
        ("train test", {"val": True}, "data.val must have a part 'val', or one part alone, got ['train', 'test']"),
        ("train val", {"test": True}, "data.test must have a part 'test', or one part alone, got ['train', 'val']"),
    ],
)
def test_parts_that_are_not_those_asked_for(tmp_path, parts, paths, message):
    rows = [f"{part}{i}.mp4,{i % 2},{part}" for part in parts.split() for i in range(4)]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["path,label,split", *rows]) + "\n")
    for row in rows:
        (tmp_path / row.split(",")[0]).touch()
    with pytest.raises(ManifestError, match=re.escape(f"{listed}: {message}")):
        VideoDataModule(str(listed), **dict.fromkeys(paths, str(listed)), **SMALL).setup("fit")


def test_one_class_alone_is_trained_if_it_is_named(tiny_videos, tmp_path):
    shutil.copytree(tiny_videos / "one", tmp_path / "videos/one")
    with pytest.raises(ManifestError, match="classes must be at least 2 to be told apart, got 'one' alone"):
        module(tmp_path / "videos").setup("fit")
    named = module(tmp_path / "videos", source=SourceConfig(classes=["one"]))
    named.setup("fit")
    module(tiny_videos, source=SourceConfig(only_classes=["one"])).setup("fit")
    module(tmp_path / "videos").setup("test")


def test_a_list_with_parts_is_opened_once(tiny_videos, tmp_path, monkeypatch):
    rows = ["path,label,split"]
    for label in ("one", "two"):
        parts = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
        rows += [f"{tiny_videos}/{label}/{i:02d}.mp4,{label},{part}" for i, part in enumerate(parts)]
    listed = tmp_path / "labels.csv"
    listed.write_text("\n".join(rows) + "\n")
    opened = []
    read_bytes = lines.read_text_bytes
    monkeypatch.setattr(lines, "read_text_bytes", lambda path: (opened.append(path), read_bytes(path))[1])
    for paths in ((listed,), (listed, listed, listed)):
        opened.clear()
        data = module(*paths)
        data.setup("fit")
        data.setup("test")
        assert opened == [listed]
        counts = [len(data.manifests[name].records) for name in ("train", "val", "test")]
        assert counts == [12, 4, 4]


def test_groups_lie_on_one_side(tiny_videos, tmp_path):
    lines = ["path,label,person"]
    for label in ("one", "two"):
        lines += [f"{tiny_videos}/{label}/{i:02d}.mp4,{label},p{i % 5}" for i in range(10)]
    listed = tmp_path / "labels.csv"
    listed.write_text("\n".join(lines) + "\n")
    data = module(listed, split=SplitConfig(group_by="person", val_groups=["p1", "p4"]))
    data.setup("fit")
    people = {name: {dict(r.groups)["person"] for r in data.manifests[name].records} for name in ("train", "val")}
    assert people == {"train": {"p0", "p2", "p3"}, "val": {"p1", "p4"}}


def test_training_batches(tiny_videos):
    data = module(tiny_videos)
    data.setup("fit")
    got = batches(data.train_dataloader())
    assert [tuple(frames.shape) for frames, _, _ in got] == [(4, 1, 4, 3, 32, 32)] * 6
    assert sorted(i for _, _, ids in got for i in ids) == list(range(24))
    labels = [r.label for r in data.manifests["train"].records]
    assert all([labels[i] for i in ids] == given for _, given, ids in got)


def test_the_position_comes_back(tiny_videos):
    data = module(tiny_videos)
    data.setup("fit")
    whole = batches(data.train_dataloader())
    resumed = module(tiny_videos)
    resumed.setup("fit")
    resumed.load_state_dict({"epoch": 0, "batches": 4, "clips": 16})
    rest = batches(resumed.train_dataloader())
    assert len(rest) == 2
    for (frames, labels, ids), (frames_2, labels_2, ids_2) in zip(whole[4:], rest, strict=True):
        assert torch.equal(frames, frames_2)
        assert (labels, ids) == (labels_2, ids_2)


def test_a_changed_batch_size_inside_an_epoch_is_refused(tiny_videos):
    data = module(tiny_videos, batch_size=5)
    data.setup("fit")
    data.load_state_dict({"epoch": 0, "batches": 3, "clips": 12})
    with pytest.raises(ConfigError, match="inside an epoch of 4 clips a step, here a step has 5"):
        data.train_dataloader()
    data.load_state_dict({"epoch": 3, "batches": 0, "clips": 0})
    assert len(list(data.train_dataloader())) == 4


def test_evaluation_loaders(tiny_videos):
    data = module(tiny_videos, val_batch_size=5)
    data.setup("fit")
    assert [tuple(b.frames_NKTCHW.shape) for b in data.val_dataloader()] == [(5, 1, 4, 3, 32, 32), (1, 1, 4, 3, 32, 32)]
    assert [tuple(b.frames_NKTCHW.shape) for b in data.test_dataloader()] == [(1, 3, 4, 3, 32, 32)] * 6
    assert [i for b in data.test_dataloader() for i in b.video_ids.tolist()] == list(range(6))
    three = module(tiny_videos, views=ViewsConfig(num_clips=2, crops="three", short_side_px=32, crop_px=30))
    three.setup("test")
    assert {tuple(b.frames_NKTCHW.shape) for b in three.test_dataloader()} == {(1, 6, 4, 3, 30, 30)}
    full = module(tiny_videos, views=ViewsConfig(num_clips=2, crops="full", short_side_px=32))
    full.setup("test")
    assert {tuple(b.frames_NKTCHW.shape) for b in full.test_dataloader()} == {(1, 2, 4, 3, 32, 38)}


def test_a_random_validation_view(tiny_videos):
    data = module(tiny_videos, views=ViewsConfig(val="random", short_side_px=32))
    data.setup("fit")
    first, second = batches(data.val_dataloader()), batches(data.val_dataloader())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_prediction_needs_no_labels(tiny_videos, tmp_path):
    write_numbered_video(tmp_path / "a.mp4", 12)
    data = VideoDataModule(predict=[str(tmp_path), str(tiny_videos / "one")], **SMALL)
    data.setup("predict")
    got = list(data.predict_dataloader())
    assert len(got) == 11
    assert all(b.labels.tolist() == [-1] for b in got)
    assert data.classes == ()


def test_missing_training_videos_are_left_out_and_counted_or_an_error(tiny_videos, tmp_path, caplog):
    listed = tmp_path / "list.txt"
    names = [f"{tiny_videos}/{label}/{i:02d}.mp4 {label}\n" for label in ("one", "two") for i in range(9)]
    listed.write_text("".join(names) + f"{tmp_path}/gone.mp4 one\n")
    data = module(listed, listed)
    data.setup("fit")
    assert len(data.manifests["train"].records) == 18
    assert len(data.manifests["val"].records) == 19, "evaluation keeps it, and reports it as failed"
    assert "1 of 19 training videos are not there" in caplog.text
    with pytest.raises(ManifestError, match=r"list\.txt: 1 of 19 listed training videos are not there"):
        module(listed, listed, source=SourceConfig(missing="error")).setup("fit")


def test_lists_of_which_nothing_is_there(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("a.mp4 one\nb.mp4 two\n")
    with pytest.raises(ManifestError, match="none of the listed training videos is there"):
        module(listed, listed).setup("fit")


def test_unlabelled_training_videos_are_an_error(tiny_videos, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text("path\n" + "".join(f"{tiny_videos}/one/{i:02d}.mp4\n" for i in range(10)))
    with pytest.raises(ManifestError, match="have no label"):
        module(listed, listed).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_broken_fraction": 1.5}, r"max_broken_fraction must be in \[0, 1\]"),
        ({"clip": ClipConfig(num_frames=0)}, r"clip\.num_frames must be at least 1"),
        ({"clip": ClipConfig(stride=0)}, r"clip\.stride must be at least 1"),
        ({"views": ViewsConfig(num_clips=0, short_side_px=32)}, r"views\.num_clips must be at least 1"),
        ({"views": ViewsConfig(spacing="even", short_side_px=32)}, r"views\.spacing must be one of .*nonlocal"),
        ({"val_batch_size": -1}, "val_batch_size must be at least 1"),
        ({"loader": LoaderConfig(num_workers=-1)}, r"loader\.num_workers must be at least 0"),
        ({"source": SourceConfig(fraction=1.5)}, r"source\.fraction must be in \(0, 1\]"),
        ({"backend": "vlc"}, "backend must be one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        module("x", **settings)


def test_what_is_not_given_is_named(tiny_videos):
    with pytest.raises(ManifestError, match=r"data\.predict is not set"):
        module(tiny_videos).setup("predict")
    with pytest.raises(ManifestError, match=r"data\.train is not set"):
        VideoDataModule(val=str(tiny_videos), **SMALL).setup("fit")
    data = module(tiny_videos, batch_size=25)
    data.setup("fit")
    with pytest.raises(ManifestError, match="24 training videos do not fill one batch of 25"):
        data.train_dataloader()


def test_lightnings_padding_sampler_is_refused(tiny_videos):
    from types import SimpleNamespace

    data = module(tiny_videos)
    data.trainer = SimpleNamespace(world_size=2, _accelerator_connector=SimpleNamespace(use_distributed_sampler=True))
    with pytest.raises(ValueError, match="use_distributed_sampler must be False"):
        data.setup("fit")


@pytest.mark.parametrize("folder", ["", "{}/"])
def test_numbers_beside_names_of_another_list_are_asked_about(tmp_path, caplog, folder):
    """A test's numbers are read in the order of the run's names, which may not be that of who numbered them."""
    names, numbers = ["side", "bend", "jack"], {"bend": 0, "jack": 1, "side": 2}
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("".join(f"{name}{i}.mp4,{name}\n" for name in names for i in range(5)))
    test.write_text("".join(f"{folder.format(name)}other.{name}.mp4 {numbers[name]}\n" for name in names))
    for row in train.read_text().split():
        (tmp_path / row.split(",")[0]).touch()
    text = f"{test}: labels are numbers, and the classes are the names of another list, of folders or of a checkpoint"
    asked = text + ": 0 is 'bend', 1 is 'jack', 2 is 'side'. If"
    expected = not folder  # folders show that the numbers are these classes
    of_user = SourceConfig(classes=["bend", "jack", "side"])
    for source, of_checkpoint, want in (
        (SourceConfig(), False, expected), (of_user, False, False), (of_user, True, expected),
    ):  # fmt: skip
        caplog.clear()
        data = VideoDataModule(str(train), test=str(test), source=source)
        data.read(of_checkpoint=of_checkpoint)
        assert caplog.text.count(asked) == caplog.text.count("labels are numbers") == want
        assert data.manifests["test"].labels.tolist() == [2, 0, 1]
