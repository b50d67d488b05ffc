"""Devices to compile for: TPU topologies that are elsewhere, and CPU devices that are here."""

import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from spark_jax.errors import SparkError, one_line


def topology(name: str) -> list[Any]:
    """Returns devices that can be compiled for and nothing else.

    Args:
      name: a TPU and its chips, such as v5e:4x4.

    Raises:
      SparkError: no TPU compiler is installed, or it does not know the topology.
    """
    if not re.fullmatch(r"[a-z]+\d+\w*:\d+(x\d+)+", name):
        raise SparkError(f"--topology {name}: expected a TPU and its chips, such as v5e:4x4 or v5p:4x4x8")
    # The compiler looks for the TPU it would run on, and for others who use it; any answer will do.
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    if jax.config.jax_platforms != "cpu":
        jax.config.update("jax_platforms", "cpu")
    # The two cores of these chips are one device, as they are to JAX on the machines; to the compiler they can be two.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    bounds = [int(size) for size in name.partition(":")[2].split("x")]
    if math.prod(bounds) < 4:  # a part of a host, which has four chips
        options["chips_per_host_bounds"] = [*bounds, 1, 1][:3]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # several kinds, by what is missing
        reason = one_line(error)
        if "not installed" in reason or "libtpu.so" in reason:
            raise SparkError('the TPU compiler is missing: pip install "spark-jax[plan]"') from error
        raise SparkError(f"--topology {name}: {reason[:300]}") from error


def cpu(count: int) -> list[Any]:
    """Returns so many CPU devices, which a process makes before it first uses JAX.

    Raises:
      SparkError: there are not so many.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # there are devices already
    if not 0 < count <= len(jax.devices()):
        raise SparkError(f"--cpu-devices {count}: expected 1 to {len(jax.devices())}")
    return jax.devices()[:count]
