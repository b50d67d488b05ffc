"""Nearest codes by direction: ties, zero rows, tiny latents."""

import numpy as np

from spark_jax.bicodec.quantize import code_distances, nearest_codes


def test_ties_go_to_the_lowest_index(modules_golden):
    latents = np.swapaxes(modules_golden["vq_ties/latents"], 1, 2)
    codebook = modules_golden["vq_ties/codebook"]
    np.testing.assert_allclose(code_distances(latents[0], codebook), modules_golden["vq_ties/dists"], atol=1e-6)
    np.testing.assert_array_equal(nearest_codes(latents, codebook), modules_golden["vq_ties/indices"])
