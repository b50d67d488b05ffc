"""Programs: their batches are those that the data pipelines make; the step is chosen by its number."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from helpers import tiny_model
from helpers.tiny_codec_training import VOICED_SYSTEM
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.data.audio_sources import FolderAudio
from spark_jax.data.codec import CodecExamples
from spark_jax.data.config import AudioDataConfig, CodecDataConfig, TokenDataConfig
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.data.speech import SpeechExamples
from spark_jax.data.token_sources import MemoryTokens
from spark_jax.data.tokens import TokenSequences
from spark_jax.errors import SparkError
from spark_jax.model_directory.directory import read_part
from spark_jax.text.tokenizer import build_tokenizer
from spark_jax.text.vocabulary import Vocabulary
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.program import codec_program
from spark_jax.training.codec.run import load_pretrained
from spark_jax.training.codec.state import codec_variables
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.ctc.program import ctc_program
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.llm.program import llm_program
from spark_jax.training.llm.step import completion_metrics
from spark_jax.training.optimizer import OptimizerConfig
from spark_jax.training.program import Program
from spark_jax.training.state import TrainState

SYSTEM = tiny()
LLM = LLMTrainingConfig(accumulate=3, data=TokenDataConfig(row_length=96, batch_rows=8), loss_chunk=100)
CODEC = BiCodecTrainingConfig(data=CodecDataConfig(segment_seconds=0.1, context_seconds=0.02, batch_segments=8))


def shapes(batch):
    return {name: (value.shape, value.dtype) for name, value in batch.items()}


def test_the_language_models_batch_is_what_its_data_gives():
    record = {
        "index": "0",
        "split": "train",
        "text": "a b",
        "gender": "female",
        "language": "en",
        "pitch": 200.0,
        "speed": 4.0,
        "global_ids": [1] * 32,
        "semantic_ids": list(range(20)),
    }
    tokenizer = build_tokenizer("bytes", 64, 64)
    sequences = TokenSequences([MemoryTokens([record] * 40, tokenizer, 96)], tokenizer, 96)
    rows = sequences.plan(LLM.data.batch_rows * LLM.accumulate, 0)(0)[0]
    loaded = sequences.load(rows, [np.random.default_rng(0)] * len(rows))
    assert shapes(llm_program(LLM, SYSTEM).batch) == shapes(loaded)


@pytest.mark.parametrize(("aligned", "pitch"), [(False, False), (True, False), (True, True)])
def test_the_recognizers_batch_is_what_its_data_gives(tmp_path, aligned, pitch):
    """Of the longest bucket; where the corpus is not at hand, with as many labels as speech usually has."""
    soundfile.write(tmp_path / "0.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 6400), 16_000)
    record = {"index": "0", "wav_path": str(tmp_path / "0.flac"), "duration": 0.4, "phonemes": "ab"}
    record |= {"phoneme_bounds": [0.0, 0.1, 0.2], "f0_start": 0, "f0_frames": 20}
    np.save(tmp_path / "f0.npy", np.full(20, 1000, np.uint16))
    tracks = PitchTracks(tmp_path) if pitch else None
    data = AudioDataConfig(bucket_seconds=(0.2, 0.5), batch_seconds=5.0)
    config = CTCTrainingConfig(
        aligned=aligned, pitch_weight=0.5 * pitch, data=data, optimizer=OptimizerConfig(warmup_steps=0)
    )
    vocabulary = Vocabulary(["a", "b"])
    examples = SpeechExamples([record], "phonemes", vocabulary, config.data, SYSTEM, 8, aligned, tracks)
    loaded = examples.load(examples.plan(0)(0)[0], [])
    program = ctc_program(config, SYSTEM, None, len(vocabulary), examples.target_lengths[-1])
    assert shapes(program.batch) == shapes(loaded)
    planned = ctc_program(config, SYSTEM)
    assert planned.batch.keys() == loaded.keys() and planned.batch["samples"] == program.batch["samples"]
    names = {"loss", "label_error_rate"}
    check = partial(program.check_best_metric, metrics=lambda values: dict.fromkeys(names, values["loss"]))
    check(LoopConfig(keep_best=1, best_metric="label_error_rate"))
    with pytest.raises(SparkError, match="loop.best_metric is 'mel', expected one of "):
        check(LoopConfig(keep_best=1, best_metric="mel"))


@pytest.mark.parametrize("kind", ["segments", "whole", "wave", "clips", "segments with pitch", "clips with pitch"])
def test_the_codecs_batch_is_what_its_data_gives(tmp_path, kind):
    kind, pitch = kind.split()[0], kind.endswith("pitch")
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)
    soundfile.write(tmp_path / "0.flac", samples, 16_000)
    record = {"index": "0", "wav_path": str(tmp_path / "0.flac"), "duration": 0.1}
    config = CODEC
    if kind == "whole":
        config = dataclasses.replace(
            config, phase="features", data=dataclasses.replace(config.data, whole_utterances=True)
        )
    if kind in ("wave", "clips"):
        record |= {"semantic_ids": list(range(5)), "global_ids": [1] * 32}
        config = dataclasses.replace(config, phase="wave", reference_clips=kind == "clips")
    system, tracks = SYSTEM, None
    if pitch:
        np.save(tmp_path / "f0.npy", np.full(5, 1000, np.uint16))
        record |= {"f0_start": 0, "f0_frames": 5}
        system, tracks = VOICED_SYSTEM, PitchTracks(tmp_path)
    assert config.needs_pitch(system) == pitch
    data = config.data
    examples = CodecExamples(
        [FolderAudio([record] * 8, SYSTEM.sample_rate, tracks=tracks)],
        SYSTEM,
        data.segment_seconds,
        data.context_seconds,
        whole_utterances=data.whole_utterances,
        from_tokens=kind in ("wave", "clips"),
        reference_clips=kind == "clips",
        pitch=pitch,
    )
    loaded = examples.load(np.arange(8), [np.random.default_rng(0)] * 8)
    assert shapes(codec_program(config, system).batch) == shapes(loaded)


def test_discriminators_join_at_their_step():
    counters = {name: jnp.zeros((), int) for name in ("step", "skipped")}  # of a buffer each: the state is donated
    state = TrainState(params=jnp.zeros(8), opt_state=(), collections={}, **counters)
    add = lambda amount: lambda state, batch: (state.replace(params=state.params + amount), {})  # noqa: E731
    mesh = sharding.make_mesh(1)
    program = Program(mesh, lambda: state, add(10.0), add(1.0), {}, "tokens", early_step=add(1.0), switch_at=3)
    step_at = program.jit_step_at(jax.tree.map(lambda _: sharding.replicated(mesh), state))
    for number in (1, 2, 3, 2):  # a run that goes on, and then an earlier state again
        state, _ = step_at(number)(state, {"x": jnp.zeros(8)})
    assert float(state.params[0]) == 13.0

    late = dataclasses.replace(CODEC, adversarial_start=5)
    assert codec_program(late, SYSTEM).switch_at == 5
    assert codec_program(CODEC, SYSTEM).early_step is None
    assert codec_program(dataclasses.replace(CODEC, adversarial_start=None), SYSTEM).early_step is None


def test_the_abstract_state_is_the_real_one():
    program = llm_program(dataclasses.replace(LLM, mesh=MeshConfig(data=2, fsdp=2, tensor=2)), SYSTEM)
    state, shardings = sharding.initialize(program.mesh, program.init)
    abstract = program.abstract_state()
    assert jax.tree.map(lambda leaf: leaf.sharding, abstract) == shardings
    facts = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(facts, abstract) == jax.tree.map(facts, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": TokenDataConfig(batch_rows=12)}, "data.batch_rows is 12, expected a multiple of 8"),
        ({"attention": "splash"}, "attention: splash on cpu devices, expected tpu"),
        ({"mesh": MeshConfig(cpu_block_mb=0)}, "mesh.cpu_block_mb is 0, expected at least 1"),
    ],
)
def test_what_does_not_fit_the_mesh_is_told(change, message):
    with pytest.raises(SparkError, match=message):
        llm_program(dataclasses.replace(LLM, **change), SYSTEM)


@pytest.mark.extended
def test_the_best_metric_is_one_of_the_validation_s():
    blocks = MeshConfig(cpu_block_mb=16)  # an option of the compiler
    codec, llm = (dataclasses.replace(config, mesh=blocks) for config in (CODEC, LLM))
    names = {"mel": codec_program(codec, SYSTEM), "accuracy_semantic": llm_program(llm, SYSTEM)}
    for name, program in names.items():
        check = program.check_best_metric
        if name == "accuracy_semantic":
            check = partial(check, metrics=completion_metrics)
        check(LoopConfig(keep_best=1))  # loss
        check(LoopConfig(keep_best=1, best_metric=name))
        check(LoopConfig(keep_best=0, best_metric="wave"))
        with pytest.raises(SparkError, match=f"loop.best_metric is 'wave', expected one of .*{name}"):
            check(LoopConfig(keep_best=1, best_metric="wave"))


def test_options_that_exclude_each_other():
    data = dataclasses.replace(CODEC.data, whole_utterances=True)
    with pytest.raises(SparkError, match="whole_utterances: phase is 'full'"):
        codec_program(dataclasses.replace(CODEC, data=data), SYSTEM)


def test_trainings_start_from_the_parts_of_a_model(tiny_model_directory):
    """`init_from` and `wav2vec2` of the recipes: folders of a converted model, in the places of the run's state."""
    parts = tiny_model_directory / "params"
    expected = tiny_model.variables()
    config = dataclasses.replace(
        CODEC, wav2vec2=str(parts / "wav2vec2"), init_from=str(parts / "bicodec"), mesh=MeshConfig(data=2, fsdp=4)
    )
    state = codec_program(config, SYSTEM).abstract_state()
    loaded = load_pretrained(state, config)
    assert jax.tree.map(lambda leaf: leaf.shape, loaded["bicodec"]) == jax.tree.map(
        lambda leaf: leaf.shape, codec_variables(state)
    )
    program = llm_program(dataclasses.replace(LLM, mesh=MeshConfig(data=2, fsdp=2, tensor=2)), SYSTEM)
    loaded["llm"] = read_part(parts / "llm", "llm", {"params": program.abstract_state().params})["params"]
    assert loaded["llm"]["embed"]["embedding"].sharding.spec == jax.P("tensor", "fsdp")
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded,
        {"bicodec": expected["bicodec"], "wav2vec2": expected["wav2vec2"]["params"], "llm": expected["llm"]["params"]},
    )
