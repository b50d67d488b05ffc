"""The codec's validation: losses of inference mode, and a few rows to listen to."""

from collections.abc import Callable

import jax.numpy as jnp

from spark_jax.bicodec.pitch import pitch_errors
from spark_jax.config import SparkConfig
from spark_jax.training.codec import reconstruction
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.features import batch_features
from spark_jax.training.codec.models import CodecModels
from spark_jax.training.codec.state import codec_variables
from spark_jax.training.state import Batch, Metrics, TrainState

NUM_AUDIO_SAMPLES = 4  # rows of a validation batch that are kept as sounds


def codec_evaluation(
    models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig
) -> Callable[[TrainState, Batch], Metrics]:
    """Returns (state, batch) → mean losses of inference mode, `loss` their weighted sum.

    A harmonic source is given the predicted pitch, as at inference; the prediction's errors are metrics as well
    (`bicodec.pitch.pitch_errors`).

    With a wave generator also `samples` [2, rows, samples]: the first rows' originals and reconstructions.
    """

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        features, mask = batch_features(models, config, system, state.params, batch)
        variables = codec_variables(state)
        if features is None:
            outputs = reconstruction.reconstruct_from_tokens(models.codec, variables, batch)
        else:
            outputs = models.codec.apply(
                variables,
                features,
                batch["reference"],
                train=False,
                wave=config.phase == "full",
                mask=mask,
                condition_on_x_vector=state.step < config.d_vector_train_start,
            )
        target = reconstruction.pitch_target(batch)
        terms = reconstruction.reconstruction_losses(outputs, features, batch["wave"], system.sample_rate, mask, target)
        metrics = terms | {"loss": sum(getattr(config.losses, name) * term for name, term in terms.items())}
        if target is not None:
            metrics |= pitch_errors(outputs.pitch, target)
        if features is not None:
            metrics["perplexity"] = outputs.perplexity
        if outputs.recons is not None:
            metrics["samples"] = jnp.stack([wave[:NUM_AUDIO_SAMPLES] for wave in (batch["wave"], outputs.recons)])
        return metrics

    return evaluate
