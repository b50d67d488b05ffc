"""What accelerators can do: the makers' figures, for model FLOPs utilization and for `spark-jax plan`."""

import dataclasses
import re

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts them.

    Attributes:
      name: short.
      flops: dense bfloat16 products with float32 sums, FLOP/s.
      memory: of the device, bytes.
      memory_bandwidth: bytes/s.
      link_bandwidth: to its two neighbors along one axis of the interconnect together, one way, bytes/s; None: it
        depends on the machine.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float | None = None


# Patterns of `jax.Device.device_kind`, the first that is found counts. TPUs: cloud.google.com/tpu/docs, interconnect
# from "How to scale your model" (jax-ml.github.io/scaling-book/tpus); GPUs: NVIDIA's data sheets, without sparsity.
_TABLE = (
    (r"^TPU v4$", Accelerator("TPU v4", 275e12, 32 * GIB, 1.23e12, 90e9)),
    (r"^TPU v5 ?(lite|e)\b", Accelerator("TPU v5e", 197e12, 16 * GIB, 0.82e12, 90e9)),
    (r"^TPU v5p?$", Accelerator("TPU v5p", 459e12, 95 * GIB, 2.77e12, 180e9)),
    (r"^TPU v6 ?(lite|e)\b", Accelerator("TPU v6e", 918e12, 32 * GIB, 1.64e12, 180e9)),
    # A chip is two devices, each with half of everything.
    (r"^TPU ?v?7x?$", Accelerator("TPU v7x (half a chip)", 1153e12, 96 * GIB, 3.69e12, 180e9)),
    (r"A100.*40GB", Accelerator("A100 40 GB", 312e12, 40 * GIB, 1.56e12)),
    (r"A100", Accelerator("A100 80 GB", 312e12, 80 * GIB, 2.04e12)),
    (r"H100.*PCIe", Accelerator("H100 PCIe", 756e12, 80 * GIB, 2.0e12)),
    (r"H100.*NVL", Accelerator("H100 NVL", 835e12, 94 * GIB, 3.9e12)),
    (r"H100", Accelerator("H100", 989e12, 80 * GIB, 3.35e12)),
    (r"H200", Accelerator("H200", 989e12, 141e9, 4.8e12)),
    (r"B200", Accelerator("B200", 2250e12, 180 * GIB, 8.0e12)),
    (r"\bL4\b", Accelerator("L4", 121e12, 24 * GIB, 0.3e12)),
    (r"\bL20\b", Accelerator("L20", 119.5e12, 48 * GIB, 0.864e12)),
    (r"RTX 4090(?! D)", Accelerator("RTX 4090", 165.2e12, 24 * GIB, 1.008e12)),
    (r"RTX 3090(?! Ti)", Accelerator("RTX 3090", 71e12, 24 * GIB, 0.936e12)),
)


def accelerator(kind: str) -> Accelerator | None:
    """Returns the figures of a `device_kind`; None: the table does not have it."""
    return next((known for pattern, known in _TABLE if re.search(pattern, kind)), None)


def peak_flops(device: jax.Device) -> float | None:
    """Returns the dense bfloat16 FLOP/s of a device; None: unknown (every CPU)."""
    found = accelerator(device.device_kind)
    return None if found is None else found.flops
