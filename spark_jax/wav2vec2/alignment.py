"""When known words are heard, by a recognizer's scores: the likeliest CTC path that says them in their order.

Between words the path may rest on the blank or on labels of pauses, within a word on the blank. A word that cannot be
written in labels takes frames of any label, for a price, so that its neighbors keep theirs. Plain NumPy: a minute of
speech takes a tenth of a second.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spark_jax.wav2vec2.ctc import BLANK

_PRICE = 1.0  # nats a frame of an unknown word, below the best label there


def align_words(
    log_probabilities: Float[np.ndarray, "frames labels"], words: Sequence[Sequence[int]], pauses: Sequence[int] = ()
) -> list[tuple[int, int]] | None:
    """Returns the frames of each word, from its first to after its last; None: there are too few frames for them.

    Args:
      log_probabilities: of the labels.
      words: the labels of each; none: the word is unknown.
      pauses: labels of what may be between words, beside the blank.
    """
    rest = np.logaddexp.reduce(log_probabilities[:, [BLANK, *pauses]], axis=1)
    anything = log_probabilities.max(axis=1) - _PRICE
    columns, owners, labels = [rest], [-1], [BLANK]
    for number, word in enumerate(words):
        for place, label in enumerate(word or [-1]):
            if place:
                columns, owners, labels = [*columns, log_probabilities[:, BLANK]], [*owners, -1], [*labels, BLANK]
            columns.append(anything if label < 0 else log_probabilities[:, label])
            owners.append(number)
            labels.append(label)
        columns, owners, labels = [*columns, rest], [*owners, -1], [*labels, BLANK]
    path = _best_path(np.stack(columns, axis=1).astype(np.float64), np.array(labels))
    if path is None:
        return None
    owner = np.array(owners)[path]
    found = [np.flatnonzero(owner == number) for number in range(len(words))]
    return [(int(frames[0]), int(frames[-1]) + 1) for frames in found]


def _best_path(scores: Float[np.ndarray, "frames states"], labels: np.ndarray) -> np.ndarray | None:
    """Returns the state of each frame. A state is left for the next, or over a rest for one of another label."""
    count, states = scores.shape
    skips = np.full(states, -np.inf)
    skips[2:][(labels[2:] != BLANK) & (labels[2:] != labels[:-2])] = 0.0
    best = np.full(states, -np.inf)
    steps = np.zeros((count, states), np.int8)
    options = np.full((3, states), -np.inf)
    for frame in range(count):
        if frame == 0:
            best[:2] = scores[0, :2]
            continue
        options[0], options[1, 1:], options[2, 2:] = best, best[:-1], best[:-2]
        options[2] += skips
        steps[frame] = np.argmax(options, axis=0)
        best = np.take_along_axis(options, steps[frame : frame + 1].astype(np.intp), axis=0)[0] + scores[frame]
    last = states - 2 + int(np.argmax(best[-2:])) if states > 1 and count else 0
    if not count or best[last] == -np.inf:
        return None
    path = np.zeros(count, np.intp)
    for frame in reversed(range(count)):
        path[frame] = last
        last -= steps[frame, last]
    return path
