"""From tokens to text as it streams: whole characters, and never a piece of a stop text."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what decoders put where bytes are no character, or not yet one
_UNSETTLED = 3  # an unfinished character is at most three bytes, each of which may show as one replacement
_CONTEXT_TOKENS = 8
_LONGEST_RUN = 64


class Detokenizer:
    """Turns one sequence's tokens into text, holding back a character until all of its bytes are there.

    Special tokens have no text. A character that is never finished is dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._tokens: list[int] = []  # since the last border between characters, after a few tokens of context
        self._sent = 0  # characters of these tokens' text that have left

    def push(self, token: int) -> str:
        """Take one token, give the characters that it completes."""
        if token in self._special:
            return ""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        settled = len(text) - _trailing_replacements(text)
        new = text[self._sent : settled]
        self._sent = max(self._sent, settled)
        if settled == len(text) or len(self._tokens) > _LONGEST_RUN:
            self._forget(len(text) - settled)
        return new

    def text_of(self, token: int) -> str:
        """A token's own text, special ones included; a replacement character where it is only part of a character."""
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def _forget(self, unsettled: int) -> None:
        # Context is kept because some tokenizers spell a token differently at the start of a text.
        if len(self._tokens) > _CONTEXT_TOKENS:
            self._tokens = self._tokens[-_CONTEXT_TOKENS:]
            self._sent = len(self._decode(self._tokens)) - unsettled

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _trailing_replacements(text: str) -> int:
    return min(_UNSETTLED, len(text) - len(text.rstrip(REPLACEMENT)))


class StopScanner:
    """Passes text on up to the first stop text; what may become one is held back until it is clear."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take a piece of text, give what can leave now. Sets ``stopped`` where a stop text came up."""
        assert not self.stopped
        if not self._stops:
            return text
        self._held += text
        end = self._first_stop()
        if end is not None:
            self.stopped = True
            return self._release(end)
        return self._release(len(self._held) - self._longest_beginning())

    def flush(self) -> str:
        """The text that was held back, once no more follows."""
        return "" if self.stopped else self._release(len(self._held))

    def _first_stop(self) -> int | None:
        # The one that is complete first, so that how the text was cut into pieces does not matter.
        found = ((self._held.find(stop), len(stop)) for stop in self._stops)
        complete = [(at + length, at) for at, length in found if at >= 0]
        return min(complete)[1] if complete else None

    def _longest_beginning(self) -> int:
        return max((_overlap(self._held, stop) for stop in self._stops), default=0)

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
