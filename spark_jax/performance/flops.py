"""Floating-point operations of a train step, for model FLOPs utilization: what the mathematics asks for.

A multiplication and an addition are two operations. Only products count (matrix products, convolutions, Fourier
transforms); what rematerialization computes a second time is no work of the model.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.extend import core

from spark_jax.config import Qwen2Config

FORWARD_AND_BACKWARD = 3  # a product's gradient is two products of its size


def causal_pairs(lengths: Iterable[int]) -> int:
    """Returns the number of pairs (query, key) that causal attention computes in sequences of these lengths."""
    lengths = np.asarray(list(lengths), np.int64)
    return int(np.sum(lengths * (lengths + 1) // 2))


def llm_step_flops(config: Qwen2Config, tokens: float, targets: float, pairs: float) -> float:
    """Computes operations of the decoder's forward and backward pass; see `llm_flops`."""
    return FORWARD_AND_BACKWARD * llm_flops(config, tokens, targets, pairs)


def llm_flops(config: Qwen2Config, tokens: float, targets: float, pairs: float) -> float:
    """Computes operations of the decoder's forward pass, and of its head where logits are asked for.

    Args:
      config: the decoder's sizes; `vocab_size` is the number of the head's rows.
      tokens: of the whole batch, without padding: what is computed of it is of no use.
      targets: those of the tokens whose logits are asked for.
      pairs: (query, key) pairs of the attention, over all rows: `causal_pairs` of the sequences.
    """
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = config.hidden_size * dim * (2 * heads + 2 * kv_heads)  # queries, keys, values, output
    mlp = 3 * config.hidden_size * config.intermediate_size
    layers, head = config.num_hidden_layers * (attention + mlp), config.hidden_size * config.vocab_size
    mixing = config.num_hidden_layers * heads * dim * 2  # scores, and the mean of the values
    return 2.0 * (layers * tokens + head * targets + mixing * pairs)


def traced_flops(function: Callable[..., Any], *args: Any) -> float:
    """Counts the operations of a function in its trace; loops count as often as they run."""
    return count_flops(jax.make_jaxpr(function)(*args))


def count_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
    """Counts the operations of a traced program, over all devices.

    Raises:
      ValueError: products in a loop whose number of turns depends on data.
    """
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    total, needed = 0.0, {variable for variable in jaxpr.outvars if isinstance(variable, core.Var)}
    for equation in reversed(jaxpr.eqns):  # what nobody needs, XLA leaves out
        if equation.effects or not needed.isdisjoint(equation.outvars):
            total += _equation_flops(equation)
            needed |= {variable for variable in equation.invars if isinstance(variable, core.Var)}
    return total


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
    output = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * output * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        # A kernel's axes are (out, in of a group, window); zeros between the elements of a dilated input are no work.
        _, inputs, *window = params["dimension_numbers"].rhs_spec
        taps = math.prod(shapes[1][axis] for axis in (inputs, *window))
        return 2.0 * output * taps / math.prod(params["lhs_dilation"])
    if name == "fft":
        length = math.prod(params["fft_lengths"])
        signals = math.prod(shapes[0]) / (shapes[0][-1] if params["fft_lengths"] else 1)
        complex_input = "IRFFT" not in str(params["fft_type"]) and "RFFT" not in str(params["fft_type"])
        return 5.0 * signals * length * math.log2(length) / (1 if complex_input else 2)
    if name == "pallas_call":
        return _kernel_flops(params)
    bodies = [count_flops(body) for value in params.values() for body in _bodies(value)]
    if name == "scan":
        return params["length"] * sum(bodies)
    if name == "while" and sum(bodies):
        raise ValueError("a loop of unknown length has products in it")
    if name == "cond":
        return max(bodies)
    if name == "shard_map":
        sizes = params["mesh"].shape
        return math.prod(sizes[axis] for axis in params["newly_manual_axes"]) * sum(bodies)
    return sum(bodies)


def _kernel_flops(params: Any) -> float:
    """A Pallas kernel says what it costs; otherwise its body runs at every point of its grid."""
    estimate = params.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops)
    return math.prod(params["grid_mapping"].grid) * count_flops(params["jaxpr"])


def _bodies(value: Any) -> list[Any]:
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        return [value]
    return [body for item in value for body in _bodies(item)] if isinstance(value, (tuple, list)) else []
