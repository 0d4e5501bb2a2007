"""Text that means nothing: words of no language among common English ones.

A model of persona dialogues has never seen other text. What it does with a memory while it reads some is learnt, and
measured, on this.
"""

from __future__ import annotations

import random

_SMALL = (
    "the of and to a in is you that it he was for on are with as I his they be at one have this from or had by hot "
    "but some what there we can out other were all your when up use word how said an each she which do their time if "
    "will way about many then them would write like so these her long make thing see him two has look more day could "
    "go come did my sound no most number who over know water than call first people may down side been now find"
).split()
_ONSETS = "b c d f g h j k l m n p r s t v w y th sh ch st tr br cl gr pl sp qu".split()
_VOWELS = "a e i o u ai ea ee oo ou".split()
_CODAS = ("", "", "n", "r", "s", "t", "l", "m", "d", "ck", "ng", "st", "nd", "ght", "ly", "ed", "ing", "er")


def sentences(rng: random.Random, count: int) -> str:
    """So many sentences of 3 to 9 words."""
    return " ".join(_sentence(rng) for _ in range(count))


def _sentence(rng: random.Random) -> str:
    words = [rng.choice(_SMALL) if rng.random() < 0.5 else _word(rng) for _ in range(rng.randint(3, 9))]
    words = [word + ("," if rng.random() < 0.08 else "") for word in words]
    text = " ".join(words).rstrip(",")
    return text[0].upper() + text[1:] + rng.choice("...!?")


def _word(rng: random.Random) -> str:
    if rng.random() < 0.05:
        return str(rng.randint(1, 3000))
    word = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 1, 2, 3)))
    )
    return word.capitalize() if rng.random() < 0.15 else word
