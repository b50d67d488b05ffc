"""Writes our parameters in the release's directory layout, for the official code, transformers, vLLM and others.

    OUT/config.yaml
    OUT/BiCodec/{config.yaml, model.safetensors}
    OUT/wav2vec2-large-xlsr-53/{config.json, preprocessor_config.json, model.safetensors}
    OUT/LLM/{config.json, generation_config.json, model.safetensors, tokenizer files}

The codec's file has exactly the release's tensors: weight norm as weight_g and weight_v, no mel constants, batch-norm
counters of 0. wav2vec2 ends where ours does, after the last tapped layer; one idle layer above keeps that hidden state
free of the final norm (see convert.wav2vec2). Both are float32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from spark_jax.convert.engine import Export, raise_faults
from spark_jax.convert.formats.safetensors_file import write_safetensors
from spark_jax.convert.formats.tensors import DTYPES
from spark_jax.convert.release import RELEASE_PARTS, check_parts, table
from spark_jax.errors import SparkError
from spark_jax.model_directory.layout import StoredPart, open_parts
from spark_jax.model_directory.parameters import PARTS, RECORDS
from spark_jax.shared.files import new_directory


def export(
    source: str | Path,
    destination: str | Path,
    dtype: str | None = None,
    parts: Sequence[str] | None = None,
    replaced: Mapping[str, str | Path] | None = None,
) -> dict[str, int]:
    """Writes the official layout of a model directory or a run.

    Args:
      source: a model directory, or the output folder of a training.
      destination: the directory to make; must not exist, or be empty. It appears when it is complete.
      dtype: "float32", "bfloat16" or "float16": type of the LLM's file, norms and biases included. None: the type
        in which its weight matrices are stored.
      parts: what to write of "bicodec", "wav2vec2" and "llm"; None: all that there is.
      replaced: output folders of trainings by part, to take those parts from in place of the source's.

    Returns:
      Bytes of each weight file written.

    Raises:
      SparkError: a source is missing, damaged, or does not fit its configuration; a value is not finite in the
        type asked for; a part is asked for that is not there; the codec has a harmonic source; the destination is
        taken.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SparkError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    found = _speech_parts(source)
    for part, run in (replaced or {}).items():
        trained = _speech_parts(run)
        if part not in trained:
            raise SparkError(f"{run}: holds no {part}, but {', '.join(trained)}")
        found[part] = trained[part]
    parts = check_parts(list(found) if parts is None else parts)
    if missing := [part for part in parts if part not in found]:
        raise SparkError(f"{source}: holds no {' and no '.join(missing)}, but {', '.join(found)}")
    found = {part: found[part] for part in parts}
    if "bicodec" in found and found["bicodec"].config.bicodec.decoder.source is not None:
        raise SparkError(
            f"{found['bicodec'].folder}: bicodec.decoder.source is set, and the release's layout has no harmonic "
            "source; expected null, or parts without bicodec"
        )
    stored = {part: stored_part.check() for part, stored_part in found.items()}
    with new_directory(destination) as folder:
        sizes = {}
        for part, stored_part in found.items():
            own = folder / RELEASE_PARTS[part].folder
            own.mkdir()
            kind = (dtype or str(stored[part])) if RECORDS[part].has_dtype else "float32"
            RELEASE_PARTS[part].write_settings(stored_part, folder, kind, found)
            job = Export(table(part, stored_part.config), stored_part.target, DTYPES[kind])
            file = own / "model.safetensors"
            write_safetensors(file, job.specifications, job.tensors(stored_part.leaves()))
            raise_faults({str(stored_part.folder): job.faults})
            sizes[part] = file.stat().st_size
    return sizes


def _speech_parts(directory: str | Path) -> dict[str, StoredPart]:
    """The parts that the release has, too: no recognizer."""
    found = open_parts(directory)
    found = {part: found[part] for part in PARTS if part in found}
    if not found:
        raise SparkError(f"{directory}: holds none of the parts {', '.join(PARTS)}")
    return found
