"""Stands for spark_jax/training/codec/run.py."""

from spark_jax.training.codec.run import *

if __name__ == "__main__":
    import runpy

    runpy.run_module("spark_jax.training.codec.run", run_name="__main__")
