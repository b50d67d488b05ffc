"""Trains the codec: `spark-jax train codec CONFIG --output RUN`."""

import sys

from spark_jax.cli.main import main

if __name__ == "__main__":
    main(["train", "codec", *sys.argv[1:]])
