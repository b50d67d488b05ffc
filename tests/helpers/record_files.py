"""Small corpora of records, and the ways in which files go bad."""

import numpy as np

from spark_jax.data import records, token_sources


def utterances(count, seed=0, split="train"):
    """Token records of a tokenizer with 16 semantic and 8 global codes."""
    rng = np.random.default_rng(seed)
    return [
        {
            "index": f"{split}-{i}",
            "split": split,
            "text": "ab " * int(rng.integers(1, 6)) + "é",
            "gender": "female",
            "language": "en",
            "pitch": 200.0,
            "speed": 4.0,
            "voice": "x",
            "global_ids": rng.integers(0, 8, 4).tolist(),
            "semantic_ids": rng.integers(0, 16, rng.integers(3, 20)).tolist(),
        }
        for i in range(count)
    ]


def write_tokens(folder, lines, tokenizer, shards=3, split="train", **index):
    """Shards and index of token records, by the library's own writers."""
    folder.mkdir(parents=True, exist_ok=True)
    written, columns = [], {"tokens": [], "fault": []}
    for shard, part in enumerate(np.array_split(np.arange(len(lines)), shards)):
        name = records.SHARD_NAME.format(split=split, shard=shard, shards=shards)
        writer = records.ShardWriter(folder / name)
        for line in (lines[i] for i in part):
            arrays = {name: records.as_codes(line[name]) for name in ("global_ids", "semantic_ids")}
            writer.write(records.encode({k: v for k, v in line.items() if k not in arrays}, arrays))
            columns["tokens"].append(token_sources.content_tokens(tokenizer, line))
            columns["fault"].append(token_sources.FAULTS.index(token_sources.controllable_fault(line)))
        written.append(writer.close())
    fields = {"dropped": {}, "faults": token_sources.FAULTS} | index
    columns = {name: np.asarray(values) for name, values in columns.items()}
    records.write_index(folder, split, "tokens", written, columns, **fields)
    return folder


def garble(path, text):
    """Changes some bytes from where a text stands, which no size tells."""
    data = bytearray(path.read_bytes())
    at = data.index(text.encode())
    data[at : at + 5] = b"\xa5" * 5
    path.write_bytes(data)
