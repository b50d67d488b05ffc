"""What tools/benchmark_inference.py measures: a system of random weights, or the embedded voice."""

import dataclasses
import functools
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spark_jax.config import RELEASE, SparkConfig
from spark_jax.inference import placement
from spark_jax.inference.codec import EMBEDDED_VOICE
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.parts import StreamSettings
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.parameters import target_variables
from spark_jax.model_directory.voice import Voice
from spark_jax.text.prompt import END
from spark_jax.text.tokenizer import SparkTokenizer, build_tokenizer

SENTENCES = Path(__file__).parents[1] / "spark_jax" / "evaluation" / "held_out_sentences.txt"
# Letters, which are tokens of the random system: as many as a tokenizer of words makes of some ten seconds, and within
# one padded length of prompts (64 to 96 with the voice).
LETTERS = range(28, 60)
# Values that all weights of a kind have, as in a fresh model; gains below 1 keep the wave generator from saturating.
_CONSTANTS = {"scale": 1.0, "var": 1.0, "gamma": 1.0, "alpha": 1.0, "kernel_g": 0.5}
_ZEROS = {"bias", "mean", "cluster_size"}
_PLACES = 1 << 20  # at which an array may begin in the noise
_DEVIATION = 0.02  # of the language model's weights, as Qwen2's initializer draws them


class Subject:
    """Sizes, weights and loaded systems, each made when it is first asked for."""

    def __init__(
        self,
        sizes: str | SparkConfig,
        dtype: str,
        *,
        slots: int,
        block: int,
        capacity: int,
        parts: tuple[int, ...],
        seconds: float,
    ):
        """Args:
        sizes: "release", "embedded", or any others, which get random weights.
        dtype: of the language model, and of the vocoder where it speaks.
        slots, block, capacity: of the engine that speaks.
        parts: of its streams, see `StreamSettings`.
        seconds: of each speech by random weights, which does not end on its own.
        """
        self.embedded = sizes == "embedded"
        named = {"release": RELEASE}
        self.config = model_directory.read_config(EMBEDDED_VOICE) if self.embedded else named.get(sizes, sizes)
        self.dtype, self.seconds = dtype, seconds
        self.block, self.capacity = block, capacity
        self.mesh = placement.mesh_or_device(None)
        self._engine = EngineSettings(slots=slots, block=block, capacity=capacity)
        self._stream = StreamSettings(parts=parts)
        self._folder = tempfile.TemporaryDirectory()

    @functools.cached_property
    def tokenizer(self) -> SparkTokenizer:
        """Returns the tokenizer: each byte of a text is a token."""
        speaker = self.config.bicodec.speaker_encoder
        codes = self.config.bicodec.quantizer.codebook_size, math.prod(speaker.fsq_levels)
        return build_tokenizer("bytes", *codes)

    @functools.cached_property
    def sizes(self) -> SparkConfig:
        """Returns the sizes of the random system: a small vocabulary grows to the tokenizer's."""
        llm = self.config.llm
        return dataclasses.replace(
            self.config,
            llm=dataclasses.replace(llm, vocab_size=max(llm.vocab_size, self.tokenizer.vocab_size)),
        )

    @functools.cached_property
    def codec_variables(self) -> dict[str, Any]:
        """Returns the random weights of BiCodec and wav2vec2."""
        return draw(target_variables(self.sizes, ("bicodec", "wav2vec2"), mesh=self.mesh))

    @functools.cached_property
    def llm_variables(self) -> dict[str, Any]:
        """Returns the random weights of the language model, which never say that a speech is at its end."""
        wanted = target_variables(self.sizes, ("llm",), llm_dtype=jnp.dtype(self.dtype), mesh=self.mesh)
        variables = draw(wanted)["llm"]
        params, end = variables["params"], self.tokenizer.id(END)
        # A score of 0 is never among the highest 50 of thousands that are drawn around it.
        if self.sizes.llm.tie_word_embeddings:
            params["embed"]["embedding"] = _without(params["embed"]["embedding"], end, 0)
        else:
            params["head"] = _without(params["head"], end, 1)
        return variables

    @functools.cached_property
    def tts(self) -> SparkTTS:
        """Returns what speaks: the embedded voice, or the random system."""
        settings = {"dtype": jnp.dtype(self.dtype), "engine": self._engine, "stream": self._stream}
        if self.embedded:
            return SparkTTS.load(**settings)
        folder = Path(self._folder.name)
        self.tokenizer.save(folder)
        variables = self.codec_variables | {"llm": self.llm_variables}
        model = model_directory.LoadedModel(
            config=self.sizes,
            variables=variables,
            tokenizer_directory=folder,
            recognizer_directory=None,
            voices={},
            default_voice=None,
        )
        return SparkTTS(model, **settings)

    def requests(self, count: int) -> list[Request]:
        """Returns so many texts, the same at every call: the held-out sentences again and again, with other seeds."""
        lines = [line.strip() for line in SENTENCES.read_text().splitlines() if line.strip()]
        own: dict[str, Any] = {}
        if not self.embedded:
            lines = [line for line in lines if len(line) in LETTERS]
            speaker = self.config.bicodec.speaker_encoder
            codes = np.random.default_rng(0).integers(math.prod(speaker.fsq_levels), size=speaker.token_num)
            own = {"voice": Voice(codes.astype(np.int32), np.zeros(0, np.int32)), "normalize": "off"}
            own["max_seconds"] = self.seconds
        return [
            Request(text=lines[number % len(lines)], seed=number // len(lines), retries=0, **own)
            for number in range(count)
        ]


def draw(wanted: Any) -> Any:
    """Returns arrays of the wanted shapes, types and places, drawn there.

    All come out of one long array of noise, each from another place: hundreds of generators would take minutes to
    compile.
    """
    length = max(leaf.size for leaf in jax.tree.leaves(wanted)) + _PLACES

    def make(noise: jax.Array) -> Any:
        number = 0

        def leaf(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            nonlocal number
            name = path[-1].key
            if name in _CONSTANTS or name in _ZEROS:
                return jnp.full(like.shape, _CONSTANTS.get(name, 0.0), like.dtype)
            number += 1
            start = number * 7_919_777 % (length - like.size)
            deviation = _DEVIATION if path[0].key == "llm" else 1 / math.sqrt(max(1, math.prod(like.shape[:-1])))
            return (deviation * noise[start : start + like.size].reshape(like.shape)).astype(like.dtype)

        return jax.tree_util.tree_map_with_path(leaf, wanted)

    quick = {"xla_backend_optimization_level": 0} if jax.devices()[0].platform == "cpu" else None
    places = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    noise = jax.jit(lambda key: jax.random.normal(key, (length,), jnp.float32))(jax.random.key(0, impl="rbg"))
    return jax.jit(make, out_shardings=places, compiler_options=quick)(noise)


def quiet() -> None:
    """Keeps warnings about single requests, of which there are thousands, from the output."""
    warnings.simplefilter("ignore", UserWarning)


def _without(table: jax.Array, end: int, axis: int) -> jax.Array:
    place = (slice(None),) * axis + (end,)
    return jax.jit(lambda table: table.at[place].set(0), donate_argnums=0)(table)
