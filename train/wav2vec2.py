"""Stands for spark_jax/training/ctc/run.py."""

from spark_jax.training.ctc.run import *

if __name__ == "__main__":
    import runpy

    runpy.run_module("spark_jax.training.ctc.run", run_name="__main__")
