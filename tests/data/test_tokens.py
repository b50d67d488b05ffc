import numpy as np
import pytest

from spark_jax.data import tokens
from spark_jax.data.sources import DropCounter
from spark_jax.data.token_sources import MemoryTokens, fragments
from spark_jax.errors import SparkError
from spark_jax.text.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes", 16, 8)


def make_sequences(records, tokenizer, limit, task_weights=(1.0, 1.0), noise=0.0, row_length=96, **options):
    source = MemoryTokens(records, tokenizer, limit, task_weights, **options)
    return tokens.TokenSequences([source], tokenizer, row_length, noise)


def generators(count, seed=0):
    return [np.random.default_rng((seed, row)) for row in range(count)]


def make_records(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "index": i,
            "split": "train",
            "text": "ab " * rng.integers(1, 6) + "c",
            "gender": "female",
            "language": "en",
            "pitch": 200.0,
            "speed": 4.0,
            "global_ids": rng.integers(0, 8, 4).tolist(),
            "semantic_ids": rng.integers(0, 16, rng.integers(3, 20)).tolist(),
        }
        for i in range(count)
    ]


def test_rows_hold_whole_sequences_with_shifted_targets(tokenizer):
    sequences = make_sequences(make_records(10), tokenizer, 96)
    assert len(sequences) == 20 and sequences.dropped == {}
    seen = 0
    for rows in sequences.plan(2, None)(0):
        batch = sequences.load(rows, generators(2))
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
                task = tokens.CONTROLLABLE_TTS if "controllable" in text else tokens.TTS
                np.testing.assert_array_equal(batch["tasks"][r][at], np.where(classes != tokens.NONE, task, 0))
                seen += 1
            padding = batch["segment_ids"][r] == 0
            assert not any(batch[name][r][padding].any() for name in ("classes", "tasks", "input_ids"))
    assert seen == 20


def test_long_sequences_are_dropped_and_counted(tokenizer):
    records = make_records(10)
    everything = make_sequences(records, tokenizer, 200, row_length=200)
    lengths = everything.lengths(np.arange(20))
    limit = int(np.median(lengths))
    some = make_sequences(records, tokenizer, limit)
    assert some.lengths(np.arange(len(some))).max() <= limit and len(some) == (lengths <= limit).sum() < 20
    assert some.dropped == {
        f"{tokens.TASK_NAMES[task]}: too long": int((lengths[task - 1 :: 2] > limit).sum())
        for task in (tokens.TTS, tokens.CONTROLLABLE_TTS)
    }
    with pytest.raises(SparkError, match="no sequence of 10 utterances fits 10 tokens; 20 dropped .*10 tts: too long"):
        make_sequences(records, tokenizer, 10)


def test_what_training_cannot_use_is_dropped_by_reason(tokenizer):
    """A voice creation example needs labels that a language or a gender may lack; cloning goes on without."""
    changes = [
        {"speed": 10.5},
        {"language": "fr"},
        {"gender": "unknown"},
        {"pitch": None},
        {"pitch": float("nan")},
        {"speed": None},
        {"speed": 10.0},
        {},
    ]
    records = [record | change for record, change in zip(make_records(8), changes, strict=True)]
    sequences = make_sequences(records, tokenizer, 96)
    assert len(sequences) == 7 + 2 and sequences.dropped == {
        "too fast": 1,
        "controllable_tts: unsupported language": 1,
        "controllable_tts: unknown gender": 1,
        "controllable_tts: no pitch": 2,
        "controllable_tts: no speed": 1,
    }
    assert sequences.summary()["sequences"] == 9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": " "}, "text is ' '"),
        ({"global_ids": [0, 8]}, "global id 8 is out of range"),
        ({"semantic_ids": []}, "semantic_ids is empty, expected at least one id"),
        ({"semantic_ids": "abc"}, "expected a list of integers"),
    ],
)
def test_a_record_that_cannot_be_used_is_an_error_or_counted(tokenizer, change, reason):
    records = make_records(3)
    records[1] |= change
    with pytest.raises(SparkError, match=f"^file.jsonl: utterance 1: .*{reason}"):
        make_sequences(records, tokenizer, 96, name="file.jsonl")
    sequences = make_sequences(records, tokenizer, 96, dropped=DropCounter("skip"))
    assert len(sequences) == 4 and sequences.dropped == {"unusable": 1}


