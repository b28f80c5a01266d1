"""Words that mean nothing, exactly as many as asked for: the text of a modelled answer.

Every word has three letters and a space, so that one word is one token of `BYTES_PER_TOKEN` bytes. It refuses to know
what a prompt says: it knows a seed.
"""

from __future__ import annotations

from random import Random

BYTES_PER_TOKEN = 4
_THREE_LETTERS = """
the and for are but not you all any can had her was one our out day get has him his how man new now old see
two way who boy did its let put say she too use act add age ago aid air arm art ask bad bag ban bar bed bet
big bit box bus buy cut dry due ear eat egg end eye far few fit fix fly fun gap gas guy hat hit hot ice job
key kid lab law lay leg lie log lot low map may mix net nor odd off oil own pay per pot raw red rid row run
sea set sit six sky son sum sun tax tea ten tie tip top try via war web wet win yes yet
"""
_WORDS = tuple(f"{word} " for word in _THREE_LETTERS.split())


def filler(seed: int, num_tokens: int) -> str:
    """`num_tokens` words of 4 ASCII characters; more words with the same seed begin with the same words. O(tokens)."""
    return "".join(Random(seed).choices(_WORDS, k=num_tokens))
