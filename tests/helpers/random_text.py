"""Texts that nobody wrote: any character of Unicode, and those that text is made of."""

import random


def random_text(rng: random.Random, length: int) -> str:
    kinds = [
        lambda: chr(rng.randrange(0x110000)),
        lambda: chr(rng.randrange(0x3000)),
        lambda: chr(rng.randrange(0x4E00, 0x9FFF)),
        lambda: chr(rng.randrange(0x20)),
        lambda: rng.choice("abc XYZ 0123456789.,:/-$%&*_#`()[]\n\t'\">~"),
        lambda: rng.choice(
            ["word ", "Mr. ", "**", "[pause 1s]", "<b>", "</speak>", "$5", "12:30 ", "\r\n\r\n", "…", "“"]
        ),
    ]
    return "".join(rng.choice(kinds)() for _ in range(length))
