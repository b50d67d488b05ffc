"""Initial values of the first convolution: a bank of short Fourier filters, which small extractors need not learn.

A small model that reads samples needs thousands of steps until its first layers tell frequencies apart. The
architecture does not change: these are ordinary initial values of `conv_0`.
"""

import numpy as np
from jaxtyping import Float

PHASES = 4  # cosine, sine and their negatives: the GELUs of a filter and its negative sum to about its power
LOWEST_HZ = 80.0


def fourier_kernel(length: int, channels: int, sample_rate: int) -> Float[np.ndarray, "length 1 channels"]:
    """Returns a convolution's kernel of windowed cosines and sines at mel-spaced frequencies, in four phases each.

    The gain rises with frequency (6 dB per octave above 500 Hz) because the spectrum of speech falls.

    Args:
      length: number of samples of the kernel, which is the Hann window's length.
      channels: number of outputs, four for each frequency.
      sample_rate: in Hz.

    Raises:
      ValueError: `channels` is not a multiple of four.
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
