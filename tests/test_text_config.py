import json
from pathlib import Path

import pytest
from helpers.tiny_config import tiny

from spark_jax import config as config_lib
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference.codec import EMBEDDED_VOICE
from spark_jax.model_directory.layout import read_config
from spark_jax.text_config import TextConfig


def test_configurations_of_before_have_the_default():
    content = json.loads((EMBEDDED_VOICE / "config.json").read_text())
    del content["text"], content["format_version"]
    assert config_lib.from_mapping(SparkConfig, content, "config.json").text == TextConfig()


def test_it_is_kept():
    text = TextConfig(("en",), "abc ", 70, False, True, True, ("gender", "cloning"))
    config = tiny()
    mapping = config_lib.to_mapping(SparkConfig(text=text))
    assert config_lib.from_mapping(SparkConfig, json.loads(json.dumps(mapping)), "x").text == text
    assert config.text == TextConfig() and config.text.acts_on("pitch")
    assert text.acts_on("cloning") and not text.acts_on("pitch")


def test_the_embedded_voice_is_that_of_its_recipe():
    """A voice that is trained anew knows of text what this one does."""
    from spark_jax.model_directory.layout import read_system

    recipe = Path(__file__).parents[1] / "tools" / "tiny_en" / "recipes" / "model.yaml"
    assert read_system(recipe).text == read_config(EMBEDDED_VOICE).text


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"languages": []}, "text.languages is empty"),
        ({"characters": " "}, "text.characters is ' '"),
        ({"max_length": 5}, "text.max_length is 5, expected at least 20"),
        ({"controls": ["volume"]}, "text.controls has 'volume', expected some of gender, pitch, speed, cloning"),
        ({"languages": "en"}, "languages is 'en', expected a list"),
        ({"normalize": "yes"}, "normalize"),
        ({"max_length": True}, "max_length is True, expected"),
        ({"size": 1}, "size"),
    ],
)
def test_what_is_no_section(section, message):
    with pytest.raises(SparkError, match=message):
        config_lib.from_mapping(SparkConfig, {"text": section}, "config.json")
