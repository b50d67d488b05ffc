"""The table of lengths, and how items are sorted into batches."""

import numpy as np
import pytest

from spark_jax.inference.buckets import FINE, batches, bucket, lengths_up_to


def test_the_table():
    assert lengths_up_to(400) == (64, 96, 128, 192, 256, 384, 512)
    assert lengths_up_to(512) == lengths_up_to(400) and lengths_up_to(1) == (64,)
    for length in range(1, 5000):
        assert bucket(length) >= length
        assert length <= 64 or bucket(length) < 1.5 * length
        assert length <= bucket(length, FINE) <= bucket(length)
        assert length <= 64 or bucket(length, FINE) < 1.25 * length


@pytest.mark.parametrize(("shards", "full"), [(1, False), (1, True), (4, False), (4, True)])
def test_batches_hold_every_item_once(shards, full):
    lengths = np.random.default_rng(0).integers(1, 700, size=200)
    planned = batches([*map(int, lengths), 5000], capacity=512, shards=shards, full=full)
    assert sorted(item for batch in planned for item in batch.items) == list(range(201))
    for batch in planned:
        assert len(batch.items) <= batch.rows and batch.rows % shards == 0
        assert batch.rows == shards or batch.rows // shards * batch.length <= 512
        assert {bucket(int([*lengths, 5000][item])) for item in batch.items} == {batch.length}
        assert list(batch.items) == sorted(batch.items)
        if full:
            assert batch.rows == shards * {64: 8, 96: 4, 128: 4, 192: 2, 256: 2}.get(batch.length, 1)


def test_few_items_make_small_batches():
    assert [batch.rows for batch in batches([10] * 3, 2048)] == [4]
    assert [batch.rows for batch in batches([10], 2048)] == [1]
    assert [batch.rows for batch in batches([10] * 33, 2048)] == [32, 1]
    assert [batch.rows for batch in batches([10], 2048, shards=8)] == [8]
    assert [batch.rows for batch in batches([100] * 15, 1000)] == [4, 4, 4, 4]
    assert batches([], 2048) == []
