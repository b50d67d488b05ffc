"""The ablation of global tokens: its codecs differ in these alone, and start from the same one."""

import json

import ablate_global_tokens as ablation
import jax
import make_voice
import numpy as np
import pytest
from fit_codes import start_of_codec
from helpers.tiny_config import tiny

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.model_directory.directory import read_part, write_parts
from spark_jax.shared.config_files import load_config
from spark_jax.training.catalog import load_training


def test_codecs_differ_in_global_tokens_alone():
    config = load_config(SparkConfig, str(make_voice.MODEL))
    found = {
        name: (sizes.bicodec.speaker_encoder.token_num, sizes.bicodec.speaker_encoder.fsq_levels)
        for name, sizes in ablation.variants(config).items()
    }
    fsq = config.bicodec.speaker_encoder.fsq_levels
    assert found == {"no_fsq": (32, (64,) * 4), "fsq_8": (8, fsq), "fsq_16": (16, fsq), "fsq_32": (32, fsq)}
    assert ablation.variants(config)["fsq_32"] == config
    assert np.prod(ablation.NEARLY_CONTINUOUS) < 2**31  # ids are int32


@pytest.mark.extended
def test_each_starts_from_the_trained_codec(tmp_path):
    config = tiny()
    trained = start_of_codec(BiCodec(config.bicodec), config)
    trained = jax.tree.map(lambda value: np.asarray(value) + 1, trained)
    write_parts(tmp_path / "runs/voices", config, {"bicodec": trained})
    (tmp_path / "runs/ids_swapped.jsonl").write_text(json.dumps({"index": "a", "global_ids": list(range(32))}) + "\n")
    sizes = ablation.variants(config)["fsq_8"]
    ablation.start(tmp_path, "fsq_8", sizes)
    found = read_part(tmp_path / "ablation/fsq_8/start", "bicodec")
    (record,) = map(json.loads, (tmp_path / "ablation/fsq_8/ids.jsonl").read_text().splitlines())
    assert record["global_ids"] == list(range(8))  # more than the codec has would be an error of the training
    speaker = found["params"]["speaker_encoder"]
    assert speaker["perceiver"]["latents"].shape[0] == 8
    jax.tree.map(np.testing.assert_array_equal, speaker["ecapa"], trained["params"]["speaker_encoder"]["ecapa"])
    jax.tree.map(np.testing.assert_array_equal, found["params"]["prenet"], trained["params"]["prenet"])
    assert load_config(SparkConfig, str(tmp_path / "ablation/fsq_8/sizes.yaml")) == sizes


def test_trainings_are_of_the_recipe():
    step = ablation.training("fsq_8", 20)
    recipe = step.command[step.command.index("codec") + 1]
    settings = [after for before, after in zip(step.command, step.command[1:], strict=False) if before == "--set"]
    config = load_training(recipe, [each for each in settings if not each.startswith("model=")])
    assert config.loop.steps == 20 and config.init_from == "ablation/fsq_8/start"
