"""Turns as tokens: for each role a prefix and a suffix, derived once from the chat template.

A conversation is folded turn by turn, so a turn must mean the same tokens wherever it stands. Templates
do not promise that: some put a default system block or a date in front, or an empty think block into
the last reply. The derived format leaves those out, and a template from which none can be derived is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")
# Texts that no template holds; letters only, so that no template trims or escapes them.
_SENTINELS = tuple(f"MEMFOLD{letter * 4}SENTINEL" for letter in "ABCDEF")


class TurnFormatError(ValueError):
    """No turn format can be derived from a chat template."""


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
class Affixes:
    """The text around a role's content."""

    prefix: str
    suffix: str


class TurnFormat:
    """Encodes turns for one tokenizer.

    Attributes:
        affixes: of each role.
        bos: the token that opens a block; empty where the model has none.
        generation_prompt: tokens that open the model's turn.
        end_ids: tokens that end it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, affixes: Mapping[str, Affixes], bos: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.affixes = dict(affixes)
        self.bos = tuple(bos)
        self._prefix = {role: self._special(a.prefix) for role, a in self.affixes.items()}
        self._suffix = {role: self._special(a.suffix) for role, a in self.affixes.items()}
        self.generation_prompt = self._prefix["assistant"]
        ends = {i for i in (tokenizer.eos_token_id,) if i is not None}
        suffix = self._suffix["assistant"]
        if suffix and suffix[0] in tokenizer.all_special_ids:
            ends.add(suffix[0])
        self.end_ids = frozenset(ends)

    @classmethod
    def derive(cls, tokenizer: PreTrainedTokenizerBase) -> TurnFormat:
        """Derive the format from the tokenizer's chat template.

        Raises:
            TurnFormatError: there is no template, or its turns depend on their place; names the model.
        """
        affixes = _derive(tokenizer)
        bos_id = tokenizer.bos_token_id
        opens = bos_id is not None and tokenizer("a")["input_ids"][:1] == [bos_id]
        rendered = _render(tokenizer, [{"role": "user", "content": _SENTINELS[0]}])
        opens = opens or (bos_id is not None and rendered.startswith(str(tokenizer.bos_token)))
        return cls(tokenizer, affixes, [bos_id] if opens else [])

    def _special(self, text: str) -> tuple[int, ...]:
        """Tokens of the template's own text, in which special tokens are special."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def content(self, text: str) -> list[int]:
        """Tokens of a user's text: what looks like a special token stays text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def encode(self, message: Message) -> list[int]:
        """A whole turn: prefix, content, suffix.

        Raises:
            KeyError: an unknown role.
        """
        return [*self._prefix[message.role], *self.content(message.text), *self._suffix[message.role]]

    def fingerprint_text(self) -> str:
        """What of this format decides which tokens a turn becomes."""
        return repr([(r, a.prefix, a.suffix) for r, a in sorted(self.affixes.items())] + [self.bos])


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _derive(tokenizer: PreTrainedTokenizerBase) -> dict[str, Affixes]:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.chat_template:
        raise TurnFormatError(f"{name} has no chat template")
    a, b, c, d, e = _SENTINELS[:5]
    talk = [
        {"role": "user", "content": a},
        {"role": "assistant", "content": b},
        {"role": "user", "content": c},
        {"role": "assistant", "content": d},
        {"role": "user", "content": e},
    ]
    text = _render(tokenizer, talk)
    pieces = _split(text, (a, b, c, d, e))
    if pieces is None:
        raise TurnFormatError(f"the template of {name} changes or drops the text of a turn")
    head, to_assistant, to_user, to_assistant_again, to_user_again, user_suffix = pieces
    if (to_assistant, to_user) != (to_assistant_again, to_user_again):
        raise TurnFormatError(f"the template of {name} writes a turn differently at different places")
    assistant_suffix = _render(tokenizer, talk[:2]).partition(b)[2]
    if not (to_assistant.startswith(user_suffix) and to_user.startswith(assistant_suffix)):
        raise TurnFormatError(f"the template of {name} ends a last turn otherwise than one in between")
    user = Affixes(to_user.removeprefix(assistant_suffix), user_suffix)
    assistant = Affixes(to_assistant.removeprefix(user_suffix), assistant_suffix)
    if not user.prefix or not assistant.prefix:
        raise TurnFormatError(f"the template of {name} does not mark who speaks")
    if not head.endswith(user.prefix):
        raise TurnFormatError(f"the template of {name} opens a first turn otherwise than a later one")
    affixes = {"user": user, "assistant": assistant}
    for role in ("system", "tool"):
        affixes[role] = _extra_role(tokenizer, role, user) or user
    return affixes


def _extra_role(tokenizer: PreTrainedTokenizerBase, role: str, user: Affixes) -> Affixes | None:
    """The affixes of a role that not every template knows; None where it has no form of its own."""
    a, b = _SENTINELS[:2]
    known = [] if role == "system" else [{"role": "user", "content": b}, {"role": "assistant", "content": b}]
    try:
        text = _render(tokenizer, [*known, {"role": role, "content": a}, {"role": "user", "content": b}])
        before = _render(tokenizer, known) if known else ""
    except Exception:  # noqa: BLE001 - templates refuse a role by raising whatever they like
        return None
    if text.count(a) != 1:
        return None
    left, right = text.split(a)
    suffix = right.split(b)[0].removesuffix(user.prefix)
    if right.split(b)[0] == suffix and user.prefix:
        return None
    if known:
        return Affixes(left.removeprefix(before), suffix) if left.startswith(before) else None
    bos = str(tokenizer.bos_token or "")
    return Affixes(left.removeprefix(bos) if bos else left, suffix)


def _split(text: str, marks: Sequence[str]) -> list[str] | None:
    """The text between the marks, each of which must stand in it once, in order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        pieces.append(before)
    return [*pieces, text]
