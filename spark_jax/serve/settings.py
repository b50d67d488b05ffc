"""What an operator decides of the server: limits, times and keys."""

import dataclasses
import math

from spark_jax.errors import SparkError


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Limits of the server.

    Attributes:
      api_keys: any of them opens the API; none: everybody may use it.
      queue: requests that may wait beside those in the slots; more are told to come again.
      max_characters: the longest text of a request.
      max_seconds: the longest speech of a request.
      timeout: seconds until the speech of a request must be made.
      stall: seconds that a client may take nothing of what is sent to it.
      max_body: bytes of a request, without an upload.
      max_upload: bytes of a recording.
      max_upload_seconds: length of a recording.
      max_batch: requests of a batch.
      max_voices: stored voices.
      drain: seconds for what is at work when the server is to end.

    Raises:
      SparkError: from the constructor, for a number that is out of range or an empty key.
    """

    api_keys: tuple[str, ...] = ()
    queue: int = 64
    max_characters: int = 4096
    max_seconds: float = 600.0
    timeout: float = 300.0
    stall: float = 30.0
    max_body: int = 2**20
    max_upload: int = 10 * 2**20
    max_upload_seconds: float = 60.0
    max_batch: int = 64
    max_voices: int = 1000
    drain: float = 60.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "api_keys":
                if not all(key.strip() for key in value):
                    raise SparkError("api_keys: one is empty, expected a key")
            elif not value > 0 and not (field.name == "queue" and value == 0):
                raise SparkError(f"{field.name} is {value}, expected more than 0")
            elif math.isinf(value):
                raise SparkError(f"{field.name} is {value}, expected a finite number")
