import numpy as np
import pytest
import torch
from media import read_numbers, write_numbered_video
from torch.utils.data import DataLoader

from video_gn import sampling
from video_gn.clips import Failure, VideoNote
from video_gn.data import dataset as dataset_module
from video_gn.data import layout
from video_gn.data.crops import TestCrops, TrainTransform
from video_gn.data.dataset import ClipConfig, EvalDataset, RandomEvalDataset, Sample, TrainDataset
from video_gn.data.layout import collate, read_views
from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import FrameCountError, RunError
from video_gn.lists.records import VideoRecord

# As large as the videos: nothing is resized, so that the numbers stay readable.
WHOLE = TestCrops("full", short_side_px=48)
STILL = TrainTransform((48, 48), 48, 0.0)
CLIP = ClipConfig(num_frames=8, stride=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbered")
    lengths = (40, 9, 25, 60, 33)
    paths = [write_numbered_video(root / f"{i}.mp4", n, size=(48, 48)) for i, n in enumerate(lengths)]
    return [VideoRecord(str(p), i % 3, source="list.txt:1") for i, p in enumerate(paths)], lengths


def numbers(frames_TCHW):
    return read_numbers(frames_TCHW.permute(0, 2, 3, 1).numpy())


def train_set(records, **changes):
    settings = {"clip": CLIP, "transform": STILL, "seed": 5, **changes}
    return TrainDataset(records, **settings)


def eval_set(records, **changes):
    return EvalDataset(records, **{"clip": CLIP, "crops": WHOLE, **changes})


@pytest.mark.parametrize("index", range(5))
def test_a_test_video_gives_the_clips_that_the_protocol_names(videos, index):
    records, lengths = videos
    sample = eval_set(records, num_clips=4)[index]
    wanted = sampling.test_clips(lengths[index], num_clips=4, num_frames=8, stride=2)
    assert [numbers(view) for view in sample.frames_VTCHW] == wanted.tolist()
    assert (sample.label, sample.video_id, sample.failures) == (index % 3, index, ())
    assert (sample.note.path, sample.note.num_frames, sample.note.fps) == (records[index].path, lengths[index], 25.0)


def test_the_validation_clip_is_the_one_in_the_middle(videos):
    records, _ = videos
    sample = eval_set(records, num_clips=None)[3]
    assert [numbers(v) for v in sample.frames_VTCHW] == [sampling.center_clip(60, num_frames=8, stride=2).tolist()]


def test_times_of_clips(videos):
    records, _ = videos
    note = eval_set(records, num_clips=4)[0].note  # 40 frames at 25 fps, clips start at 0, 10, 20, 30
    assert note.clip_seconds[0] == pytest.approx((0.0, 15 / 25))
    assert note.clip_seconds[1] == pytest.approx((10 / 25, 25 / 25))
    assert note.clip_seconds[3] == pytest.approx((30 / 25, 39 / 25)), (
        "30, 32, ... 38, then around: it ends at frame 38's end"
    )


def test_segments_are_videos_of_their_own(videos):
    records, _ = videos
    part = VideoRecord(records[3].path, 0, 0.4, 1.2, source="list.txt:7")  # frames 10 to 29 of 60
    sample = eval_set([part], num_clips=2, clip=ClipConfig(4, 3))[0]
    assert [numbers(v) for v in sample.frames_VTCHW] == [[10, 13, 16, 19], [20, 23, 26, 29]]
    assert sample.note.num_frames == 20
    assert sample.note.clip_seconds[1] == pytest.approx((0.8, 1.2))
    outside = VideoRecord(records[3].path, 0, 5.0, 6.0, source="list.txt:8")
    failed = eval_set([outside])[0]
    assert failed.frames_VTCHW is None
    assert failed.failures[0].reason.startswith("list.txt:8: ")


@pytest.mark.parametrize("crops", [TestCrops("three", short_side_px=24, crop_px=20), TestCrops("center", 48, 32)])
def test_views_from_one_pass_equal_each_clip_decoded_alone(tmp_path, crops):
    path = write_numbered_video(tmp_path / "v.mp4", 150, size=(80, 48))
    indices = sampling.test_clips(150, num_clips=10, num_frames=16, stride=3)
    with open_video(path) as reader:
        views = read_views(reader, indices, crops.apply)
        decoded = reader.num_decoded
        assert decoded <= 150, "each frame once"
        alone = [crops.apply(reader.frames_at(row)) for row in indices]
    assert views.shape == (10 * crops.num_crops, 16, 3, crops.crop_px, crops.crop_px)
    assert torch.equal(views, torch.cat(alone))
    assert views.permute(0, 1, 3, 4, 2).is_contiguous(), "the memory order that channels_last_3d needs"


@pytest.mark.parametrize("start", [0, 41], ids=["in order", "around its end"])
@pytest.mark.parametrize("crops", [TestCrops("three", short_side_px=24, crop_px=20), TestCrops("center", 48, 32)])
def test_one_clip_equals_its_frames_cropped_at_once(tmp_path, crops, start):
    """It is cropped in parts of a few frames; 15 of them leave a smaller last part."""
    path = write_numbered_video(tmp_path / "v.mp4", 50, size=(80, 48))
    indices = (start + np.arange(15) * 2)[None] % 50
    with open_video(path) as reader:
        views = read_views(reader, indices, crops.apply)
        whole = crops.apply(reader.frames_at(indices[0]))
    assert torch.equal(views, whole)
    assert views.permute(0, 1, 3, 4, 2).is_contiguous()


def test_a_training_sample_is_a_function_of_seed_epoch_and_record(videos):
    records, _ = videos
    transform = TrainTransform((40, 48), 32, 0.5)
    first = train_set(records, transform=transform)
    for key in ((0, 3), (1, 3), (7, 0)):
        one, other = first[key], train_set(records, transform=transform)[key]
        assert torch.equal(one.frames_VTCHW, other.frames_VTCHW)
    assert not torch.equal(first[0, 3].frames_VTCHW, first[1, 3].frames_VTCHW)
    other_seed = train_set(records, transform=transform, seed=6)
    assert not torch.equal(first[0, 3].frames_VTCHW, other_seed[0, 3].frames_VTCHW)
    starts = {numbers(train_set(records)[epoch, 3].frames_VTCHW[0])[0] for epoch in range(40)}
    assert len(starts) > 15, "starts vary over epochs"
    assert starts <= set(range(60 - 16 + 1))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(videos, num_workers):
    records, _ = videos
    keys = [(e, i) for e in range(2) for i in range(5)]
    alone = [train_set(records)[key] for key in keys]
    loader = DataLoader(train_set(records), batch_size=2, sampler=keys, num_workers=num_workers, collate_fn=collate)
    got = list(loader)
    assert torch.equal(torch.cat([b.frames_NKTCHW for b in got]), torch.stack([s.frames_VTCHW for s in alone]))
    assert torch.cat([b.labels for b in got]).tolist() == [s.label for s in alone]
    assert all(b.frames_NKTCHW.permute(0, 1, 2, 4, 5, 3).is_contiguous() for b in got)


def test_a_broken_training_video_is_replaced_by_one_that_seed_epoch_and_record_choose(videos, tmp_path):
    records, _ = videos
    (tmp_path / "bad.mp4").write_text("<html>")
    broken = [VideoRecord(str(tmp_path / "bad.mp4"), 2, source="list.txt:9"), *records]
    samples = [train_set(broken)[epoch, 0] for epoch in range(12)]
    again = [train_set(broken)[epoch, 0] for epoch in range(12)]
    for sample, other in zip(samples, again, strict=True):
        assert torch.equal(sample.frames_VTCHW, other.frames_VTCHW)
        assert sample.failures[0].path == broken[0].path
        assert {f.video_id for f in sample.failures} == {0}
        assert sample.video_id != 0
        assert sample.label == broken[sample.video_id].label
        assert sample.note.path == broken[sample.video_id].path
    assert len({s.video_id for s in samples}) > 2, "not always the same one"


def test_when_nothing_can_be_read_training_stops_with_names(tmp_path):
    gone = [VideoRecord(str(tmp_path / f"{i}.mp4"), 0, source="list.txt:1") for i in range(4)]
    with pytest.raises(RunError, match=r"\d\.mp4 could not be read .* nor could any of 10 videos drawn in its place"):
        train_set(gone)[0, 1]


@pytest.mark.parametrize("kind", [EvalDataset, RandomEvalDataset])
def test_evaluation_names_what_it_cannot_read_and_replaces_nothing(videos, tmp_path, kind):
    records, _ = videos
    gone = [VideoRecord(str(tmp_path / "gone.mp4"), 2, source="list.txt:1"), *records]
    dataset = (
        eval_set(gone, num_clips=2)
        if kind is EvalDataset
        else RandomEvalDataset(gone, clip=CLIP, transform=STILL, seed=0)
    )
    failed = dataset[0]
    assert failed.frames_VTCHW is None
    assert (failed.video_id, failed.label) == (0, 2)
    assert failed.failures == (Failure(0, gone[0].path, failed.failures[0].reason),)
    batch = collate([dataset[0], dataset[1]])
    assert len(batch) == 1
    assert batch.video_ids.tolist() == [1]
    assert batch.failures == failed.failures
    assert len(collate([dataset[0]])) == 0
    assert collate([dataset[0]]).failures == failed.failures
    empty = collate([dataset[-1]])
    assert (len(empty), empty.failures) == (0, ())


def test_a_random_validation_clip_is_the_same_every_time(videos):
    records, _ = videos
    one, other = (RandomEvalDataset(records, clip=CLIP, transform=STILL, seed=0) for _ in range(2))
    assert torch.equal(one[3].frames_VTCHW, other[3].frames_VTCHW)
    assert one[3].frames_VTCHW.shape == (1, 8, 3, 48, 48)


@pytest.mark.parametrize("repeats", [1, 3])
def test_only_so_many_large_frames_are_held_at_a_time(tmp_path, monkeypatch, repeats):
    path = write_numbered_video(tmp_path / "video.mp4", 60)
    record, asked = VideoRecord(str(path), 0), []

    def samples():
        whole = TrainTransform((48, 64), 32, 0.5)
        train = TrainDataset([record], clip=CLIP, transform=whole, seed=3, repeats=repeats)
        return train[(0, 0)].frames_VTCHW, eval_set([record], num_clips=3)[0].frames_VTCHW

    at_once = samples()
    monkeypatch.setattr(layout, "_CHUNK_BYTES", 3 * 64 * 48 * 3)
    real = PyAVReader.frames_at
    monkeypatch.setattr(PyAVReader, "frames_at", lambda self, rows: asked.append(len(rows)) or real(self, rows))
    assert all(torch.equal(one, other) for one, other in zip(samples(), at_once, strict=True))
    assert max(asked) == 3 and len(asked) > 8
    monkeypatch.setattr(layout, "_CHUNK_BYTES", 1)  # less than a frame
    assert all(torch.equal(one, other) for one, other in zip(samples(), at_once, strict=True))


class ShrinkingReader:
    """Promises 50 frames; after the first request it knows better."""

    def __init__(self, info, real, keeps_shrinking=False):
        self.info, self.real, self.keeps_shrinking = info, real, keeps_shrinking
        self.frame_seconds = np.arange(50) / 25

    def frames_at(self, indices):
        if max(indices) >= self.real or self.keeps_shrinking:
            promised = self.info.num_frames
            self.info = type(self.info)("v", self.real, 25.0, 48, 48, 0, "h264", self.real / 25)
            raise FrameCountError("v", self.real, promised)
        return torch.zeros(len(indices), 48, 48, 3, dtype=torch.uint8)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("keeps_shrinking", [False, True])
def test_indices_are_drawn_again_once_where_fewer_frames_decode(videos, monkeypatch, keeps_shrinking):
    records, _ = videos
    with open_video(records[0].path) as reader:
        info = type(reader.info)("v", 50, 25.0, 48, 48, 0, "h264", 2.0)
    reader = ShrinkingReader(info, 30, keeps_shrinking)
    monkeypatch.setattr(dataset_module, "open_video", lambda path, **options: reader)
    sample = eval_set(records, num_clips=2, clip=ClipConfig(4, 8))[0]
    if keeps_shrinking:
        assert sample.frames_VTCHW is None
        assert "frames decode" in sample.failures[0].reason
    else:
        assert sample.note.num_frames == 30
        # Clips 0, 8, 16, 24 and 15, 23, then around; the frames end at 30.
        assert np.array(sample.note.clip_seconds) == pytest.approx(np.array([[0.0, 25 / 25], [15 / 25, 24 / 25]]))


def test_clips_of_different_sizes_do_not_make_a_batch():
    small, large = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 2, 3, 4, 5, dtype=torch.uint8)
    note = VideoNote("v", 2, 25.0, ((0.0, 0.1),))
    with pytest.raises(ValueError, match="must have one shape"):
        collate([Sample(small, 0, 0, (), note), Sample(large, 0, 1, (), note)])
