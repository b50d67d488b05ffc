import numpy as np
import pytest

from spark_jax.data import pipeline


def load(indices, rng):
    return {"index": np.asarray(indices), "draw": rng.random(len(indices))}


def test_a_shuffled_epoch_holds_each_example_once_and_the_next_is_another():
    plan = pipeline.shuffled_plan(20, 5, seed=1)
    first, second = np.concatenate(plan(0)), np.concatenate(plan(1))
    assert sorted(first) == list(range(20)) and sorted(second) == list(range(20))
    assert (first != second).any() and (first == np.concatenate(plan(0))).all()


def test_a_batch_larger_than_the_corpus_repeats_examples():
    [batch] = pipeline.shuffled_plan(3, 7, seed=0)(0)
    assert len(batch) == 7 and set(batch) == {0, 1, 2}


def test_batches_share_a_bucket_and_hold_each_example_once():
    buckets = np.array([0, 1, 0, 1, 0, -1, 0, 1, 0])
    plan = pipeline.bucketed_plan(buckets, [2, 3], seed=0)
    batches = plan(3)
    assert sorted(i for batch in batches for i in batch if i >= 0) == [0, 1, 2, 3, 4, 6, 7, 8]
    for batch in batches:
        [bucket] = set(buckets[batch[batch >= 0]])
        assert len(batch) == [2, 3][bucket]
    in_order = pipeline.bucketed_plan(buckets, [2, 3], seed=None)(0)
    assert [batch.tolist() for batch in in_order] == [[0, 2], [4, 6], [8, -1], [1, 3, 7]]


def test_epochs_follow_each_other_and_a_restored_iterator_goes_on_the_same():
    plan = pipeline.shuffled_plan(10, 3, seed=0)
    whole = list(pipeline.batches(plan, load, 8, seed=5))
    assert [batch["index"].tolist() for batch in whole[3:6]] == [batch.tolist() for batch in plan(1)]
    iterator = pipeline.batches(plan, load, 8, seed=5)
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    resumed = pipeline.batches(plan, load, 8, seed=5)
    resumed.set_state(state)
    for ours, theirs in zip(resumed, whole[4:], strict=True):
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        np.testing.assert_array_equal(ours["draw"], theirs["draw"])


def test_processes_share_each_batch():
    plan = pipeline.shuffled_plan(12, 4, seed=0)
    parts = [
        list(pipeline.batches(plan, load, 3, seed=0, process_index=i, process_count=2)) for i in range(2)
    ]
    for number, batch in enumerate(plan(0)):
        assert sorted([*parts[0][number]["index"], *parts[1][number]["index"]]) == sorted(batch)


def test_a_plan_without_batches_is_an_error():
    with pytest.raises(ValueError, match="no example is left"):
        next(pipeline.batches(lambda epoch: [], load, 3, seed=0))
