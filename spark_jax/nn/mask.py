"""Padding masks along time."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Mask = Bool[Array, "batch time"] | None


def zero_padding(inputs: Float[Array, "batch time channels"], mask: Mask) -> Float[Array, "batch time channels"]:
    """Zeroes the frames outside the mask, so that a convolution sees what lies beyond a single item's end."""
    return inputs if mask is None else jnp.where(mask[..., None], inputs, 0)


def upsample_mask(mask: Mask, ratio: int) -> Mask:
    """The mask after upsampling by repetition."""
    return mask if mask is None or ratio == 1 else jnp.repeat(mask, ratio, axis=1)


def downsample_mask(mask: Mask, ratio: int) -> Mask:
    """The mask after downsampling: a frame counts where all its `ratio` sources do."""
    if mask is None or ratio == 1:
        return mask
    frames = mask.shape[1] // ratio
    return jnp.all(mask[:, : frames * ratio].reshape(mask.shape[0], frames, ratio), axis=-1)
