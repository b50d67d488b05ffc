import dataclasses
import shutil
import warnings
from functools import partial
from unittest import mock

import jax
import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax import sharding
from spark_jax.audio.normalize import reference_clip, volume_normalize
from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SamplingConfig
from spark_jax.errors import SparkError
from spark_jax.inference import long_text, spoken_text
from spark_jax.inference.checks import Finding
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.voice import Voice
from spark_jax.text_config import TextConfig
from spark_jax.wav2vec2.model import Wav2Vec2, normalize_input, num_frames, num_samples


@pytest.fixture(scope="module")
def tts(tiny_model_directory):
    return SparkTTS.load(tiny_model_directory)


@pytest.fixture(scope="module")
def tokens(tts):
    return tts.encode(tiny_model.speech(1.0))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "ref.wav"
    soundfile.write(path, tiny_model.speech(1.0), 16000, subtype="FLOAT")
    return path


def quiet(tts, *arguments, **options):
    """Speaks without the warning that a random model, which seldom ends, gives; and once."""
    options.setdefault("retries", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tts.synthesize(*arguments, **options)


def prompt_of(tts, text="Hello.", **options):
    """The prompt of a text of one piece."""
    request = Request(text=text, **options)
    plan, _ = tts.plan(request)
    return tts._prompter.prompt(request, plan.pieces[0].text, tts._prompter.voice(request))


@pytest.mark.extended
@pytest.mark.parametrize("length", [16000, 20719])
def test_encode_equals_the_reference_procedure_on_the_bare_signal(tts, length):
    """Padding to the bucket of 64 never changes an id; 20719 samples are 63 frames and all but one sample of
    the next."""
    config, variables = tts.config, tts.codec.variables
    samples = tiny_model.speech(2.0)[:length]
    global_ids, semantic_ids = tts.encode(samples)
    normalized = volume_normalize(samples)
    clip = reference_clip(normalized, config.ref_segment_samples)[None].astype(np.float32)

    @jax.jit
    def tokenize(samples, clip):
        features = Wav2Vec2(config.wav2vec2).apply(variables["wav2vec2"], normalize_input(samples))
        return BiCodec(config.bicodec).apply(variables["bicodec"], features, clip, method="tokenize")

    expected = tokenize(normalized[None].astype(np.float32), clip)
    np.testing.assert_array_equal(semantic_ids, expected[0][0])
    np.testing.assert_array_equal(global_ids, expected[1][0])
    assert len(semantic_ids) == (length - 400) // 320 + 1
    assert len(np.unique(semantic_ids)) > 1  # or equality would say little


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.extended), 40])
def test_decode_keeps_the_length_and_padding_changes_nothing(tts, count):
    rng = np.random.default_rng(count)
    global_ids, semantic_ids = rng.integers(64, size=32), rng.integers(64, size=count)
    samples = tts.decode(global_ids, semantic_ids)
    detokenize = jax.jit(partial(BiCodec(tts.config.bicodec).apply, method="detokenize"))
    expected = detokenize(tts.codec.variables["bicodec"], semantic_ids[None], global_ids[None])
    assert samples.shape == (320 * count,) and samples.dtype == np.float32
    np.testing.assert_allclose(samples, expected[0], atol=1e-5)
    assert np.std(samples) > 0


def test_lengths_of_one_bucket_share_their_programs(tts, tokens):
    global_ids, semantic_ids = tokens
    codec = tts.codec
    programs = codec._tokenize._cache_size(), codec._detokenize._cache_size()
    for count in (1600, 9000, 15999):
        tts.encode(tiny_model.speech(1.0)[:count])
    for count in (2, 30, 49):
        tts.decode(global_ids, semantic_ids[:count])
    assert (codec._tokenize._cache_size(), codec._detokenize._cache_size()) == programs


def test_the_longest_input_of_so_many_frames(tts):
    for frames in (1, 2, 64, 3000):
        samples = num_samples(frames, tts.config.wav2vec2)
        assert num_frames(samples, tts.config.wav2vec2) == frames
        assert num_frames(samples + 1, tts.config.wav2vec2) == frames + 1


def test_synthesize_a_made_up_voice(tts):
    audio = quiet(tts, "Hello.", gender="female", pitch="high", speed="very_low", max_seconds=1)
    assert audio.sample_rate == 16000
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (320 * len(audio.semantic_ids),)
    assert audio.global_ids.shape == (32,)
    np.testing.assert_array_equal(audio.samples, tts.decode(audio.global_ids, audio.semantic_ids))


