"""Eight CPU devices for every test, so that sharded paths are tested as sharded."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
