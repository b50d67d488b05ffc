"""The codec on lists: in order, as each item alone, on one device and on eight, in few programs."""

import dataclasses
import functools
import warnings

import jax
import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.inference.codec import EMBEDDED_VOICE, Codec
from spark_jax.model_directory.voice import Voice
from spark_jax.sharding import batch_sharding
from spark_jax.wav2vec2.model import num_samples

FRAMES = (64, 65, 4, 63, 96, 63)  # at and around the table's edges: four of up to 64 and two of up to 96


@pytest.fixture(scope="module")
def codec(tiny_model_directory):
    return Codec.load(tiny_model_directory)


@pytest.fixture(scope="module")
def recordings(codec):
    """One sample before the next frame, except for the last."""
    lengths = [num_samples(frames, codec.config.wav2vec2) for frames in FRAMES]
    lengths[-1] += 1
    return [tiny_model.speech(3.0, seed)[:length] for seed, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    return [(rng.integers(64, size=32), rng.integers(64, size=count)) for count in (65, 1, 64, 96, 63, 64)]


@pytest.fixture(scope="module")
def alone(codec, recordings, tokens):
    """The ids and waves of each item by itself."""
    return [codec.encode([item])[0] for item in recordings], [codec.decode([item])[0] for item in tokens]


def assert_same_ids(found, expected):
    assert len(found) == len(expected)
    for ids, others in zip(found, expected, strict=True):
        for own, other in zip(ids, others, strict=True):
            assert own.dtype == np.int32
            np.testing.assert_array_equal(own, other)


def assert_same_waves(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for wave, other in zip(found, expected, strict=True):
        assert wave.dtype == np.float32 and wave.shape == other.shape
        np.testing.assert_allclose(wave, other, atol=tolerance)


@pytest.mark.extended
def test_a_list_is_encoded_as_its_items(codec, recordings, alone):
    ids = codec.encode(recordings)
    assert [len(semantic_ids) for _, semantic_ids in ids] == [64, 65, 4, 63, 96, 64]
    assert len({str(item) for item in ids}) == len(ids)
    assert_same_ids(ids, alone[0])


def test_a_list_is_decoded_as_its_items(codec, tokens, alone):
    waves = codec.decode(tokens)
    assert [len(wave) for wave in waves] == [320 * len(semantic_ids) for _, semantic_ids in tokens]
    assert min(np.std(wave) for wave in waves) > 0
    assert_same_waves(waves, alone[1])
    assert codec.decode([]) == codec.encode([]) == []


def test_lists_compile_a_program_for_each_length(tiny_model_directory):
    codec = Codec.load(tiny_model_directory)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        seconds = rng.permutation(np.r_[rng.uniform(0.2, 1.25, 3 + seed % 2), rng.uniform(1.35, 1.9, 2)])
        ids = codec.encode([tiny_model.speech(length, seed) for length in seconds])
        codec.decode(ids)
        # Three or four items of up to 64 frames have four rows; two of up to 96 have two.
        assert codec._tokenize._cache_size() == codec._detokenize._cache_size() == 2


@pytest.mark.extended
def test_eight_devices_give_what_one_gives(tiny_model_directory, recordings, tokens, alone):
    """On a mesh that divides parameters, too; batches alone are divided in the test of the corpus encoder."""
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    codec = Codec.load(tiny_model_directory, mesh=mesh)
    leaves = jax.tree.leaves({part: codec.variables[part] for part in ("bicodec", "wav2vec2")})
    assert all(leaf.sharding.mesh == mesh for leaf in leaves)
    assert not all(leaf.sharding.is_fully_replicated for leaf in leaves)
    short = [i for i, frames in enumerate(FRAMES) if frames <= 64]
    assert_same_ids(codec.encode([recordings[i] for i in short]), [alone[0][i] for i in short])
    assert_same_waves(codec.decode(tokens), alone[1])
    [batch] = codec.plan([len(tokens[0][1])])
    wave = codec.vocode(tokens[:1], batch)
    assert wave.shape[0] == mesh.shape["data"] * mesh.shape["fsdp"]
    assert wave.sharding.is_equivalent_to(batch_sharding(mesh), wave.ndim)


@pytest.mark.extended
def test_bfloat16_is_the_vocoders(tiny_model_directory, recordings, tokens, alone):
    codec = Codec.load(tiny_model_directory, dtype="bfloat16")
    assert_same_ids(codec.encode(recordings), alone[0])
    for wave, exact in zip(codec.decode(tokens[1:3]), alone[1][1:3], strict=True):
        assert wave.dtype == np.float32
        error = np.sqrt(np.mean((wave - exact) ** 2) / np.mean(exact**2))
        assert 1e-4 < error < 0.03  # bfloat16's own rounding is 0.002 to 0.004


def test_a_voice_without_transcript_is_its_clip(tiny_model_directory, codec, tmp_path):
    samples = tiny_model.speech(3.0)
    soundfile.write(tmp_path / "ref.wav", samples, 16000, subtype="FLOAT")
    [(global_ids, semantic_ids)] = codec.encode_files([tmp_path / "ref.wav"])
    assert_same_ids([(global_ids, semantic_ids)], codec.encode([samples.astype(np.float32)]))
    only_bicodec = Codec.load(tiny_model_directory, parts=("bicodec",))  # no feature of the recording can be made
    voice = only_bicodec.voice(tmp_path / "ref.wav")
    np.testing.assert_array_equal(voice.global_ids, global_ids)
    assert voice.transcript is None and voice.semantic_ids.shape == (0,)
    with pytest.raises(SparkError, match="this needs wav2vec2, loaded are only bicodec"):
        only_bicodec.voice(tmp_path / "ref.wav", "What it says in three seconds.")
    with pytest.warns(
        UserWarning, match=r"ref\.wav: 3\.\d\d s of sound for about 3 syllables.*does it say what its transcr"
    ):
        codec.voice(tmp_path / "ref.wav", "What it says.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spoken = codec.voice(tmp_path / "ref.wav", "What it says in three seconds.")
    assert_same_ids([(spoken.global_ids, spoken.semantic_ids)], [(global_ids, semantic_ids)])


@pytest.fixture(scope="module")
def short_codec(tiny_model_directory):
    """A codec of a model that says 1.3 s at most: what is longer goes through it 64 tokens at a time."""
    loaded = Codec.load(tiny_model_directory)
    return Codec(dataclasses.replace(loaded.config, max_semantic_tokens=128), loaded.variables)


@pytest.mark.extended
def test_long_recordings_are_encoded_in_windows(codec, short_codec):
    recordings = [tiny_model.speech(seconds, seed) for seed, seconds in enumerate((4.0, 1.0, 2.6))]
    found = short_codec.encode(recordings)
    assert [len(semantic_ids) for _, semantic_ids in found] == [199, 49, 129]
    assert short_codec._tokenize._cache_size() <= 2  # of one length: 64, with a row or several
    expected = codec.encode(recordings)
    assert_same_ids(found[1:2], expected[1:2])
    for (global_ids, semantic_ids), (other_global_ids, others) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(global_ids, other_global_ids)
        assert np.mean(semantic_ids == others) > 0.8  # of one pass


@pytest.mark.extended
def test_long_tokens_are_decoded_in_parts(codec, short_codec, tokens):
    rng = np.random.default_rng(0)
    long = [(tokens[0][0], rng.integers(0, 64, length).astype(np.int32)) for length in (300, 65, 64)]
    waves = short_codec.decode([*long, tokens[0]])
    assert short_codec._detokenize._cache_size() <= 2 and short_codec._detokenize_part._cache_size() == 1
    assert_same_waves(waves, codec.decode([*long, tokens[0]]))


@pytest.mark.extended
def test_the_harmonics_of_long_tokens_go_on_in_every_part():
    whole = Codec.load(parts=("bicodec",))
    short = Codec(dataclasses.replace(whole.config, max_semantic_tokens=128), whole.variables)
    voice = Voice.load(EMBEDDED_VOICE / "voices" / "default.json", whole.config)
    ids = np.random.default_rng(0).integers(0, whole.config.bicodec.quantizer.codebook_size, 300)
    assert_same_waves(short.decode([(voice.global_ids, ids)]), whole.decode([(voice.global_ids, ids)]))


def test_errors_name_the_item(codec, tokens):
    speech = tiny_model.speech(0.5)
    with pytest.raises(SparkError, match=r"^samples\[1\]: the audio is silent"):
        codec.encode([speech, speech * 0])
    with pytest.raises(SparkError, match=r"^samples\[0\]: type int16, expected floating-point"):
        codec.encode([np.ones(16000, np.int16)])
    with pytest.raises(SparkError, match=r"^ids\[1\]: semantic_ids is empty"):
        codec.decode([tokens[0], (tokens[0][0], [])])


@pytest.mark.slow
def test_the_embedded_voice_in_batches():
    codec = Codec.load()
    speech = functools.partial(tiny_model.speech, seed=1)
    recordings = [speech(2.0)[:length] for length in (20879, 20880, 16000)]
    ids = codec.encode(recordings)
    assert [len(semantic_ids) for _, semantic_ids in ids] == [64, 65, 49]
    assert_same_ids(ids, [codec.encode([item])[0] for item in recordings])
    assert_same_waves(codec.decode(ids), [codec.decode([item])[0] for item in ids])


@pytest.mark.gpu(place=7)
def test_a_gpu_gives_what_a_cpu_gives(gpu, cpu):
    """Ids are equal though the default on GPUs is TF32; waveforms within what the reference allows."""
    ours, theirs = Codec.load(mesh=gpu), Codec.load(mesh=cpu)
    recordings = [tiny_model.speech(seconds, seed) for seed, seconds in enumerate((2.0, 2.4))]  # padded to one length
    ids = theirs.encode(recordings)
    assert_same_ids(ours.encode(recordings), ids)
    assert_same_waves(ours.decode(ids), theirs.decode(ids), 1e-4)
