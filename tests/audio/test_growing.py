import os
import threading

import numpy as np
import pytest
import soundfile

from spark_jax.audio.growing import GrowingAudio, pcm16
from spark_jax.audio.write import write_audio
from spark_jax.errors import SparkError

SAMPLES = np.linspace(-1.2, 1.2, 1000, dtype=np.float32)


def test_a_wav_can_be_read_at_any_time_and_is_in_the_end_as_if_written_at_once(tmp_path):
    with GrowingAudio(tmp_path / "out.wav", 16000) as file:
        assert soundfile.info(tmp_path / "out.wav").frames == 0
        for end in (100, 101, 1000):
            file.write(SAMPLES[soundfile.info(tmp_path / "out.wav").frames : end])
            assert soundfile.info(tmp_path / "out.wav").frames == end
    write_audio(tmp_path / "whole.wav", SAMPLES, 16000)
    got, rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(got, soundfile.read(tmp_path / "whole.wav", dtype="int16")[0])


def test_samples_without_a_header(tmp_path):
    with GrowingAudio(tmp_path / "out.pcm", 16000) as file:
        file.write(SAMPLES)
    got = np.frombuffer((tmp_path / "out.pcm").read_bytes(), "<i2")
    assert got[0] == -32767 and got[-1] == 32767 and len(got) == 1000
    assert (tmp_path / "out.pcm").read_bytes() == pcm16(SAMPLES)


def test_a_pipe_gets_samples_and_its_end_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    with GrowingAudio(tmp_path / "pipe", 16000) as file:
        file.write(SAMPLES)
    reader.join()
    assert found == [pcm16(SAMPLES)]


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.mp3", r"a stream is written as \.wav or \.pcm"), ("absent/out.wav", "cannot be written")],
)
def test_what_cannot_be_written_is_named(tmp_path, name, message):
    with pytest.raises(SparkError, match=message):
        GrowingAudio(tmp_path / name, 16000)
