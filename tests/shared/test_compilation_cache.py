import jax
import pytest

from spark_jax.shared import compilation_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def enable():
    """`enable` as a fresh process would run it; JAX's settings come back afterwards."""
    before = {option: getattr(jax.config, option) for option in OPTIONS}
    yield compilation_cache.enable.__wrapped__
    for option, value in before.items():
        jax.config.update(option, value)


def test_the_users_cache_folder_is_the_default(enable, monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache, "_default_directory", lambda: str(tmp_path / "spark-jax" / "xla"))
    jax.config.update("jax_compilation_cache_dir", None)
    enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "spark-jax" / "xla")
    assert (tmp_path / "spark-jax" / "xla").is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


def test_a_folder_that_was_chosen_stays(enable, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))  # as JAX_COMPILATION_CACHE_DIR does
    enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_a_folder_that_cannot_be_written_gives_a_warning_and_no_cache(enable, tmp_path):
    (tmp_path / "file").write_text("in the way")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=f"no compilation cache: {tmp_path / 'file'} cannot be written"):
        enable()
    assert jax.config.jax_compilation_cache_dir is None
