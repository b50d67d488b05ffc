"""Windows cover what is too long for one pass: each token comes from one of them, and from its inside."""

import pytest

from spark_jax.inference.windows import CONTEXT, Window, windows


def test_what_fits_is_one_window():
    assert windows(0, 64) == [Window(0, 0, 0, 0)]
    assert windows(64, 64) == [Window(0, 64, 0, 64)]
    assert windows(3072, 3072) == [Window(0, 3072, 0, 3072)]


@pytest.mark.parametrize("longest", [4, 5, 64, 96, 1024, 3072])
def test_each_token_is_taken_once_and_from_the_inside(longest):
    context = min(CONTEXT, longest // 4)
    for tokens in (longest + 1, longest + 2, 2 * longest - 1, 2 * longest, 7 * longest + 3, 50 * longest):
        found = windows(tokens, longest)
        assert all(window.length == longest and 0 <= window.start <= tokens - longest for window in found)
        taken = [window.start + number for window in found for number in range(window.first, window.stop)]
        assert taken == list(range(tokens))
        assert all(window.first >= context for window in found[1:])
        assert all(window.stop <= longest - context for window in found[:-1])
        # No more of them than are needed: the cost grows with the length.
        assert len(found) <= 1 + -(-(tokens - longest) // (longest - 2 * context))
