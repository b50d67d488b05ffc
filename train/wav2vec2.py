"""Trains the recognizer whose encoder is the feature extractor: `spark-jax train ctc CONFIG --output RUN`."""

import sys

from spark_jax.cli.main import main

if __name__ == "__main__":
    main(["train", "ctc", *sys.argv[1:]])
