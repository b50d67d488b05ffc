import pytest

from spark_jax.errors import SparkError
from spark_jax.evaluation.metrics import count_errors, seed_tts_characters, seed_tts_text
from spark_jax.evaluation.seed_tts import read_list


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompt-wavs").mkdir()
    for name in ("prompt-wavs/a.wav", "prompt-wavs/b.wav", "truth.wav"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_list_is_read_as_it_is(folder):
    path = folder / "meta.lst"
    plain = "utt-1|Hello there.|prompt-wavs/a.wav|We asked over twenty people."
    path.write_text(f"{plain}\nutt-2.wav|你好。|prompt-wavs/b.wav|今天天气很好。|truth.wav\n\n")
    first, second = read_list(path)
    assert (first.name, first.prompt_text, first.text) == ("utt-1", "Hello there.", "We asked over twenty people.")
    assert first.prompt == folder / "prompt-wavs" / "a.wav" and first.truth is None
    assert (first.language, first.scoring, second.language, second.scoring) == ("en", "seed-tts", "zh", "characters")
    assert second.name == "utt-2" and second.truth == folder / "truth.wav"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("utt|text|prompt-wavs/a.wav\n", "meta.lst:1"),
        ("utt|text||said\n", "meta.lst:1"),
        ("utt|text|prompt-wavs/no.wav|said\n", "no.wav: no such file"),
        ("u|t|prompt-wavs/a.wav|s\nu|t|prompt-wavs/a.wav|s\n", "meta.lst:2: id 'u' comes twice"),
        ("\n", "has no line"),
    ],
)
def test_faults_name_the_line(folder, content, named):
    (folder / "meta.lst").write_text(content)
    with pytest.raises(SparkError, match=named):
        read_list(folder / "meta.lst")


def test_english_loses_its_punctuation_but_the_apostrophe():
    assert seed_tts_text("Don't stop -- “now”,  SHE said!") == "don't stop now she said"


def test_chinese_is_counted_in_characters():
    assert seed_tts_characters("今天，天气 很好。") == "今 天 天 气 很 好"
    pytest.importorskip("jiwer", reason="needs the extra evaluation")
    assert count_errors("今天天气很好。", "今天天汽好", "characters") == (2, 6)


def test_errors_are_counted_by_the_rules_asked_for():
    for package in ("jiwer", "whisper_normalizer"):
        pytest.importorskip(package, reason="needs the extra evaluation")
    assert count_errors("I don't know.", "i do not know", "whisper") == (0, 4)
    assert count_errors("I don't know.", "i do not know", "seed-tts") == (2, 3)
    assert count_errors("...", "what", "seed-tts") == (1, 0)
    with pytest.raises(SparkError, match="'words' is unknown"):
        count_errors("a", "b", "words")
