"""Pairs of utterances: of one voice and split, in the form of a prompt with a transcript and its answer."""

import json

import join_utterances
import numpy as np
import typer
from typer.testing import CliRunner

from spark_jax.data import token_sources
from spark_jax.text.prompt import cloning_prompt, tts_sequence
from spark_jax.text.tokenizer import build_tokenizer

RNG = np.random.default_rng(0)


def record(index, voice="ada", split="train", text=None):
    number = int(index)
    ids = {"global_ids": [number, 1], "semantic_ids": [number, 2, 3]}
    return {"index": index, "voice": voice, "split": split, "text": text or f"Text {index}.", "pitch": 100.0, **ids}


def test_pairs_are_of_one_voice_and_split():
    records = [record(str(number), "adam" if number % 2 else "ada") for number in range(10)]
    records += [record("10", "ada", "test"), record("11", "alone")]
    pairs = join_utterances.joined(records)
    assert len(pairs) == 10 and len({pair["index"] for pair in pairs}) == 10
    for pair in pairs:
        first, second = (int(index) for index in pair["index"].split("+"))
        assert first != second and first % 2 == second % 2 and max(first, second) < 10
        assert pair["text"] == f"Text {first}.Text {second}." and pair["global_ids"] == [first, 1]
        assert pair["semantic_ids"] == [first, 2, 3, second, 2, 3]
        assert token_sources.controllable_fault(pair) and not token_sources.fragments(pair, 3, 50.0, RNG)


def test_takes_of_a_sentence_are_no_pair():
    assert join_utterances.joined([record("0", text="Same."), record("1", text="Same.")]) == []


def test_a_pair_is_what_a_prompt_with_a_transcript_asks_for():
    tokenizer = build_tokenizer("bytes", 16, 16)
    first, second = record("4"), record("5")
    (pair, _) = join_utterances.joined([first, second])
    whole = tts_sequence(tokenizer, pair["text"], pair["global_ids"], pair["semantic_ids"]).ids
    texts = pair["text"].split(".")
    own = [first, second] if pair["global_ids"][0] == 4 else [second, first]
    asked = cloning_prompt(tokenizer, f"{texts[1]}.", own[0]["global_ids"], f"{texts[0]}.", own[0]["semantic_ids"])
    assert whole[: len(asked.ids)].tolist() == list(asked.ids)


def test_command(tmp_path):
    app = typer.Typer()
    app.command()(join_utterances.main)
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps(record(index)) + "\n" for index in "123"))
    done = CliRunner().invoke(app, [str(tmp_path / "tokens.jsonl"), str(tmp_path / "joined.jsonl")])
    assert done.exit_code == 0 and "3 pairs" in done.output
    missing = CliRunner().invoke(app, [str(tmp_path / "none.jsonl"), str(tmp_path / "joined.jsonl")])
    assert missing.exit_code == 2 and "none.jsonl" in missing.output
