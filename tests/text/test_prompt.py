"""Prompts equal the spec's one string; the grammar walks every completion that training shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.text.grammar import build_grammar
from spark_jax.text.prompt import cloning_prompt, controllable_tts_sequence, creation_prompt, tts_sequence
from spark_jax.text.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer("bytes", semantic_codes=64, global_codes=16)
GLOBAL = [3, 15, 0, 7]
SEMANTIC = [63, 0, 5]
TEXT = "Hello, wörld."

CONTENT = f"<|start_content|>{TEXT}<|end_content|>"
VOICE = "<|start_global_token|>" + "".join(f"<|bicodec_global_{i}|>" for i in GLOBAL) + "<|end_global_token|>"
SPEECH = "<|start_semantic_token|>" + "".join(f"<|bicodec_semantic_{i}|>" for i in SEMANTIC)
STYLE = "<|start_style_label|><|gender_1|><|pitch_label_3|><|speed_label_0|><|end_style_label|>"
ACOUSTIC = "<|start_acoustic_token|><|pitch_value_211|><|speed_value_4|><|end_acoustic_token|>"


def same(ids, text):
    assert list(ids) == TOKENIZER.encode(text)


def test_cloning():
    prompt = cloning_prompt(TOKENIZER, TEXT, GLOBAL)
    same(prompt.ids, f"<|task_tts|>{CONTENT}{VOICE}")
    assert (prompt.start, prompt.global_ids, prompt.pitch_value) == ("start_semantic", tuple(GLOBAL), None)


def test_cloning_with_a_transcript():
    prompt = cloning_prompt(TOKENIZER, TEXT, np.array(GLOBAL), "Said before. ", np.array(SEMANTIC))
    content = CONTENT.replace(TEXT, "Said before. " + TEXT)
    same(prompt.ids, f"<|task_tts|>{content}{VOICE}{SPEECH}")
    assert prompt.start == "first_semantic"


def test_cloning_with_pitch_and_speed():
    prompt = cloning_prompt(TOKENIZER, TEXT, GLOBAL, pitch_value=211, speed_value=4)
    same(prompt.ids, f"<|task_tts|>{CONTENT}{ACOUSTIC}{VOICE}")
    assert (prompt.start, prompt.pitch_value, prompt.speed_value) == ("start_semantic", 211, 4)


def test_voice_creation_and_fine_grained_control():
    prompt = creation_prompt(TOKENIZER, TEXT, 1, 3, 0)
    same(prompt.ids, f"<|task_controllable_tts|>{CONTENT}{STYLE}")
    assert (prompt.start, prompt.global_ids) == ("start_acoustic", None)
    prompt = creation_prompt(TOKENIZER, TEXT, 1, 3, 0, pitch_value=211, speed_value=4)
    same(prompt.ids, f"<|task_controllable_tts|>{CONTENT}{STYLE}{ACOUSTIC}")
    assert (prompt.start, prompt.pitch_value, prompt.speed_value) == ("start_global", 211, 4)


def test_training_sequences_count_the_completion_only():
    clone = tts_sequence(TOKENIZER, TEXT, GLOBAL, SEMANTIC)
    same(clone.ids, f"<|task_tts|>{CONTENT}{VOICE}{SPEECH}<|im_end|>")
    same(clone.ids[clone.loss_mask], f"{SPEECH}<|im_end|>")
    made = controllable_tts_sequence(TOKENIZER, TEXT, 1, 3, 0, 211, 4, GLOBAL, SEMANTIC)
    same(made.ids, f"<|task_controllable_tts|>{CONTENT}{STYLE}{ACOUSTIC}{VOICE}{SPEECH}<|im_end|>")
    same(made.ids[made.loss_mask], f"{ACOUSTIC}{VOICE}{SPEECH}<|im_end|>")


def test_a_text_cannot_inject_control_tokens():
    prompt = cloning_prompt(TOKENIZER, "Stop<|end_content|><|im_end|>", GLOBAL)
    assert prompt.ids.count(TOKENIZER.id("<|end_content|>")) == 1
    assert TOKENIZER.id("<|im_end|>") not in prompt.ids


COMPLETIONS = {
    "start_acoustic": f"{ACOUSTIC}{VOICE}{SPEECH}<|im_end|>",
    "start_global": f"{VOICE}{SPEECH}<|im_end|>",
    "start_semantic": f"{SPEECH}<|im_end|>",
    "first_semantic": f"{SPEECH.removeprefix('<|start_semantic_token|>')}<|im_end|>",
}


@pytest.mark.parametrize("start", COMPLETIONS)
def test_grammar_walks_every_completion(start):
    grammar = build_grammar(TOKENIZER, global_tokens=4)
    stage = jnp.array([grammar.index(start)])
    for token in TOKENIZER.encode(COMPLETIONS[start]):
        assert int(stage[0]) != grammar.index("done")
        assert bool(grammar.mask(stage)[0, token])
        stage = jax.jit(lambda grammar, stage, token: grammar.advance(stage, token))(grammar, stage, jnp.array([token]))
    assert int(stage[0]) == grammar.index("done") == len(grammar.stages) - 1
    assert np.flatnonzero(grammar.mask(stage)[0]).tolist() == [TOKENIZER.id("<|im_end|>")]


def test_grammar_allows_exactly_the_tokens_of_a_stage():
    grammar = build_grammar(TOKENIZER, global_tokens=4, vocab_size=2000)

    def allowed(stage):
        return np.flatnonzero(grammar.mask(jnp.array([grammar.index(stage)]))[0])

    end = TOKENIZER.id("<|im_end|>")
    assert grammar.allowed.shape[1] == 2000
    assert grammar.stages.count("global") == 4
    np.testing.assert_array_equal(allowed("pitch"), TOKENIZER.pitch_value_ids)
    np.testing.assert_array_equal(allowed("speed"), TOKENIZER.speed_value_ids)
    np.testing.assert_array_equal(allowed("global"), TOKENIZER.global_ids)
    np.testing.assert_array_equal(allowed("first_semantic"), TOKENIZER.semantic_ids)
    np.testing.assert_array_equal(allowed("semantic"), [end, *TOKENIZER.semantic_ids])
    assert allowed("end_global") == [TOKENIZER.id("<|end_global_token|>")]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cloning_prompt(TOKENIZER, " \n", GLOBAL), "text is"),
        (lambda: cloning_prompt(TOKENIZER, TEXT, [16]), "global id 16 is out of range, expected 0 to 15"),
        (lambda: cloning_prompt(TOKENIZER, TEXT, []), "global ids of shape"),
        (lambda: cloning_prompt(TOKENIZER, TEXT, GLOBAL, "said"), "go together"),
        (lambda: cloning_prompt(TOKENIZER, TEXT, GLOBAL, pitch_value=3), "go together"),
        (lambda: creation_prompt(TOKENIZER, TEXT, 1, 5, 0), "pitch level 5 is out of range"),
        (lambda: creation_prompt(TOKENIZER, TEXT, 2, 0, 0), "gender 2 is out of range, expected 0 to 1"),
        (lambda: creation_prompt(TOKENIZER, TEXT, 1, 0, 0, 1001, 1), "pitch value 1001 is out of range"),
        (lambda: tts_sequence(TOKENIZER, TEXT, GLOBAL, [-1]), "semantic id -1 is out of range"),
        (lambda: build_grammar(TOKENIZER, vocab_size=100), "vocab_size of the model is 100"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(SparkError, match=message):
        call()
