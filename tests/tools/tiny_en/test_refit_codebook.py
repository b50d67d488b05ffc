"""Refitting a codebook: codes move onto their latents, and nothing but the codebook changes."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("refit_codebook", ROOT / "tools" / "tiny_en" / "refit_codebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_codes_move_onto_clusters(tool):
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 5, (6, 8))
    latents = np.repeat(centers, 50, axis=0) + rng.normal(0, 0.1, (300, 8))
    start = (centers + rng.normal(0, 2, centers.shape)).astype(np.float32)
    start[5] = -centers.sum(axis=0)  # may be chosen by no latent
    fitted = tool.refit(latents, start, 20)
    assert tool.fit(latents, fitted) > 0.99 > tool.fit(latents, start)
    # Lengths are those of the latents, not of directions.
    for code in fitted:
        nearest = centers[np.argmin(np.linalg.norm(centers - code, axis=1))]
        assert np.linalg.norm(code - nearest) < 0.5


def test_lloyds_steps_never_fit_worse(tool):
    rng = np.random.default_rng(1)
    latents, codes = rng.normal(size=(500, 6)), rng.normal(size=(16, 6)).astype(np.float32)
    fits = [tool.fit(latents, codes)] + [tool.fit(latents, tool.refit(latents, codes, steps)) for steps in (1, 3, 10)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(fits))
