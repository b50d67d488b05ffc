"""Trains the language model: `spark-jax train llm CONFIG --output RUN`."""

import sys

from spark_jax.cli.main import main

if __name__ == "__main__":
    main(["train", "llm", *sys.argv[1:]])
