import pytest

from video_gn.data.samplers import EvalSampler, TrainSampler


def keys(**settings):
    return list(TrainSampler(**{"num_records": 23, "batch_size": 4, "seed": 7, **settings}))


def test_an_epoch_has_every_record_at_most_once_and_whole_batches():
    epoch = keys()
    assert len(epoch) == 20 == len(TrainSampler(23, batch_size=4, seed=7))
    records = [record for _, record in epoch]
    assert len(set(records)) == 20
    assert set(records) <= set(range(23))
    assert {e for e, _ in epoch} == {0}


def test_epochs_and_seeds_differ():
    sampler = TrainSampler(23, batch_size=4, seed=7)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [r for _, r in first] != [r for _, r in second]
    assert keys(seed=8) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("start_batch", [0, 1, 4, 5])
def test_starting_inside_an_epoch_gives_its_rest_and_then_whole_epochs(start_batch):
    whole = TrainSampler(23, batch_size=4, seed=7)
    whole.set_epoch(3)
    resumed = TrainSampler(23, batch_size=4, seed=7, start_epoch=3, start_batch=start_batch)
    assert list(resumed) == list(whole)[4 * start_batch :]
    assert len(resumed) == 20, "Lightning counts the batches of a whole epoch"
    resumed.set_epoch(4)
    whole.set_epoch(4)
    assert list(resumed) == list(whole)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 2), (4, 1)])
def test_global_batches_do_not_depend_on_the_number_of_processes(world_size, batch_size):
    ranks = [keys(batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [
        [k for rank in ranks for k in rank[step * batch_size : (step + 1) * batch_size]]
        for step in range(len(ranks[0]) // batch_size)
    ]
    assert [k for b in batches for k in b] == keys()


@pytest.mark.parametrize("num_records", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_sees_every_record_once_over_all_processes(num_records, world_size):
    ranks = [list(EvalSampler(num_records, rank=r, world_size=world_size)) for r in range(world_size)]
    assert all(len(keys) > 0 for keys in ranks)
    assert all(len(EvalSampler(num_records, rank=r, world_size=world_size)) == len(k) for r, k in enumerate(ranks))
    assert sorted(k for keys in ranks for k in keys if k >= 0) == list(range(num_records))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("done", [set(), {0}, {1, 3, 4}, set(range(10)), set(range(9))])
def test_what_is_left_of_a_test_is_shared_out(world_size, done):
    ranks = [list(EvalSampler(10, rank=r, world_size=world_size, leave_out=done)) for r in range(world_size)]
    assert sorted(key for keys in ranks for key in keys if key >= 0) == sorted({*range(10)} - done)
    assert all(keys == [-1] or -1 not in keys for keys in ranks) and all(ranks)
    lengths = [len([key for key in keys if key >= 0]) for keys in ranks]
    assert max(lengths) - min(lengths) <= 1
