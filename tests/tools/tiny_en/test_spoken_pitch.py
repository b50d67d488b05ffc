"""The pitch of tokens is that of the waveform that the codec makes of them."""

import numpy as np
import pytest
from spoken_pitch import FEWEST, spoken_pitch

from spark_jax.evaluation.judges.pitch import PitchJudge
from spark_jax.evaluation.recordings import BUNDLED
from spark_jax.inference.codec import Codec

RECORDINGS = ("held-f0-0", "held-m2-0")


def test_it_is_what_praat_finds_in_the_waveform():
    pytest.importorskip("parselmouth")
    codec = Codec.load()
    ids = codec.encode_files([BUNDLED.parent / f"{name}.flac" for name in RECORDINGS])
    records = [{"global_ids": speaker.tolist(), "semantic_ids": said.tolist()} for speaker, said in ids]
    short = {**records[0], "semantic_ids": records[0]["semantic_ids"][: FEWEST - 1]}
    *found, none = spoken_pitch(codec, [*records, short])
    tracks = [PitchJudge().track(samples) for samples in codec.decode(ids)]
    np.testing.assert_allclose(found, [np.mean(track[track > 0]) for track in tracks], rtol=0.03)
    assert none is None and abs(np.log2(found[0] / found[1])) > 0.1
