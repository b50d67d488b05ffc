"""Wide grouped convolution for CPUs by the fast Fourier transform, which costs little at any kernel size."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def fourier_convolution(
    x: Float[Array, "batch frames channels"], weight: Float[Array, "kernel in channels"], groups: int
) -> Float[Array, "batch frames channels"]:
    """Computes a grouped convolution that keeps the length, with kernel // 2 zeros before the first frame.

    It is an overlap-save with blocks of twice the kernel, so that the transformed weights are small at any length.
    """
    batch, frames, channels = x.shape
    kernel, group, _ = weight.shape
    blocks = -(-frames // kernel)
    left = kernel // 2
    x = jnp.pad(x, ((0, 0), (left, (blocks + 1) * kernel - frames - left), (0, 0)))
    x = x.reshape(batch, blocks + 1, kernel, channels)
    x = jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)  # [batch, blocks, 2 kernel, channels]
    spectrum = jnp.fft.rfft(x, axis=2).reshape(batch, blocks, kernel + 1, groups, group)
    # The layer is a correlation, hence the conjugate; the first `kernel` outputs of each block do not wrap around.
    weights = jnp.conj(jnp.fft.rfft(weight, 2 * kernel, axis=0)).reshape(kernel + 1, group, groups, group)
    spectrum = jnp.einsum("bnfgi,figo->bnfgo", spectrum, weights)
    y = jnp.fft.irfft(spectrum.reshape(batch, blocks, kernel + 1, channels), axis=2)[:, :, :kernel]
    return y.reshape(batch, blocks * kernel, channels)[:, :frames]
