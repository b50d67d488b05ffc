"""Lines of a batch: what is a job, what is told of others, the seed and the name of the file."""

import json
import string

import numpy as np
import pytest

from spark_jax.jobs.lines import BadJobError, Job, file_stem, read_id, read_job, seed_of


def read(tmp_path, **record):
    return read_job(json.dumps(record).encode(), 7, tmp_path)


def test_a_job(tmp_path):
    job = read(tmp_path, id="a", text="Hello.", gender="male", seed=3, top_k=5, voice=None)
    assert job == Job(7, "a", job.request)
    assert (job.request.text, job.request.gender, job.request.seed, job.request.top_k) == ("Hello.", "male", 3, 5)


def test_numbers_are_ids_and_blank_lines_are_no_jobs(tmp_path):
    assert read(tmp_path, id=12, text="Hello.").id == "12"
    assert read_job(b" \r\n", 1, tmp_path) is None
    assert read_job(b'\xef\xbb\xbf{"id": "a", "text": "b"}', 1, tmp_path).id == "a"
    assert read_id(b'{"id": 12}') == "12" and read_id(b"{") is None and read_id(b"\n") is None


def test_paths_begin_at_the_input(tmp_path):
    assert read(tmp_path, id="a", text="Hi.", reference="x.wav").request.reference == str(tmp_path / "x.wav")
    assert read(tmp_path, id="a", text="Hi.", voice="/v.json").request.voice == "/v.json"


def test_the_seed_is_of_the_id(tmp_path):
    """Documented, so that others can compute it; another rule would change the sound of every job."""
    assert seed_of("greeting-1") == 0x69DCB532
    assert read(tmp_path, id="greeting-1", text="Hi.", seed=None).request.seed == seed_of("greeting-1")
    assert len({seed_of(str(number)) for number in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("line", "message", "id"),
    [
        (b"{", "not a JSON object (", None),
        (b'{"id": "a", "text": "\xff"}', "not UTF-8 text (byte 21 is 0xff)", None),
        (b"[1]", "not a JSON object, but a list", None),
        (b"[" * 100_000, "not a JSON object (", None),
        (b'{"text": "b"}', "id is missing", None),
        (b'{"id": "", "text": "b"}', "id is '', expected a text or a whole number", None),
        (b'{"id": true, "text": "b"}', "id is True, expected", None),
        (b'{"id": "\\ud800", "text": "b"}', "expected Unicode text", None),
        (b'{"id": "a"}', "text is missing", "a"),
        (b'{"id": "a", "text": "..."}', "no letter or number is in it", "a"),
        (b'{"id": "a", "text": 5}', "text is 5, expected a text", "a"),
        (b'{"id": "a", "text": "b", "sped": 1}', "unknown key 'sped', expected id, text, voice", "a"),
        (b'{"id": "a", "text": "b", "gender": ["x"]}', 'gender is ["x"], expected a text', "a"),
        (b'{"id": "a", "text": "b", "temperature": NaN}', "temperature is nan, expected", "a"),
        (b'{"id": "a", "text": "b", "seed": -1}', "seed is -1, expected a whole number from 0", "a"),
        (b'{"id": "a", "text": "b", "voice": 5}', "voice is 5, expected a text", "a"),
        (b'{"id": "a", "text": "b", "voice": ""}', "voice is '', expected the path of a file", "a"),
        (b'{"id": "a", "text": "b", "greedy": 1}', "greedy is 1, expected true or false", "a"),
        (b'{"id": "a", "text": "b", "top_p": "1"}', 'top_p is "1", expected a number', "a"),
        (b'{"id": "a", "text": "b", "top_k": 1.5}', "top_k is 1.5, expected a whole number", "a"),
        (b'{"id": "a", "text": null}', "text is null, expected a text", "a"),
        (b'{"id": "a", "text": "b", "transcript": "c"}', "transcript needs a reference", "a"),
    ],
)
def test_what_is_no_job_is_told(tmp_path, line, message, id):
    with pytest.raises(BadJobError) as error:
        read_job(line, 1, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert error.value.id == id


def test_names_of_files():
    assert file_stem("greeting-1_b.2") == "greeting-1_b.2"
    assert file_stem("größe") == "größe"
    ids = ["a/b", "a_b", "a\\b", "../a", ".a", "a.", "a b", "con", "CON.x", "", " ", "x" * 101, "x" * 102, "\0", "-o"]
    stems = [file_stem(id) for id in ids]
    assert len(set(stems)) == len(ids)
    assert stems[0] == "a_b-c14cddc033f6" and file_stem("a_b") == "a_b"
    for stem in stems:
        assert stem and not stem.startswith((".", "-")) and "/" not in stem and len(stem.encode()) < 230
    assert file_stem("日本" * 60) != file_stem("日本" * 61) and len(file_stem("日本" * 60).encode()) < 230


def test_names_of_random_ids():
    rng = np.random.default_rng(0)
    letters = np.array([*string.printable, "é", "e\u0301", "日", "\u202e", "\U0001f600"])
    ids = {"".join(rng.choice(letters, rng.integers(1, 12))) for _ in range(2000)}
    stems = [file_stem(id) for id in ids]
    assert len(set(stems)) == len(ids)
    assert not any(set(stem) & set('/\\:*?"<>|\0\n\u202e') for stem in stems)
