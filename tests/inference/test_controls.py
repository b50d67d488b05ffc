import pytest

from spark_jax.errors import SparkError
from spark_jax.inference.controls import ignored_options, ignored_reference
from spark_jax.inference.request import Request
from spark_jax.text_config import TextConfig

ONE_SPEAKER = TextConfig(controls=())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"gender": "male"}, "gender"),
        ({"gender": "male", "pitch": "low", "speed": "high"}, "gender and pitch and speed"),
        ({"pitch_hz": 200, "syllables_per_second": 4}, "pitch_hz and syllables_per_second"),
        ({"reference": "noise.wav"}, "reference"),
        ({"voice": "voice.json"}, "voice"),
    ],
)
def test_what_one_speaker_cannot_do_is_told(options, names):
    request = Request(text="Hello.", **options)
    [message] = ignored_options(request, ONE_SPEAKER)
    assert message.startswith(f"{names}: the model has not learned to act on it")
    assert ignored_options(request, TextConfig()) == []


def test_only_what_does_nothing_is_told():
    request = Request(text="Hello.", gender="male", pitch="low")
    [message] = ignored_options(request, TextConfig(controls=("gender", "cloning")))
    assert message.startswith("pitch: ") and "(gender, cloning)" in message
    assert ignored_options(Request(text="Hello."), ONE_SPEAKER) == []


def test_a_reference_that_one_speaker_cannot_follow_is_told():
    [message] = ignored_reference("ref.wav", ONE_SPEAKER)
    assert message.startswith("ref.wav: the model has not learned to follow a reference (none of its controls acts)")
    assert ignored_reference("ref.wav", TextConfig()) == []
    assert ignored_reference("ref.wav", TextConfig(controls=("cloning",))) == []


@pytest.mark.parametrize(
    ("pitch", "speed", "message"),
    [
        (1e6, 4, "pitch_hz is 1000000.0, expected a number above 0 and at most 1000"),
        (1001, 4, "pitch_hz is 1001"),
        (200, 11, "syllables_per_second is 11, expected a number above 0 and at most 10"),
        (200, 1e9, "syllables_per_second is 1000000000.0"),
    ],
)
def test_values_that_no_token_stands_for(pitch, speed, message):
    with pytest.raises(SparkError, match=message):
        Request(text="Hello.", pitch_hz=pitch, syllables_per_second=speed)
    Request(text="Hello.", pitch_hz=1000, syllables_per_second=10)


@pytest.mark.parametrize("text", ["ab\udcff", "\ud800"])
def test_text_that_is_no_unicode(text):
    with pytest.raises(SparkError, match="text is not Unicode text"):
        Request(text=text)
    with pytest.raises(SparkError, match="transcript is not Unicode text"):
        Request(text="Hello.", reference="x.wav", transcript=text)
