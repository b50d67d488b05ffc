"""What a server tells Prometheus."""

from collections.abc import Callable

from spark_jax.shared.extra import needs_extra

with needs_extra("serve"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
_FACTORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)


class Metrics:
    """The counters of one server.

    Attributes:
      first_audio: seconds from a request to its first samples.
      real_time_factor: seconds that a request took by seconds of its speech.
      audio_seconds: of speech that was made.
      requests: answered ones, by route and status.
      errors: by code.
      vanished: clients that left before their answer's end.
    """

    def __init__(self, slots: int, load: Callable[[], tuple[int, int]]):
        """Args:
        slots: of the engine.
        load: returns how many requests wait and how many are in slots.
        """
        self._registry = own = CollectorRegistry()
        Gauge("spark_jax_slots", "Requests that decode together.", registry=own).set(slots)
        Gauge("spark_jax_queue", "Requests that wait for a slot.", registry=own).set_function(lambda: load()[0])
        Gauge("spark_jax_slots_in_use", "Slots with a request.", registry=own).set_function(lambda: load()[1])
        self.first_audio = Histogram(
            "spark_jax_first_audio_seconds", "From a request to its first samples.", buckets=_SECONDS, registry=own
        )
        self.real_time_factor = Histogram(
            "spark_jax_real_time_factor", "Seconds of a request by those of its speech.", buckets=_FACTORS, registry=own
        )
        self.audio_seconds = Counter("spark_jax_audio_seconds", "Speech that was made.", registry=own)
        self.requests = Counter("spark_jax_requests", "Answered requests.", ["route", "status"], registry=own)
        self.errors = Counter("spark_jax_errors", "Errors that clients were told.", ["code"], registry=own)
        self.vanished = Counter("spark_jax_vanished_clients", "Clients that left early.", registry=own)

    def text(self) -> bytes:
        """Returns all of them in Prometheus's format."""
        return generate_latest(self._registry)
