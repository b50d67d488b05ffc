import numpy as np
import pytest

from spark_jax.data import tokens
from spark_jax.errors import SparkError
from spark_jax.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes", 16, 8)


def make_records(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "index": i, "split": "train", "text": "ab " * rng.integers(1, 6) + "c", "gender": "female",
            "language": "en", "pitch": 200.0, "speed": 4.0, "global_ids": rng.integers(0, 8, 4).tolist(),
            "semantic_ids": rng.integers(0, 16, rng.integers(3, 20)).tolist(),
        }
        for i in range(count)
    ]  # fmt: skip


def test_packing_holds_each_sequence_once_and_leaves_little_room():
    lengths = np.random.default_rng(0).integers(5, 60, 500)
    rows = tokens.pack(lengths, np.arange(500), 128)
    assert sorted(np.concatenate(rows)) == list(range(500))
    filled = [lengths[row].sum() for row in rows]
    assert max(filled) <= 128 and np.mean(filled) > 0.93 * 128


def test_rows_hold_whole_sequences_with_shifted_targets(tokenizer):
    sequences = tokens.TokenSequences(make_records(10), tokenizer, 96, 96)
    assert len(sequences) == 20 and sequences.dropped == 0
    seen = 0
    for rows in sequences.plan(2, None)(0):
        batch = sequences.load(rows, np.random.default_rng(0))
        assert all(array.shape == (2, 96) for array in batch.values())
        for r in range(2):
            for segment in range(1, batch["segment_ids"][r].max() + 1):
                at = np.flatnonzero(batch["segment_ids"][r] == segment)
                ids, targets, classes = (batch[name][r][at] for name in ("input_ids", "targets", "classes"))
                assert batch["positions"][r][at].tolist() == list(range(len(at)))
                assert (targets[:-1] == ids[1:]).all() and classes[-1] == tokens.NONE
                text = tokenizer.decode(ids)
                assert ids[-1] == tokenizer.id("<|im_end|>") and text.startswith("<|task_")
                speech = np.flatnonzero(np.isin(targets, tokenizer.semantic_ids))
                assert (classes[speech] == tokens.SEMANTIC).all()
                start = tokenizer.id("<|end_style_label|>" if "controllable" in text else "<|end_global_token|>")
                prompt = int(np.flatnonzero(ids == start)[0])
                assert (classes[:prompt] == tokens.NONE).all() and (classes[prompt:-1] != tokens.NONE).all()
                assert (classes == tokens.GLOBAL).sum() == (4 if "controllable" in text else 0)
                seen += 1
            padding = batch["segment_ids"][r] == 0
            assert not batch["classes"][r][padding].any() and not batch["input_ids"][r][padding].any()
    assert seen == 20


def test_long_sequences_are_dropped_and_counted(tokenizer):
    records = make_records(10)
    everything = tokens.TokenSequences(records, tokenizer, 200, 200)
    limit = int(np.median(everything.lengths))
    some = tokens.TokenSequences(records, tokenizer, 200, limit)
    assert some.lengths.max() <= limit and len(some) + some.dropped == 20 and some.dropped > 0
    with pytest.raises(SparkError, match="no sequence of 10 utterances fits 10 tokens"):
        tokens.TokenSequences(records, tokenizer, 200, 10)


def test_task_weights_choose_how_often_a_sequence_comes(tokenizer):
    sequences = tokens.TokenSequences(make_records(40), tokenizer, 96, 96, (2.0, 0.5))
    assert len(sequences) == 80
    drawn = [np.concatenate([row for batch in sequences.plan(1, 0)(epoch) for row in batch]) for epoch in (0, 1)]
    for part in drawn:
        counts = np.bincount(part, minlength=80)
        assert (counts[::2] == 2).all() and 8 < counts[1::2].sum() < 32
    only_cloning = tokens.TokenSequences(make_records(40), tokenizer, 96, 96, (1.0, 0.0))
    assert len(only_cloning) == 40


def test_semantic_noise_changes_inputs_only(tokenizer):
    records = make_records(10)
    clean, noisy = (tokens.TokenSequences(records, tokenizer, 96, 96, semantic_noise=share) for share in (0.0, 0.3))
    changed = count = 0
    for rows in clean.plan(2, None)(0):
        ours, theirs = (s.load(rows, np.random.default_rng(1)) for s in (noisy, clean))
        for name in ("targets", "classes", "positions", "segment_ids"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        different = ours["input_ids"] != theirs["input_ids"]
        speech = np.isin(theirs["input_ids"], tokenizer.semantic_ids)
        assert not (different & ~speech).any() and np.isin(ours["input_ids"][different], tokenizer.semantic_ids).all()
        changed, count = changed + different.sum(), count + speech.sum()
        again = noisy.load(rows, np.random.default_rng(1))
        np.testing.assert_array_equal(again["input_ids"], ours["input_ids"])
    assert 0.15 < changed / count < 0.4


def test_common_globals_are_those_of_each_voices_typical_utterance():
    a, b = [1, 2, 3, 4], [7, 7, 0, 0]
    records = [{"index": i, "voice": "x" if i < 3 else "y", "global_ids": ids} for i, ids in enumerate([a, a, b, b])]
    assert tokens.common_globals(records) == {"x": a, "y": b}
    with pytest.raises(SparkError, match="utterance 9 has no field voice"):
        tokens.common_globals([{"index": 9, "global_ids": a}])


def test_fragments_are_the_utterance_cut_between_words():
    record = {
        "text": "I see, you!", "phonemes": "aj siː, juː!", "semantic_ids": list(range(60)),
        "phoneme_bounds": np.linspace(0.1, 1.1, 13).tolist(),
    }  # fmt: skip
    parts = tokens.fragments(record, 1, np.random.default_rng(0))
    assert [part["text"] for part in parts] == ["I", "see,", "you!"]
    # Word two's first phoneme is character 3, the space after it character 7; ends are whole, margins the utterance's.
    first, second, third = (part["semantic_ids"] for part in parts)
    bounds = record["phoneme_bounds"]
    assert first[0] == 0 and first[-1] == int(np.ceil(bounds[2] * 50)) - 1
    assert second[0] == int(bounds[3] * 50) and second[-1] == int(np.ceil(bounds[7] * 50)) - 1
    assert third[0] == int(bounds[8] * 50) and third[-1] == 59
    assert tokens.fragments(record | {"phonemes": "ajsiːjuː!"}, 1, np.random.default_rng(0)) == []
    whole = [part["text"] for part in tokens.fragments(record, 3, np.random.default_rng(3))]
    assert " ".join(whole) == record["text"]
