"""Turns as tokens: for each role a prefix and a suffix, derived once from the chat template.

A conversation is folded turn by turn, so a turn must mean the same tokens wherever it stands; ``template`` says
what of a template's text that leaves out. A turn's text is tokenised together with the plain text next to it, up to
the special tokens on either side, so that its tokens are those of the rendered turn: exactly, where special tokens
stand on both sides. Where a format has none there (OLMo 2's turns), the tokens are those of the turn as a text of its
own, and a tokenizer that would join the words of neighbouring turns is refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from memfold_osam.sentences import sentence_starts
from memfold_osam.template import Affixes, ChatTemplate, TurnFormatError

__all__ = ["Affixes", "Message", "TurnFormat", "TurnFormatError"]

# Ordinary words, with which the tokens of a turn are compared to those of the rendered text.
_WORDS = ("Hello there, how are you?", "yes", "In 2019 (or 2020).")
# Before a text that a tokenizer would otherwise put a space in front of, as at the beginning of everything.
_GUARD = "\n"


@dataclass(frozen=True, slots=True)
class Message:
    """One message: role (system, user, assistant or tool), text, and the speaker where several share a role."""

    role: str
    content: str
    speaker: str = ""

    @property
    def text(self) -> str:
        """What is tokenised: a named speaker's words follow the name."""
        return f"{self.speaker}: {self.content}" if self.speaker else self.content


@dataclass(frozen=True, slots=True)
class _Frame:
    """A role's affixes, cut at the special tokens nearest to the text.

    Attributes:
        head: tokens of the prefix up to and with its last special token.
        before: its plain text after that.
        after: plain text of the suffix up to its first special token.
        tail: tokens of the rest.
        strip_left: the special token before takes the white space behind it; ``strip_right`` likewise.
        guarded: plain text is tokenised as if something stood before it.
    """

    head: tuple[int, ...]
    before: str
    after: str
    tail: tuple[int, ...]
    strip_left: bool
    strip_right: bool
    guarded: bool

    def cut(self, text: str) -> tuple[str, str, str]:
        """Before, text and after, without the white space that special tokens take."""
        before, after = self.before, self.after
        if self.strip_left:
            before = before.lstrip()
            text = text if before else text.lstrip()
        if self.strip_right:
            after = after.rstrip()
            text = text if after else text.rstrip()
        return before, text, after


