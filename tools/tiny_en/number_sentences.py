"""Sentences with numbers, in the words that this project puts them into: dictionaries have hardly any.

Counts, years, dates, times of day, money, percentages, decimals, ordinals, units and telephone numbers.
"""

import datetime

import numpy as np

from spark_jax.text.normalize import spoken_text

LONGEST = 70  # characters
SENTENCES = (
    "There were {count} people in the room.",
    "She sold {count} tickets in {small} days.",
    "It took {small} years to build.",
    "The road is {count} {unit} long.",
    "They counted {count} birds.",
    "He lives at number {count}.",
    "We need {small} more chairs for {small} guests.",
    "In {year} the bridge was opened.",
    "He was born in {year} and died in {year}.",
    "The war ended in {year}.",
    "The meeting is on {date}.",
    "They met on {date}.",
    "The letter is of {date}, {year}.",
    "The train leaves at {time}.",
    "Come at {time}, not at {time}.",
    "The shop closes at {time}.",
    "This book costs {money}.",
    "They paid {money} for the house.",
    "He owes me {money}.",
    "About {percent} of them agreed.",
    "Prices rose by {percent}.",
    "The value is {decimal}.",
    "It weighs {decimal} {mass}.",
    "She came {ordinal} in the race.",
    "Turn left at the {ordinal} street.",
    "It was the {ordinal} time.",
    "Call {telephone}.",
    "My number is {telephone}.",
    "Between {small} and {count}, he said.",
    "It is {small} degrees outside.",
    "The score was {small} to {small}.",
    "{small} plus {small} makes {small}.",
    "See page {count}, line {small}.",
)


def filled(sentence: str, rng: np.random.Generator) -> str:
    """Returns a sentence with values drawn for its fields, in digits."""

    def value(field: str) -> str:
        digits = int(rng.integers(2, 5))
        count = int(rng.integers(10 ** (digits - 1), 10**digits))
        small = int(rng.integers(1, 100))
        if field == "date":
            day = datetime.date(2001, 1, 1) + datetime.timedelta(days=int(rng.integers(365)))
            return f"{day:%B} {day.day}"
        return {
            "count": f"{count:,}",
            "small": str(small),
            "year": str(rng.integers(1700, 2031)),
            "time": f"{rng.integers(1, 13)}:{rng.choice([0, 5, 10, 15, 20, 30, 40, 45, 50, 55, 12, 37]):02d}",
            "money": rng.choice([f"${count:,}", f"${small}.{rng.integers(5, 100):02d}", f"£{small}", f"€{count:,}"]),
            "percent": rng.choice([f"{small}%", f"{small / 10:.1f}%"]),
            "decimal": f"{rng.uniform(0, 100):.{rng.integers(1, 3)}f}",
            "ordinal": f"{small}{_suffix(small)}",
            "telephone": "555-" + "".join(map(str, rng.integers(0, 10, 4))),
            "unit": rng.choice(["km", "m", "miles", "feet", "cm"]),
            "mass": rng.choice(["kg", "g", "tons", "pounds"]),
        }[field]

    parts = sentence.split("{")
    return parts[0] + "".join(value(field) + rest for field, rest in (part.split("}") for part in parts[1:]))


def _suffix(number: int) -> str:
    return "th" if number // 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Returns different sentences in words, of at most 70 characters."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        spoken = spoken_text(filled(str(rng.choice(SENTENCES)), rng), ("en",))
        if len(spoken) <= LONGEST:
            found.setdefault(spoken[:1].upper() + spoken[1:])
    return list(found)
