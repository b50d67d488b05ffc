"""Recordings that clients send: decoded in memory, no longer than allowed, and their voice taken."""

import threading
import warnings

from spark_jax.audio.containers import SoundBytes, open_sound
from spark_jax.errors import SparkError
from spark_jax.inference.codec import Codec
from spark_jax.model_directory.voice import Voice
from spark_jax.serve.errors import ApiError, bad_request
from spark_jax.text.clean import has_speech

_lock = threading.Lock()  # what is warned of is caught, which two at once would mix up


def voice_of_upload(
    content: bytes, transcript: str | None, codec: Codec, longest: float, param: str
) -> tuple[Voice, list[str]]:
    """Returns the voice of a recording, and what may be wrong with it.

    Args:
      content: a sound file.
      transcript: what it says; None: unknown.
      codec: with all its parts.
      longest: seconds of it that are taken at most.
      param: the field of the request, by which errors call it.

    Raises:
      ApiError: it cannot be used; the message says why.
    """
    if transcript is not None and not has_speech(transcript):
        raise bad_request("transcript", "transcript holds no letter or number, expected what the recording says")
    recording = SoundBytes(param, content)
    with _lock, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        try:
            _check_length(recording, longest)
            voice = codec.voice(recording, transcript)
        except SparkError as error:
            raise bad_request(param, error, "unusable_audio") from error
    return voice, [str(item.message) for item in told if issubclass(item.category, UserWarning)]


def _check_length(recording: SoundBytes, longest: float) -> None:
    seconds = 0.0
    with open_sound(recording) as sound:
        for block in sound.blocks:
            seconds += len(block) / sound.rate
            if seconds > longest:
                message = f"{recording}: longer than {longest:g} s, the most that is taken"
                raise ApiError(400, message, param=recording.name, code="too_long")
