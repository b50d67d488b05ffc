import corpus_sentences
import pytest


def test_wordnet_examples_are_the_quoted_parts_of_the_glosses_and_definitions_the_others(tmp_path):
    (tmp_path / "data.noun").write_text('  1 license "no"\n01 n | a bird; "birds sing"; "two birds"\n')
    (tmp_path / "data.adj").write_text('02 a | (of birds) good; having (great) merit; "a good; good bird\n')
    assert corpus_sentences.wordnet_definitions(tmp_path) == ["good", "having  merit", "a bird"]
    (tmp_path / "data.adj").write_text('02 a | good; "a good bird"\n')
    assert corpus_sentences.wordnet_sentences(tmp_path) == ["a good bird", "birds sing", "two birds"]
    with pytest.raises(corpus_sentences.CorpusError, match=r"data\.\*"):
        corpus_sentences.wordnet_sentences(tmp_path / "elsewhere")


def test_sentences_get_a_capital_and_an_end():
    assert corpus_sentences.normalize("  he ran   away ") == "He ran away."
    assert corpus_sentences.normalize("is it far?") == "Is it far?"
    assert corpus_sentences.normalize("He ran,") == "He ran."


def test_words_keep_apostrophes_and_split_hyphens():
    assert corpus_sentences.words("Don't walk part-time, 'sir'.") == ["don't", "walk", "part", "time", "sir"]


def test_selection_filters_and_removes_repeats_of_the_same_words():
    raw = [
        "a red bird sings",
        "A red bird sings.",
        "a r3d bird sings",
        "a bird",
        "a red bird sings of the wide sea",
    ]
    assert corpus_sentences.select(raw, 12, 30, 3, 1) == ["A red bird sings."]


def test_rare_words_go_until_every_word_left_is_frequent():
    raw = ["one two three", "two one", "three one two four", "five four", "five five five"]
    # Without "three one two four" neither "three" nor "four" occurs twice: one pass would not be enough.
    kept = corpus_sentences.select(raw, 1, 99, 1, 2)
    counts = {}
    for word in corpus_sentences.words(" ".join(kept)):
        counts[word] = counts.get(word, 0) + 1
    assert min(counts.values()) >= 2
    assert corpus_sentences.select(["one two", "two three", "three four four"], 1, 99, 1, 2) == []


def test_splits_depend_on_the_words_alone_and_have_the_asked_shares():
    assert corpus_sentences.split_of("He ran away.", 0.1, 0.2) == corpus_sentences.split_of("he ran, away?", 0.1, 0.2)
    splits = [corpus_sentences.split_of(f"{'a' * (i % 97)} {'b' * (i // 97)}", 0.1, 0.2) for i in range(5000)]
    assert 0.08 < splits.count("validation") / 5000 < 0.12
    assert 0.18 < splits.count("test") / 5000 < 0.22