def test_the_seed_decides(tts):
    def speak(**options):
        return quiet(tts, "Hello.", gender="male", max_seconds=0.5, **options).semantic_ids.tolist()

    assert speak(seed=1) == speak(seed=1)
    assert speak(seed=1) != speak(seed=2)
    assert speak(seed=1, greedy=True) == speak(seed=2, greedy=True)
    # Where a request does not say, the model's own sampling holds: with one candidate it is greedy.
    own = dataclasses.replace(tts.config, sampling=SamplingConfig(top_k=1))
    with mock.patch.object(tts._prompter, "config", own):
        assert speak(seed=1) == speak(seed=3) == speak(seed=1, greedy=True) != speak(seed=1, top_k=50)


def test_a_large_top_k_has_programs_of_its_own(tts):
    def speak(**options):
        return quiet(tts, "Hello.", gender="male", max_seconds=0.2, temperature=3.0, **options).semantic_ids.tolist()

    assert speak(top_k=10**12) == speak(top_k=tts.config.llm.vocab_size) != speak(top_k=50)


def test_the_limit_is_told_and_kept(tts):
    with pytest.warns(UserWarning, match=r"the speech has no end: cut off after 0\.04 s"):
        audio = tts.synthesize("Hello.", gender="male", max_seconds=0.04, greedy=True)
    assert audio.reached_limit and len(audio.semantic_ids) == 2


