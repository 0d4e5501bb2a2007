"""How far an answer in words agrees with a reference: token F1, as LoCoMo's authors count it.

Commas go first, then Unicode is decomposed (NFD), letters become small, ASCII punctuation and the words a, an,
the, and go, and what is left is stemmed by Porter's algorithm.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from functools import lru_cache

from nltk.stem import PorterStemmer

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SMALL_WORDS = re.compile(r"\b(a|an|the|and)\b")
_stem = lru_cache(maxsize=65_536)(PorterStemmer().stem)


def tokens(text: str) -> list[str]:
    """The stems of a text, in order."""
    decomposed = unicodedata.normalize("NFD", text.replace(",", ""))
    words = _SMALL_WORDS.sub(" ", decomposed.lower().translate(_PUNCTUATION)).split()
    return [_stem(word) for word in words]


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the tokens that both have, each as often as both have it; 0 to 1."""
    given, wanted = tokens(answer), tokens(reference)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


def parts_f1(answer: str, reference: str) -> float:
    """For a reference of several parts: the mean, over its parts, of the best F1 of any part of the answer.

    Parts are what stands between commas.
    """
    given = answer.split(",")
    wanted = reference.split(",")
    return sum(max(token_f1(part, one) for part in given) for one in wanted) / len(wanted)
