"""The grammar of completions: which tokens may follow a prompt, as tables on the device (paper §3.2)."""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from spark_jax.errors import SparkError
from spark_jax.text.prompt import END
from spark_jax.text.tokenizer import SparkTokenizer


@flax.struct.dataclass
class Grammar:
    """Tokens that each stage of a completion allows, as arrays for use inside a compiled loop.

    `stages` names the stages in their order; a generation is at one of them, by index. It starts at
    `grammar.index(prompt.start)` and ends at `grammar.index("done")`, where only <|im_end|> is allowed.
    """

    allowed: Bool[Array, "masks vocab"]
    mask_of_stage: Int[Array, " stages"]
    end_id: Int[Array, ""]
    stages: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def index(self, stage: str) -> int:
        """Returns the index of the first stage with this name."""
        return self.stages.index(stage)

    def mask(self, stage: Int[Array, " batch"]) -> Bool[Array, "batch vocab"]:
        """Returns True for the tokens that each item may take next."""
        return self.allowed[self.mask_of_stage[stage]]

    def advance(self, stage: Int[Array, " batch"], token: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """Returns the stage after a token: the next one, except that "semantic" lasts until <|im_end|>."""
        stays = (stage == self.index("semantic")) & (token != self.end_id)
        return jnp.where(stays, stage, jnp.minimum(stage + 1, len(self.stages) - 1))


def build_grammar(tokenizer: SparkTokenizer, global_tokens: int = 32, vocab_size: int | None = None) -> Grammar:
    """Makes the grammar of a tokenizer.

    Args:
      tokenizer: the tokenizer, which has all Spark tokens.
      global_tokens: number of global tokens of an utterance (`SpeakerEncoderConfig.token_num`).
      vocab_size: number of the model's logits, which is at least the tokenizer's number of tokens, the default.

    Raises:
      SparkError: the model has fewer logits than the tokenizer has tokens.
    """
    vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
    if vocab_size < tokenizer.vocab_size:
        needed = tokenizer.vocab_size
        raise SparkError(f"vocab_size of the model is {vocab_size}, expected {needed} tokens or more")
    end_id = tokenizer.id(END)
    allowed = {
        f"{edge}_{section}": [tokenizer.id(f"<|{edge}_{section}_token|>")]
        for section in ("acoustic", "global", "semantic")
        for edge in ("start", "end")
    }
    allowed |= {
        "pitch": tokenizer.pitch_value_ids,
        "speed": tokenizer.speed_value_ids,
        "global": tokenizer.global_ids,
        "first_semantic": tokenizer.semantic_ids,  # at least one token of speech
        "semantic": np.append(tokenizer.semantic_ids, end_id),
        "done": [end_id],
    }
    stages = (
        *("start_acoustic", "pitch", "speed", "end_acoustic"),
        *("start_global", *("global",) * global_tokens, "end_global"),
        *("start_semantic", "first_semantic", "semantic", "done"),
    )
    kinds = sorted(set(stages))
    masks = np.zeros((len(kinds), vocab_size), bool)
    for row, kind in enumerate(kinds):
        masks[row, allowed[kind]] = True
    rows = np.array([kinds.index(stage) for stage in stages], np.int32)
    return Grammar(jnp.asarray(masks), jnp.asarray(rows), jnp.int32(end_id), stages)


def restrict(grammar: Grammar, multiple: int = 128) -> tuple[Int[np.ndarray, " rows"], Grammar]:
    """Returns the ids that a grammar can ever allow, ascending, and the same grammar over their indices.

    A head of these rows alone gives the same choices: ties are decided by the order of ids, which stays.

    Args:
      grammar: over the whole vocabulary.
      multiple: the number of rows is filled up to a multiple of this with id 0, which at these places is never allowed.
    """
    allowed = np.asarray(grammar.allowed)
    ids = np.flatnonzero(allowed.any(axis=0)).astype(np.int32)
    padding = -len(ids) % multiple
    masks = np.pad(allowed[:, ids], ((0, 0), (0, padding)))
    end = np.searchsorted(ids, int(grammar.end_id))
    return np.pad(ids, (0, padding)), grammar.replace(allowed=jnp.asarray(masks), end_id=jnp.int32(end))