class TurnFormat:
    """Encodes turns for one tokenizer.

    Attributes:
        affixes: of each role.
        bos: the token that opens a block; empty where the model has none.
        generation_prompt: tokens that open the model's turn; none where the turn before it does.
        end_ids: tokens that end it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, affixes: Mapping[str, Affixes], bos: Sequence[int], opening: str
    ) -> None:
        """Prepare the frames.

        Args:
            tokenizer: of the model.
            affixes: of every role.
            bos: the token that opens a block, if any.
            opening: the text that opens the model's turn.

        Raises:
            ValueError: the tokenizer joins the words of neighbouring turns, or no token ends a reply.
        """
        self.tokenizer = tokenizer
        self.affixes = dict(affixes)
        self.bos = tuple(bos)
        self._guard = self.content(_GUARD)
        special = {t.content: t for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._frames = {role: self._joined(role, special) for role in self.affixes}
        self.generation_prompt = self._special(opening)
        # A tail begins with a special token, where the suffix has one.
        ends = (tokenizer.eos_token_id, *self._frames["assistant"].tail[:1])
        self.end_ids = frozenset(i for i in ends if i is not None)
        if not self.end_ids:
            raise ValueError("no token ends a reply")

    @classmethod
    def derive(cls, tokenizer: PreTrainedTokenizerBase) -> TurnFormat:
        """Derive the format from the tokenizer's chat template.

        Raises:
            TurnFormatError: there is no template, or its turns have no form of their own; names the model.
        """
        template = ChatTemplate(tokenizer)
        affixes = template.affixes()
        bos = [tokenizer.bos_token_id] if template.opens_with_bos(affixes) else []
        try:
            return cls(tokenizer, affixes, bos, template.generation_prompt(affixes))
        except ValueError as error:
            raise template.error(str(error)) from error

    def content(self, text: str) -> list[int]:
        """Tokens of a text by itself: what looks like a special token stays text.

        Added tokens that a tokenizer does not call special, like Qwen3's ``<think>``, are tokens here as in a template.
        """
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def encode(self, message: Message) -> list[int]:
        """A whole turn: prefix, text, suffix.

        Raises:
            KeyError: an unknown role.
        """
        frame = self._frames[message.role]
        return [*frame.head, *self._between(frame, self._text(message)), *frame.tail]

    def sentences(self, message: Message) -> list[int]:
        """The sentence of each token of ``encode``, counted from 0; -1 for those of prefix and suffix.

        A token that reaches over the end of a sentence belongs to that sentence.

        Raises:
            KeyError: an unknown role.
            NotImplementedError: the tokenizer does not tell where its tokens stand in a text.
        """
        frame = self._frames[message.role]
        before, text, after = frame.cut(self._text(message))
        begin, end = len(before), len(before + text)
        starts = sentence_starts(text)
        found = [
            bisect_right(starts, max(left, begin) - begin) if right > begin and left < end else -1
            for left, right in self._spans(frame, before + text + after)
        ]
        return [-1] * len(frame.head) + found + [-1] * len(frame.tail)

    def fingerprint_text(self) -> str:
        """What of this format decides which tokens a turn becomes."""
        return repr(
            [(role, astuple(a), astuple(self._frames[role])) for role, a in sorted(self.affixes.items())] + [self.bos]
        )

    def _text(self, message: Message) -> str:
        return message.text.strip() if self.affixes[message.role].trim else message.text

    def _special(self, text: str) -> tuple[int, ...]:
        """Tokens of the template's own text, in which special tokens are special."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def _between(self, frame: _Frame, text: str) -> list[int]:
        """Tokens between the special ones."""
        text = "".join(frame.cut(text))
        if frame.guarded and self._guards(whole := self.content(_GUARD + text)):
            return whole[len(self._guard) :]
        return self.content(text) if text else []

    def _spans(self, frame: _Frame, text: str) -> list[tuple[int, int]]:
        """Where the tokens of ``_between`` stand in its text."""
        if frame.guarded and self._guards(self.content(_GUARD + text)):
            spans = self._offsets(_GUARD + text)[len(self._guard) :]
            return [(max(0, left - len(_GUARD)), max(0, right - len(_GUARD))) for left, right in spans]
        return self._offsets(text) if text else []

    def _guards(self, tokens: list[int]) -> bool:
        """Whether the guard stayed apart from the text behind it."""
        return tokens[: len(self._guard)] == self._guard

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        return [(left, right) for left, right in self.tokenizer(text, **options)["offset_mapping"]]

    def _joined(self, role: str, special: Mapping[str, Any]) -> _Frame:
        """A role's frame, with which turns of ordinary words become the tokens of the rendered text.

        Raises:
            ValueError: there is none.
        """
        affixes = self.affixes[role]
        last, first = _last(affixes.prefix, special), _first(affixes.suffix, special)
        opener, closer = affixes.prefix[:last], affixes.suffix[first:]
        strip_left = any(opener.endswith(text) and token.rstrip for text, token in special.items())
        strip_right = any(closer.startswith(text) and token.lstrip for text, token in special.items())
        for guarded in (False, True):
            frame = _Frame(
                self._special(opener),
                affixes.prefix[last:],
                affixes.suffix[:first],
                self._special(closer),
                strip_left,
                strip_right,
                guarded,
            )
            if all(self._agrees(role, frame, words) for words in _WORDS):
                return frame
        raise ValueError(f"the tokenizer joins a {role}'s turn with the one before it")

    def _agrees(self, role: str, frame: _Frame, words: str) -> bool:
        """Whether a turn has the tokens that it has in a rendered conversation, behind another one."""
        before = self.affixes["user" if role == "assistant" else "assistant"].around("All right.")
        start = self._special(before)
        whole = self._special(before + self.affixes[role].around(words))
        return whole == (*start, *frame.head, *self._between(frame, words), *frame.tail)


def _last(text: str, marks: Iterable[str]) -> int:
    """Where the last of the marks ends in a text; 0 where there is none."""
    return max((text.rfind(mark) + len(mark) for mark in marks if mark in text), default=0)


def _first(text: str, marks: Iterable[str]) -> int:
    """Where the first of the marks begins in a text; its end where there is none."""
    return min((text.find(mark) for mark in marks if mark in text), default=len(text))
