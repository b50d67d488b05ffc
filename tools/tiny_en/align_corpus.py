"""Adds to a corpus when each phoneme is spoken, as the engine that spoke it planned it.

    python tools/tiny_en/align_corpus.py corpus

Writes the field `phoneme_bounds` into metadata.jsonl (in place, atomically): one more time than `phonemes` has
characters, in seconds of the audio file; character i lasts from bound i to bound i + 1. train/wav2vec2.py learns
from it with `aligned: true`. For utterances of hibari's voice `heart`; needs the extra `corpus`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tqdm
import typer

from spark_jax.errors import SparkError

DURATIONS = "/Clip_output_0"  # frames of each phoneme: output of the duration predictor inside hibari's graph
FRAME_SECONDS = 0.025
# make_corpus.py keeps 0.15 s of silence before the speech; sound begins about 0.04 s before the first phoneme's
# planned time (0.02 to 0.08 s in ten utterances).
START_SECONDS = 0.19


class Aligner:
    """The duration predictor of hibari as a program of its own."""

    def __init__(self, threads: int = 0):
        """Loads the engine; `threads` of the computation, 0: as many as there are cores."""
        import hibari
        import onnx
        import onnxruntime

        self._voice = hibari.Hibari()
        graph = onnx.utils.Extractor(onnx.load(self._voice.model_path)).extract_model(["ids", "speed"], [DURATIONS])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(graph.SerializeToString(), options)

    def bounds(self, phonemes: str) -> list[float]:
        """Returns the seconds at which the phonemes begin, and at which the last one ends."""
        ids = self._voice.ids(phonemes)  # with a pause at both ends
        if len(ids) != len(phonemes) + 2:
            raise SparkError(f"phonemes {phonemes!r}: not all are in the engine's alphabet")
        inputs = {"ids": np.asarray([ids], np.int64), "speed": np.ones(1, np.float32)}
        (frames,) = self._session.run([DURATIONS], inputs)
        times = START_SECONDS + np.cumsum(frames[1:-1]) * FRAME_SECONDS
        return [START_SECONDS, *(round(float(time), 3) for time in times)]


def main(corpus: Annotated[Path, typer.Argument(help="Folder with metadata.jsonl.")]) -> None:
    """Adds `phoneme_bounds` to every utterance of a corpus."""
    metadata = corpus / "metadata.jsonl"
    try:
        with metadata.open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        aligner = Aligner()
        for record in tqdm.tqdm(records, disable=None):
            if record.get("voice") != "heart":
                raise SparkError(f"{metadata}: {record['index']} has voice {record.get('voice')}, expected heart")
            record["phoneme_bounds"] = aligner.bounds(record["phonemes"])
    except ImportError as error:
        raise SystemExit(f"error: {error.name} is missing: pip install 'spark-jax[corpus]'") from error
    except (OSError, SparkError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    temporary = metadata.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    os.replace(temporary, metadata)


if __name__ == "__main__":
    typer.run(main)
