"""Short-time Fourier transform, differentiable and of static shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from spark_jax.errors import SparkError


def stft(
    samples: Float[Array, "batch time"], n_fft: int, hop_length: int, window_length: int
) -> Complex[Array, "batch frames bins"]:
    """Returns the centered STFT in float32: reflect padding n_fft // 2, periodic Hann window centered in n_fft.

    There are time // hop_length + 1 frames and n_fft // 2 + 1 bins, as torch.stft with its defaults has them.

    Raises:
      SparkError: time ≤ n_fft // 2, which cannot be reflected.
    """
    time = samples.shape[-1]
    half = n_fft // 2
    if time <= half:
        raise SparkError(f"{time} samples are too few for an STFT of size {n_fft}: expected more than {half}")
    frames = time // hop_length + 1
    padded = jnp.pad(samples.astype(jnp.float32), ((0, 0), (half, half)), mode="reflect")
    # Only the window's support is cut out, as shifted blocks of one hop: slices and a concatenation, whose
    # gradients are pads and a sum, where gathered frames would scatter.
    left = (n_fft - window_length) // 2
    shifts = -(-window_length // hop_length)
    total = (frames - 1 + shifts) * hop_length
    blocks = padded[:, left : left + total]
    blocks = jnp.pad(blocks, ((0, 0), (0, total - blocks.shape[1])))
    blocks = blocks.reshape(-1, frames - 1 + shifts, hop_length)
    framed = jnp.concatenate([blocks[:, j : j + frames] for j in range(shifts)], axis=-1)
    framed = framed[..., :window_length] * hann_window(window_length)
    return jax.lax.platform_dependent(
        framed,
        cpu=functools.partial(_transform_fast, n_fft=n_fft, left=left),
        # XLA gathers a batch that is divided over devices before an FFT; a matrix product stays divided, and
        # at these sizes it is small work for the matrix units.
        default=functools.partial(_transform_product, n_fft=n_fft, left=left),
    )


@functools.cache
def hann_window(length: int) -> Float[np.ndarray, " length"]:
    """Returns the periodic Hann window in float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def _transform_fast(framed, n_fft, left):
    right = n_fft - left - framed.shape[-1]
    return jnp.fft.rfft(jnp.pad(framed, ((0, 0), (0, 0), (left, right))))


def _transform_product(framed, n_fft, left):
    cosine, sine = _fourier_basis(n_fft, left, framed.shape[-1])
    real = jnp.einsum("bfn,nk->bfk", framed, cosine, precision="highest")
    imaginary = jnp.einsum("bfn,nk->bfk", framed, sine, precision="highest")
    return jax.lax.complex(real, imaginary)


@functools.cache
def _fourier_basis(n_fft, left, length):
    """Returns real and imaginary part of exp(−2πi·n·k / n_fft) for samples n = left … left + length − 1."""
    # The product n·k is reduced in integers: large angles would lose digits.
    steps = np.outer(np.arange(left, left + length), np.arange(n_fft // 2 + 1)) % n_fft
    angle = 2 * np.pi * steps / n_fft
    return np.cos(angle).astype(np.float32), (-np.sin(angle)).astype(np.float32)
