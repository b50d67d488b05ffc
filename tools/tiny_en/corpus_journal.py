"""The journal of a corpus in the making: finished utterances, one a line, so that a killed run goes on."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from corpus_sentences import CorpusError, words


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is whole, or is not there."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_journal(path: Path, settings: dict, mend: bool = True) -> dict[str, dict]:
    """Returns the rows already done, by index. Other settings are a CorpusError.

    A line torn by a kill is no row; with `mend` it is cut off the file. Without, the file is only read: another process
    may be writing that line.
    """
    if not path.exists():
        write_atomically(path, json.dumps({"settings": settings}) + "\n")
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if mend and len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    header, *rows = [json.loads(line) for line in whole.splitlines()]
    for key, value in settings.items():
        if header["settings"].get(key) != value:
            raise CorpusError(
                f"{path}: made with {key}={header['settings'].get(key)!r}, now {value!r}; take another folder"
            )
    return {row["index"]: row for row in rows}


def publish(out: Path, rows: Mapping[str, dict], settings: dict) -> dict:
    """Writes metadata.jsonl, sorted by index, and summary.json of a journal's rows; returns the summary."""
    ordered = [rows[index] for index in sorted(rows)]
    kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in ordered if "dropped" not in row]
    write_atomically(out / "metadata.jsonl", "".join(kept))
    summary = summarize(ordered, settings)
    write_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def summarize(rows: list[dict], settings: dict) -> dict:
    """Returns counts, hours and vocabulary of a corpus, and what was dropped why."""
    kept = [row for row in rows if "dropped" not in row]
    return {
        "settings": settings,
        "utterances": dict(Counter(row["split"] for row in kept)),
        "hours": round(sum(row["duration"] for row in kept) / 3600, 3),
        "vocabulary": len({word for row in kept for word in words(row["text"])}),
        "words": sum(len(words(row["text"])) for row in kept),
        "dropped": dict(Counter(row["dropped"] for row in rows if "dropped" in row)),
    }
