import sys

import pytest
from corpus_sentences import CorpusError
from corpus_voices import open_voice


def test_a_missing_engine_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(CorpusError, match="pip install hibari-tts"):
        open_voice("heart")
