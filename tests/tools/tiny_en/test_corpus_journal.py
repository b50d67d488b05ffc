import json

import pytest
from corpus_journal import read_journal
from corpus_sentences import CorpusError


def test_a_torn_journal_line_is_cut_off_and_other_settings_are_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_journal(path, {"voice": "heart"}) == {}
    whole = path.read_text() + json.dumps({"index": "heart-000000"}) + "\n"
    path.write_text(torn := whole + '{"index": "heart-0000')
    assert list(read_journal(path, {"voice": "heart"}, mend=False)) == ["heart-000000"]
    assert path.read_text() == torn
    assert list(read_journal(path, {"voice": "heart"})) == ["heart-000000"]
    assert path.read_text() == whole
    with pytest.raises(CorpusError, match="voice='heart', now 'joe'"):
        read_journal(path, {"voice": "joe"})
