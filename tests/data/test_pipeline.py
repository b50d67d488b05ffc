import numpy as np
import pytest

from spark_jax.data import pipeline
from spark_jax.errors import SparkError


def load(indices, rngs):
    return {"index": np.asarray(indices), "draw": np.array([rng.random() for rng in rngs])}


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


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_processes_together_make_the_batch_of_one(count):
    """Rows and random draws alike, whatever the number of processes; in training and in evaluation."""
    plan = pipeline.shuffled_plan(24, 6, seed=0)
    whole = list(pipeline.batches(plan, load, 5, seed=3))
    parts = [list(pipeline.batches(plan, load, 5, 3, process_index=i, process_count=count)) for i in range(count)]
    tests = [pipeline.evaluation_batches(plan, load, 2, i, count, threads=2) for i in range(count)]
    for number, batch in [*enumerate(whole), *enumerate(pipeline.evaluation_batches(plan, load, 2))]:
        shares = [part[number] for part in (tests if batch is not whole[number] else parts)]
        assert all(len(share["index"]) == 6 // count for share in shares)
        for name, values in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), values)


def test_rows_that_the_processes_do_not_divide():
    with pytest.raises(SparkError, match="a batch has 6 rows, expected a multiple of the 4 processes"):
        next(pipeline.batches(pipeline.shuffled_plan(24, 6, 0), load, 5, 3, process_count=4))


def test_weights_say_how_often_an_example_comes():
    """Of a fraction, another part every epoch; 0: never."""
    weights = np.repeat([2.0, 0.0, 0.5, 1.0], 100)
    chunks = [weights[:150], weights[150:]]
    orders = [pipeline.weighted_order(chunks, np.random.default_rng((7, epoch))) for epoch in range(2)]
    for order in orders:
        counts = np.bincount(order, minlength=400)
        assert order.dtype == np.int32 and (counts[:100] == 2).all() and (counts[100:200] == 0).all()
        assert (counts[300:] == 1).all() and 30 < counts[200:300].sum() < 70 and counts[200:300].max() == 1
    assert set(orders[0][orders[0] // 100 == 2]) != set(orders[1][orders[1] // 100 == 2])
    np.testing.assert_array_equal(orders[0], pipeline.weighted_order([weights], np.random.default_rng((7, 0))))
    assert pipeline.weighted_order(chunks, None).tolist() == [*range(100), *range(200, 400)]


def test_a_plan_without_batches_is_an_error():
    with pytest.raises(SparkError, match="no example is left"):
        next(pipeline.batches(lambda epoch: [], load, 3, seed=0))
