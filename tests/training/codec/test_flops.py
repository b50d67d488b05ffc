"""Operations of the codec's step, counted in its trace."""

import dataclasses

import pytest
from helpers.tiny_config import tiny

from spark_jax.data.config import CodecDataConfig
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.program import codec_step_flops

SYSTEM = tiny()


@pytest.mark.extended
def test_the_codecs_step():
    config = BiCodecTrainingConfig(
        data=CodecDataConfig(segment_seconds=0.1, context_seconds=0.02, batch_segments=8), adversarial_start=None
    )
    whole = codec_step_flops(config, SYSTEM)
    frozen = codec_step_flops(dataclasses.replace(config, freeze=("wave_generator",)), SYSTEM)
    # Its kernels' gradients are left out, the gradients of its inputs are not.
    assert 0.6 * whole < frozen < whole