@pytest.mark.extended
def test_an_end_is_no_limit(tts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it speaks for long, being random
        warnings.filterwarnings("error", "the speech has no end")
        audio = tts.synthesize("Hello.", gender="male", seed=0, retries=0)
    assert not audio.reached_limit and 0 < len(audio.semantic_ids) < 3000


def test_what_is_wrong_is_told_and_kept(tts, reference, tmp_path, monkeypatch):
    findings = (Finding("silent", -60.0, -45.0, "it is silent"), Finding("loop", 2.0, 1.0, "it goes in circles"))
    monkeypatch.setattr(spoken_text, "check_speech", lambda *_, **__: findings)
    for options, hint in (
        ({"gender": "male"}, ""),
        ({"reference": reference, "transcript": "It."}, "; does the reference say what its transcript says?"),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            audio = tts.synthesize("Hello.", max_seconds=0.1, retries=0, **options)
        assert audio.checks == findings
        cut_off = "the speech has no end: cut off after 0.1 s"
        assert [str(warning.message) for warning in told] == [cut_off, "it is silent" + hint, "it goes in circles"]
    audio.save(tmp_path / "out.flac")
    assert soundfile.info(tmp_path / "out.flac").frames == len(audio.samples)
    with pytest.raises(SparkError, match=r"out\.x: extension '\.x' is no format of audio"):
        audio.save(tmp_path / "out.x")


def test_a_reference_a_voice_and_its_file_are_the_same(tts, reference, tmp_path):
    options = {"max_seconds": 0.5, "seed": 5}
    voice = tts.voice(reference, "Good morning.")
    voice.save(tmp_path / "voice.json", tts.config.sample_rate)
    heard = quiet(tts, "Hello.", reference=reference, transcript="Good morning.", **options)
    kept = quiet(tts, "Hello.", voice, **options)
    read = quiet(tts, "Hello.", voice=tmp_path / "voice.json", **options)
    np.testing.assert_array_equal(heard.samples, kept.samples)
    np.testing.assert_array_equal(heard.samples, read.samples)
    np.testing.assert_array_equal(heard.global_ids, voice.global_ids)


def test_a_reference_without_transcript_is_its_speakers_tokens(tts, tokens, reference, tmp_path):
    voice = tts.voice(reference)
    np.testing.assert_array_equal(voice.global_ids, tts.codec.encode_files([reference])[0][0])
    assert len(voice.semantic_ids) == 0
    voice.save(tmp_path / "voice.json", tts.config.sample_rate)
    full = Voice(voice.global_ids, tokens[1])  # as voice files without a transcript were before
    prompts = [
        prompt_of(tts, **options)
        for options in ({"reference": reference}, {"voice": tmp_path / "voice.json"}, {"voice": voice}, {"voice": full})
    ]
    assert len(set(prompts)) == 1


@pytest.mark.extended
def test_the_longest_speech_is_the_configurations(tts, tiny_model_directory):
    model = model_directory.load(tiny_model_directory)
    short = SparkTTS(dataclasses.replace(model, config=dataclasses.replace(model.config, max_semantic_tokens=3)))
    with pytest.warns(UserWarning, match=r"cut off after 0\.06 s"):
        audio = short.synthesize("Hello.", gender="male", greedy=True)
    assert audio.reached_limit and len(audio.semantic_ids) == 3
    with pytest.raises(SparkError, match=r"max_seconds is 1, expected at most 0\.06 here"):
        short.synthesize("Hello.", gender="male", max_seconds=1)


@pytest.mark.extended
def test_parts_that_a_run_lacks_come_from_the_base(tts, tiny_model_directory, tmp_path):
    model = model_directory.load(tiny_model_directory)
    llm = {"llm": model.variables["llm"]}
    model_directory.write_parts(tmp_path / "run", model.config, llm, model.tokenizer_directory)
    with pytest.raises(SparkError, match="holds no bicodec and no wav2vec2"):
        SparkTTS.load(tmp_path / "run")
    joined = SparkTTS.load(tmp_path / "run", base=tiny_model_directory)
    request = {"gender": "male", "max_seconds": 0.5, "seed": 1}
    np.testing.assert_array_equal(quiet(joined, "Hello.", **request).samples, quiet(tts, "Hello.", **request).samples)


@pytest.mark.extended
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_mesh(tts, tiny_model_directory, dtype):
    """Tensor-parallel LLM and divided batches; in float32 the tokens of one device."""
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    divided = SparkTTS.load(tiny_model_directory, dtype=dtype, mesh=mesh)
    heads = divided._llm_params["layers"]["attention"]["query"]["kernel"]
    assert heads.dtype == dtype and heads.sharding.shard_shape(heads.shape)[2] == heads.shape[2] // 2
    request = {"gender": "female", "seed": 3, "max_seconds": 0.5}
    audio = quiet(divided, "Hello.", **request)
    assert audio.samples.dtype == np.float32 and len(audio.samples) == 320 * len(audio.semantic_ids) > 0
    if dtype == "float32":
        expected = quiet(tts, "Hello.", **request)
        np.testing.assert_array_equal(audio.semantic_ids, expected.semantic_ids)
        np.testing.assert_array_equal(audio.global_ids, expected.global_ids)
        np.testing.assert_allclose(audio.samples, expected.samples, atol=1e-5)


def test_prompts_follow_the_request(tts, tokens):
    name = tts.tokenizer.id
    global_ids, semantic_ids = tokens

    def ids(**options):
        return prompt_of(tts, **options).ids

    cloned = ids(voice=Voice(global_ids, semantic_ids))
    assert cloned[0] == name("<|task_tts|>") and cloned[-1] == name("<|end_global_token|>")
    continued = ids(voice=Voice(global_ids, semantic_ids, "Good morning."))
    assert continued[-1] == tts.tokenizer.semantic_ids[semantic_ids[-1]]
    fine = ids(voice=Voice(global_ids, semantic_ids), pitch_hz=200.0, syllables_per_second=4.5)
    assert {name("<|pitch_value_283|>"), name("<|speed_value_4|>")} <= set(fine)
    made_up = ids(gender="female")
    assert made_up[-4:-1] == (name("<|gender_0|>"), name("<|pitch_label_2|>"), name("<|speed_label_2|>"))
    # 200 Hz are moderate for a woman and very high for a man; 5.3 syllables are high in English, not so in Chinese.
    levels = [
        prompt_of(tts, text, gender=gender, pitch_hz=200.0, syllables_per_second=5.3).ids
        for text, gender in (("Hello.", "female"), ("Hello.", "male"), ("你好", "male"), ("你好", "female"))
    ]
    pitch = [row.index(name("<|end_style_label|>")) for row in levels]
    assert [row[place - 2] for row, place in zip(levels, pitch, strict=True)] == [
        name(f"<|pitch_label_{level}|>") for level in (2, 4, 4, 2)
    ]
    assert [row[place - 1] for row, place in zip(levels, pitch, strict=True)] == [
        name(f"<|speed_label_{level}|>") for level in (3, 3, 3, 3)
    ]
    assert levels[0][-1] == name("<|end_acoustic_token|>")


def test_prompts_of_raw_text_are_those_of_the_reference(tts, tokens):
    """Quotes and punctuation of any language go into the prompts of a model that knows raw text as they are."""
    voice, encode = Voice(*tokens, "“Good—morning，” 1 "), tts.tokenizer.encode_text
    for text in ("“It’s 5 %,” he said…", "你好，世界！（ＡＢＣ）"):
        for normalize in ("auto", "off"):
            prompt = prompt_of(tts, text, voice=voice, normalize=normalize)
            content = [prompt.ids.index(tts.tokenizer.id(f"<|{edge}_content|>")) for edge in ("start", "end")]
            assert list(prompt.ids[content[0] + 1 : content[1]]) == encode(voice.transcript + text)


@pytest.mark.extended
def test_a_long_text_is_spoken_in_pieces(tts, tiny_model_directory):
    """The voice made up for the first piece speaks all; pauses lie between; each piece has a seed of its own."""
    model = model_directory.load(tiny_model_directory)
    config = dataclasses.replace(model.config, text=TextConfig(max_length=20))
    short = SparkTTS(dataclasses.replace(model, config=dataclasses.replace(config, max_semantic_tokens=9)))
    text = "[pause 0.1s]The first sentence. A second sentence.[pause 0.25s]\n\nThe first sentence."
    audio = quiet(short, text, gender="male", seed=3)
    assert [span.text for span in audio.spans] == ["The first sentence.", "A second sentence.", "The first sentence."]
    voice = Voice(audio.global_ids, np.zeros(0, np.int32))
    position, tokens = 1600, 0
    for number, (span, pause) in enumerate(zip(audio.spans, (0.2, 0.25, 0.0), strict=True)):
        seed = long_text.piece_seed(3, number)
        alone = quiet(short, span.text, **({"voice": voice} if number else {"gender": "male"}), seed=seed)
        assert span.start == position and span.end - span.start == len(alone.samples)
        np.testing.assert_array_equal(audio.samples[span.start : span.end], alone.samples)
        np.testing.assert_array_equal(audio.semantic_ids[tokens : tokens + len(alone.semantic_ids)], alone.semantic_ids)
        tokens += len(alone.semantic_ids)
        position = span.end + round(16000 * pause)
        assert not audio.samples[span.end : position].any()
    assert len(audio.samples) == position and len(audio.semantic_ids) == tokens
    assert len({tuple(audio.samples[span.start : span.end]) for span in audio.spans}) == 3
    with pytest.warns(UserWarning, match=r"longer than max_seconds: cut off after 0\.2[0-9]* s of speech"):
        cut = short.synthesize(text, gender="male", seed=3, max_seconds=0.2, retries=0)
    assert cut.reached_limit and len(cut.semantic_ids) == 10 and len(cut.spans) < 3


def test_options_that_do_nothing_are_told(tts, tokens):
    own = dataclasses.replace(tts.config, text=TextConfig(controls=(), characters="Helo."))
    with mock.patch.object(tts._prompter, "config", own), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        tts.synthesize("Hello→.", gender="male", pitch="low", max_seconds=0.04)
    messages = [str(warning.message) for warning in warned]
    assert messages[0].startswith("gender and pitch: the model has not learned to act on it")
    assert messages[1] == "text: the model does not know '→': left out"


def test_the_default_voice(tts, tokens, tiny_model_directory, tmp_path):
    shutil.copytree(tiny_model_directory, tmp_path / "model")
    (tmp_path / "model" / "voices").mkdir()
    Voice(*tokens).save(tmp_path / "model" / "voices" / "default.json", 16000)
    prompt = prompt_of(SparkTTS.load(tmp_path / "model"))
    assert prompt == prompt_of(tts, voice=Voice(*tokens))
    with pytest.raises(SparkError, match="the model has no default voice: give a voice, a reference or a gender"):
        tts.synthesize("Hello.")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(16000), "samples: the audio is silent"),
        (np.ones(1599), "samples: 0.100 s of audio, expected at least 0.1 s"),
        (np.full(16000, np.nan), "samples: 16000 of 16000 samples are NaN"),
        (np.ones((2, 16000)), "samples: expected one channel"),
        (np.ones(16000, np.int16), "samples: type int16, expected floating-point amplitudes"),
    ],
)
def test_encode_refuses(tts, samples, message):
    with pytest.raises(SparkError, match=message):
        tts.encode(samples)


def test_what_does_not_fit_the_model(tts, tokens):
    with pytest.raises(SparkError, match=r"semantic_ids\[0\] is 64, expected 0 to 63"):
        tts.decode(tokens[0], [64])
    with pytest.raises(SparkError, match=r"voice: semantic_ids\[1\] is 99"):
        tts.synthesize("Hello.", Voice(tokens[0], np.array([1, 99])))
    with pytest.raises(SparkError, match="leaves no room for speech: give less text"):
        tts.synthesize("Hello.", Voice(*tokens, "la " * 2000))
    with pytest.raises(SparkError, match="max_seconds is 100, expected at most 60 here"):
        tts.synthesize("Hello.", gender="male", max_seconds=100)
    with pytest.raises(SparkError, match="voice: semantic_ids is empty"):
        tts.synthesize("Hello.", Voice(tokens[0], np.zeros(0, np.int32), "Good morning."))
    with pytest.raises(TypeError):
        tts.synthesize("Hello.", volume=3)
