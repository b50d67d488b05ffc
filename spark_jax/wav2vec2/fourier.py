"""A first convolution that starts as a bank of short Fourier filters: small extractors need not learn one.

Waves that enter a network as samples cost a small model thousands of steps until its first layers tell
frequencies apart. Nothing in the architecture changes: these are ordinary start values of `conv_0`.
"""

import numpy as np
from jaxtyping import Float

PHASES = 4  # cosine, sine and their negatives: GELU of a filter and its negative add up to about its power
LOWEST_HZ = 80.0


def fourier_kernel(length: int, channels: int, sample_rate: int) -> Float[np.ndarray, "length 1 channels"]:
    """Windowed cosines and sines at mel-spaced frequencies, four phases each, as a convolution's kernel.

    The gain rises with frequency (6 dB an octave above 1 kHz's half), as the spectrum of speech falls.

    Args:
      length: samples of the kernel, the Hann window's length.
      channels: outputs; a quarter of them frequencies.

    Raises:
      ValueError: channels are not a multiple of four.
    """
    if channels % PHASES:
        raise ValueError(f"{channels} channels, expected a multiple of {PHASES}")
    mel = np.linspace(*(2595 * np.log10(1 + np.array([LOWEST_HZ, 0.48 * sample_rate]) / 700)), channels // PHASES)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    angles = 2 * np.pi * hertz / sample_rate * (np.arange(length) - (length - 1) / 2)[:, None]
    window = np.hanning(length + 2)[1:-1, None]
    gain = np.sqrt(hertz**2 + 500.0**2) / 1000.0
    waves = window * gain * np.stack([np.cos(angles), np.sin(angles)])
    waves /= np.sqrt(np.sum(window**2))
    return np.concatenate([*waves, *-waves], axis=1)[:, None].astype(np.float32)
