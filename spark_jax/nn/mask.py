"""Padding masks along time."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Mask = Bool[Array, "batch time"] | None  # True where a frame is no padding; None: everywhere
OutputMask = Bool[Array, "batch frames"] | None  # after a change of the frame rate


def zero_padding(inputs: Float[Array, "batch time channels"], mask: Mask) -> Float[Array, "batch time channels"]:
    """Sets frames outside the mask to zero, so that a convolution sees the zeros that follow an item alone."""
    return inputs if mask is None else jnp.where(mask[..., None], inputs, 0)


def upsample_mask(mask: Mask, ratio: int) -> OutputMask:
    """Returns the mask of frames that are repeated `ratio` times."""
    return mask if mask is None or ratio == 1 else jnp.repeat(mask, ratio, axis=1)


def downsample_mask(mask: Mask, ratio: int) -> OutputMask:
    """Returns the mask after downsampling: a frame is valid where all its `ratio` source frames are."""
    if mask is None or ratio == 1:
        return mask
    frames = mask.shape[1] // ratio
    return jnp.all(mask[:, : frames * ratio].reshape(mask.shape[0], frames, ratio), axis=-1)
