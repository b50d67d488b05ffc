"""Which of a request's options a model can act on, by its `TextConfig`."""

from spark_jax.inference.request import Request
from spark_jax.text_config import Control, TextConfig

# The fields of a request, by the control that they use.
_FIELDS: dict[Control, tuple[str, ...]] = {
    "gender": ("gender",),
    "pitch": ("pitch", "pitch_hz"),
    "speed": ("speed", "syllables_per_second"),
    "cloning": ("voice", "reference"),
}


def ignored_options(request: Request, config: TextConfig) -> list[str]:
    """Returns a warning, or none, that names the options of a request that change nothing with this model."""
    ignored = [
        name
        for control, names in _FIELDS.items()
        if not config.acts_on(control)
        for name in names
        if getattr(request, name) is not None
    ]
    return [f"{' and '.join(ignored)}: {_unable('act on it', config)}"] if ignored else []


def ignored_reference(reference: object, config: TextConfig) -> list[str]:
    """Returns a warning, or none, that a model will not speak in the voice of a recording."""
    return [] if config.acts_on("cloning") else [f"{reference}: {_unable('follow a reference', config)}"]


def _unable(what: str, config: TextConfig) -> str:
    able = ", ".join(config.controls or ()) or "none of its controls acts"
    return f"the model has not learned to {what} ({able}); its own voice speaks"
