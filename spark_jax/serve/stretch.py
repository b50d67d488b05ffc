"""Speech faster or slower at its own pitch: FFmpeg's WSOLA, as the samples come."""

import itertools

import numpy as np
from jaxtyping import Float

from spark_jax.shared.extra import needs_extra

with needs_extra("serve"):
    import av

_SLOWEST = 0.5  # of one filter; slower speech goes through two
_TAIL = 0.2  # s of silence behind the speech, of which the filter keeps some


class Stretch:
    """A filter of one channel."""

    def __init__(self, factor: float, sample_rate: int):
        """Args:
        factor: times faster; 0.25 to 4.
        sample_rate: Hz.
        """
        self._rate, self._factor = sample_rate, factor
        self._position = self._given = 0
        graph = av.filter.Graph()
        source = graph.add_abuffer(sample_rate=sample_rate, format="flt", layout="mono", time_base=None)
        factors = [factor] if factor >= _SLOWEST else [factor**0.5] * 2
        filters = [source, *(graph.add("atempo", f"{value:.6f}") for value in factors), graph.add("abuffersink")]
        for before, after in itertools.pairwise(filters):
            before.link_to(after)
        graph.configure()
        self._graph = graph

    def push(self, samples: Float[np.ndarray, " time"]) -> Float[np.ndarray, " stretched"]:
        """Returns what is ready after more samples."""
        if not len(samples):
            return np.zeros(0, np.float32)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None], np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._position
        self._position += len(samples)
        self._graph.push(frame)
        return self._pull()

    def finish(self) -> Float[np.ndarray, " stretched"]:
        """Returns the rest, so that all is as long as the factor says."""
        missing = round(self._position / self._factor) - self._given
        parts = [self.push(np.zeros(round(_TAIL * self._rate), np.float32))]
        self._graph.push(None)
        return np.concatenate([*parts, self._pull()])[: max(0, missing)]

    def _pull(self) -> Float[np.ndarray, " stretched"]:
        parts = [np.zeros(0, np.float32)]
        while True:
            try:
                parts.append(self._graph.pull().to_ndarray()[0])
            except (av.error.BlockingIOError, av.error.EOFError):
                break
        samples = np.concatenate(parts)
        self._given += len(samples)
        return samples
