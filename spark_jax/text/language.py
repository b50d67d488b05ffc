"""Tells the language of text by its script: what the prompts, the normalizer and the splitter need to know of it."""

import re
from typing import Literal

Language = Literal["en", "zh"]

_IDEOGRAPH = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def language_of(text: str) -> Language:
    """Returns "zh" for text with any Chinese character in it, else "en"."""
    return "zh" if _IDEOGRAPH.search(text) else "en"
