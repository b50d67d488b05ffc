"""Which parts of an utterance can be vocoded: they follow each other, depend on no timing, and know what they need."""

import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.inference.parts import StreamSettings, Utterance, cross_fade

SIZES = (4, 8, 16)


def spoken(count, cuts, look_ahead, fade=0):
    """The parts of an utterance whose tokens come in the given amounts."""
    utterance, parts, ids = Utterance(SIZES, look_ahead, fade), [], np.arange(count, dtype=np.int32)

    def take():
        while (part := utterance.next_part()) is not None:
            parts.append((part, *utterance.window(part, 3, look_ahead)))
            utterance.take(part)

    for new in np.split(ids, cuts):
        utterance.extend(new)
        take()
    utterance.end()
    take()
    assert utterance.over
    return parts


@pytest.mark.parametrize("seed", range(40))
def test_parts_follow_each_other_and_depend_on_the_number_of_tokens_alone(seed):
    rng = np.random.default_rng(seed)
    count, look_ahead, fade = int(rng.integers(1, 120)), int(rng.integers(1, 12)), int(rng.integers(2))
    cuts = np.sort(rng.integers(0, count + 1, rng.integers(20)))
    parts = spoken(count, cuts, look_ahead, fade)
    assert [part for part, *_ in parts] == [part for part, *_ in spoken(count, [], look_ahead, fade)]
    position = 0
    for number, (part, ids, known) in enumerate(parts):
        assert part.first == position and part.size in SIZES and 0 < part.advance <= part.size
        assert part.known == count or part.known == part.first + part.size + look_ahead
        assert part.last == (number == len(parts) - 1)
        assert part.last or part.advance == part.size - fade
        places = np.arange(part.first - 3, part.first + part.size + look_ahead)
        np.testing.assert_array_equal(known, (places >= 0) & (places < part.known))
        np.testing.assert_array_equal(ids[known], places[known])
        position += part.advance
    assert position == count
    if count >= 4 + look_ahead:
        assert parts[0][0].size == 4


def test_a_part_is_there_as_soon_as_its_look_ahead_is():
    utterance = Utterance(SIZES, 5)
    utterance.extend(np.arange(8, dtype=np.int32))
    assert utterance.next_part() is None
    utterance.extend(np.arange(1, dtype=np.int32))
    assert utterance.next_part().size == 4


def test_the_end_of_old_samples_fades_into_the_new_ones():
    faded = cross_fade(np.ones(3, np.float32), np.zeros(5, np.float32))
    np.testing.assert_allclose(faded, [0.75, 0.5, 0.25, 0, 0])
    np.testing.assert_allclose(cross_fade(np.ones(3, np.float32), np.zeros(2, np.float32)), [0.75, 0.5])
    np.testing.assert_array_equal(cross_fade(np.zeros(0, np.float32), faded), faded)


@pytest.mark.parametrize("wrong", [{"parts": ()}, {"parts": (1, 2)}, {"parts": (8, 4)}, {"look_ahead": 0}, {"rows": 0}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(SparkError, match=f"stream: {next(iter(wrong))} is"):
        StreamSettings(**wrong)
