"""Sentences for the language model alone: definitions of frequent words, and numbers in words."""

import more_sentences
import number_sentences
import typer
from typer.testing import CliRunner

APP = typer.Typer()
APP.command()(more_sentences.main)


def test_numbers_are_in_words_and_none_is_said_twice():
    found = number_sentences.sentences(200)
    assert len(set(found)) == 200 and found == number_sentences.sentences(200)
    assert not any(character.isdigit() or character in "%$:{" for sentence in found for character in sentence)
    assert max(map(len, found)) <= 70 and all(sentence[0].isupper() for sentence in found)
    for word in ("nineteen", "point", "percent", "hundred", "thousand", "dollars", "January"):
        assert any(word in sentence for sentence in found), word


def test_definitions_of_frequent_words_are_taken(tmp_path):
    kinds = ("old", "new", "big", "red", "far")
    glosses = [f"a {a} {b} bird; a rare kind; {a}" for a in kinds for b in kinds]
    (tmp_path / "data.noun").write_text("".join(f'1 n | {gloss}; "a red bird sings"\n' for gloss in glosses))
    options = ["--wordnet", str(tmp_path), "--numbers", "2", "--definitions", "24"]
    assert CliRunner().invoke(APP, [str(tmp_path / "more.txt"), *options]).exit_code == 0
    written = (tmp_path / "more.txt").read_text().splitlines()
    assert len(set(written)) == 26 and all(sentence.endswith("bird.") for sentence in written[:24])


def test_without_wordnet_the_package_is_named(tmp_path):
    done = CliRunner().invoke(APP, [str(tmp_path / "more.txt"), "--wordnet", str(tmp_path)])
    assert done.exit_code == 2 and "apt install wordnet-base" in done.output
