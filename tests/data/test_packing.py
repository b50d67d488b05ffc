import numpy as np
import pytest

from spark_jax.data import packing
from spark_jax.errors import SparkError


def voxbox_lengths(count, seed=0):
    """Tokens of sequences like VoxBox's: 7.4 s of speech on average, 50 tokens a second, text and control tokens."""
    seconds = np.random.default_rng(seed).lognormal(np.log(7.4) - 0.18, 0.6, count).clip(1, 26)
    return (seconds * 54.4).astype(int) + 42


def embedded_lengths(count, seed=0):
    """Tokens like those of the embedded voice's corpus by configs/tiny_llm.yaml: sentences and pieces of them."""
    rng = np.random.default_rng(seed)
    sentences, pieces = rng.normal(165, 40, count), rng.normal(80, 25, count)
    return np.where(rng.random(count) < 0.6, sentences, pieces).clip(40, 319).astype(int)


def drawn(epoch):
    return np.concatenate([row for batch in epoch for row in batch])


def test_packing_holds_each_sequence_once_and_leaves_little_room():
    lengths = np.random.default_rng(0).integers(1, 65, 500)
    rows = packing.pack(lengths, 128)
    assert sorted(np.concatenate(rows)) == list(range(500))
    filled = [lengths[row].sum() for row in rows]
    assert max(filled) <= 128 and np.mean(filled) > 0.95 * 128
    assert [row.tolist() for row in packing.pack(np.array([3, 4, 2, 1, 4]), 5)] == [[1], [4, 3], [0, 2]]


@pytest.mark.parametrize(("make", "row_length"), [(voxbox_lengths, 2048), (embedded_lengths, 320)])
@pytest.mark.parametrize(("count", "blocks"), [(20_000, 1), (140_000, 3)])
def test_packing_efficiency_over_an_epoch(make, row_length, count, blocks):
    """At least 95 % of the slots hold tokens; nearly all sequences come, and none more than once."""
    lengths = make(count)
    order = np.random.default_rng(1).permutation(count)
    epoch = packing.PackedEpoch(order, lambda numbers: lengths[numbers], row_length, 16, (0, 0))
    assert len(epoch._bounds) == blocks + 1
    taken = drawn(epoch)
    assert len(np.unique(taken)) == len(taken) > 0.99 * count
    assert max(lengths[row].sum() for batch in epoch for row in batch) <= row_length
    assert lengths[taken].sum() / (len(epoch) * 16 * row_length) >= 0.95


def test_any_batch_is_made_without_those_before_it():
    lengths = voxbox_lengths(4000)
    asked = []

    def count(numbers):
        asked.append(len(numbers))
        return lengths[numbers]

    make = lambda: packing.PackedEpoch(np.arange(4000), count, 2048, 8, (0, 3), 500)  # noqa: E731
    whole = [list(batch) for batch in make()]
    asked.clear()
    number = len(whole) * 3 // 4
    for ours, theirs in zip(make()[number], whole[number], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sum(asked) <= 4 * 500  # the first block and its spread, and at most two that the batch lies in
    with pytest.raises(IndexError):
        make()[len(whole)]
    different = packing.PackedEpoch(np.arange(4000), count, 2048, 8, (0, 4), 500)[number]
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(different, whole[number], strict=True))


def test_evaluation_holds_everything_and_ends_in_empty_rows():
    lengths = np.array([5, 5, 5, 9, 1])
    epoch = packing.PackedEpoch(np.arange(5), lambda numbers: lengths[numbers], 10, 4, None)
    assert len(epoch) == 1 and [row.tolist() for row in epoch[0]] == [[3, 4], [0, 1], [2], []]


@pytest.mark.parametrize("each", [1, 2])
def test_rows_of_equally_many_sequences(each):
    """numpy takes a list of equally long rows for a matrix."""
    epoch = packing.PackedEpoch(np.arange(8), lambda numbers: np.full(len(numbers), 4), 4 * each, 2, (0, 0))
    assert len(epoch) == 4 // each and sorted(drawn(epoch)) == list(range(8))
    assert all(len(row) == each for batch in epoch for row in batch)


def test_an_epoch_of_nothing():
    with pytest.raises(SparkError, match="no sequence was drawn"):
        packing.PackedEpoch(np.arange(0), lambda numbers: numbers, 10, 4, (0, 0))
