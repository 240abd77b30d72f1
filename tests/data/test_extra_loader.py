import pytest
import torch
from small import data_module

from video_gn.data.configs import LoaderConfig
from video_gn.data.samplers import ExtraSampler, TrainSampler
from video_gn.errors import ManifestError


def sampler(**changes):
    return ExtraSampler(
        **{"num_records": 10, "batch_size": 2, "num_batches": 6, "seed": 0, "stream": 0, "start": 5, **changes}
    )


def test_no_key_comes_twice_nor_is_one_of_trainings_or_another_streams():
    keys = list(sampler())
    assert len(keys) == len(sampler()) == 12
    assert sorted(record for _, record in keys[:10]) == list(range(10)), "the list once, then again"
    others = [list(sampler(**c)) for c in ({"start": 6}, {"stream": 1}, {"start": 0})]
    training = TrainSampler(10, batch_size=2, seed=0)
    for epoch in range(3):
        training.set_epoch(epoch)
        others.append(list(training))
    everything = [key for listed in (keys, *others) for key in listed]
    assert len(set(everything)) == len(everything)
    assert list(sampler()) == keys
    assert list(sampler(seed=1)) != keys


def test_the_global_batches_do_not_depend_on_the_number_of_processes():
    whole = list(sampler(batch_size=4, num_batches=3))
    parts = [list(sampler(batch_size=2, num_batches=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [k for b in range(3) for part in parts for k in part[2 * b : 2 * b + 2]] == whole


def test_the_data_set_is_the_trainings(tiny_videos):
    module = data_module(tiny_videos)
    module.read("fit")
    training = module.train_dataloader().dataset
    assert torch.equal(module.train_dataset()[0, 3].frames_VTCHW, training[0, 3].frames_VTCHW)
    assert vars(module.train_dataset()).keys() == vars(training).keys()


def test_broken_videos_are_replaced_as_in_training_and_balance_is_kept(tmp_path, tiny_videos):
    listed = tmp_path / "labels.csv"
    lines = [f"{tiny_videos}/one/{i:02d}.mp4,one" for i in range(8)]
    lines += [f"{tiny_videos}/two/00.mp4,two", f"{tmp_path}/broken.mp4,two"]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    listed.write_text("\n".join(["path,label", *lines]) + "\n")
    module = data_module(listed, val=str(listed))
    module.read("fit")
    batches = list(module.extra_train_dataloader(stream=3, start=7, num_batches=4))
    assert [len(batch) for batch in batches] == [4] * 4
    failures = [f.path for batch in batches for f in batch.failures]
    assert set(failures) == {str(tmp_path / "broken.mp4")}
    workers = data_module(listed, val=str(listed), loader=LoaderConfig(num_workers=2))
    workers.read("fit")
    state = torch.get_rng_state()
    again = list(workers.extra_train_dataloader(stream=3, start=7, num_batches=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a.frames_NKTCHW, b.frames_NKTCHW) for a, b in zip(batches, again, strict=True))
    listed.write_text("\n".join(["path,label", *lines[:9]]) + "\n")
    balanced = data_module(listed, val=str(listed), balance="class")
    balanced.read("fit")
    labels = torch.cat([b.labels for b in balanced.extra_train_dataloader(stream=0, start=0, num_batches=4)])
    assert (labels == 1).sum() >= 6, "half of 16, though only one of nine records is of that class"


def test_an_empty_list(tiny_videos):
    module = data_module(tiny_videos)
    module.read("fit")
    object.__setattr__(module.manifests["train"], "records", [])
    with pytest.raises(ManifestError, match="no training videos"):
        module.extra_train_dataloader(stream=0, start=0, num_batches=1)