def drawn(sequences, seed, epoch):
    return np.concatenate([row for batch in sequences.plan(1, seed)(epoch) for row in batch])


def test_task_weights_choose_how_often_a_sequence_comes(tokenizer):
    sequences = make_sequences(make_records(40), tokenizer, 96, (2.0, 0.5))
    assert len(sequences) == 80
    for epoch in (0, 1):
        counts = np.bincount(drawn(sequences, 0, epoch), minlength=80)
        assert (counts[::2] == 2).all() and 8 < counts[1::2].sum() < 32
    assert len(make_sequences(make_records(40), tokenizer, 96, (1.0, 0.0))) == 40


def test_a_mixture_draws_from_its_sources_by_weight(tokenizer):
    parts = [
        MemoryTokens(make_records(30, seed), tokenizer, 96, weights)
        for seed, weights in enumerate([(1.0, 0.0), (0.25, 0.0), (3.0, 0.0)])
    ]
    sequences = tokens.TokenSequences(parts, tokenizer, 128)
    counts = [np.bincount(drawn(sequences, 5, epoch), minlength=90).reshape(3, 30) for epoch in range(2)]
    for first, second, third in counts:
        assert (first == 1).all() and (third == 3).all() and 1 <= second.sum() < 20 and second.max() == 1
    assert (counts[0][1] != counts[1][1]).any()
    # Rows hold the sequences of their own sources.
    own = [part.read(np.array([7]))[0].ids for part in parts]
    row = np.empty(1, object)
    row[0] = np.array([67, 7, 37])
    batch = sequences.load(row, generators(1))
    for segment, ids in enumerate((own[2], own[0], own[1]), 1):
        np.testing.assert_array_equal(batch["input_ids"][batch["segment_ids"] == segment], ids)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone(tokenizer):
    one, two = (make_sequences(make_records(40), tokenizer, 96) for _ in range(2))
    np.testing.assert_array_equal(drawn(one, 3, 2), drawn(two, 3, 2))
    for other in ((4, 2), (3, 1)):
        assert (drawn(one, 3, 2) != drawn(two, *other)).any()


def test_semantic_noise_changes_inputs_only(tokenizer):
    records = make_records(10)
    clean, noisy = (make_sequences(records, tokenizer, 96, noise=share) for share in (0.0, 0.3))
    changed = count = 0
    for rows in clean.plan(2, None)(0):
        ours, theirs = (s.load(rows, generators(2, 1)) for s in (noisy, clean))
        for name in ("targets", "classes", "positions", "segment_ids"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        different = ours["input_ids"] != theirs["input_ids"]
        speech = np.isin(theirs["input_ids"], tokenizer.semantic_ids)
        assert not (different & ~speech).any() and np.isin(ours["input_ids"][different], tokenizer.semantic_ids).all()
        changed, count = changed + different.sum(), count + speech.sum()
        again = noisy.load(rows, generators(2, 1))
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
        "text": "I see, you!",
        "phonemes": "aj siː, juː!",
        "semantic_ids": list(range(60)),
        "phoneme_bounds": np.linspace(0.1, 1.1, 13).tolist(),
    }
    parts = fragments(record, 1, 50.0, np.random.default_rng(0))
    assert [part["text"] for part in parts] == ["I", "see,", "you!"]
    # Word two's first phoneme is character 3, the space after it character 7; ends are whole, margins the utterance's.
    first, second, third = (part["semantic_ids"] for part in parts)
    bounds = record["phoneme_bounds"]
    assert first[0] == 0 and first[-1] == int(np.ceil(bounds[2] * 50)) - 1
    assert second[0] == int(bounds[3] * 50) and second[-1] == int(np.ceil(bounds[7] * 50)) - 1
    assert third[0] == int(bounds[8] * 50) and third[-1] == 59
    assert fragments(record | {"phonemes": "ajsiːjuː!"}, 1, 50.0, np.random.default_rng(0)) == []
    whole = [part["text"] for part in fragments(record, 3, 50.0, np.random.default_rng(3))]
    assert " ".join(whole) == record["text"]
    slower = fragments(record | {"semantic_ids": list(range(30))}, 1, 25.0, np.random.default_rng(0))
    assert slower[1]["semantic_ids"][0] == int(bounds[3] * 25) and slower[2]["semantic_ids"][-1] == 29
