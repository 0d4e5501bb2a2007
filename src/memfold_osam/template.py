"""What a chat template puts around a turn, learnt by rendering texts of ours with it.

Templates do not promise that a turn looks the same wherever it stands, and many do not keep to it: a default
system block or a date in front, an empty think block in the last reply, white space left out at the end, roles
that must take turns. Here a turn's form is what it has *between* others; whatever only its place adds is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

# Texts that no template holds; letters only, so that no template trims or escapes them.
_SENTINELS = tuple(f"MEMFOLD{letter * 4}SENTINEL" for letter in "ABCDE")
# And one that a template which trims, escapes or changes case would not leave alone.
_ROUGH = 'Ms. O\'Hara said: "é < 3\n\n & {more}"'
# How templates fail: raise_exception, or whatever their expressions run into.
_FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError)

Talk = list[dict[str, str]]


class TurnFormatError(ValueError):
    """No turn format can be derived from a chat template."""


@dataclass(frozen=True, slots=True)
class Affixes:
    """The text around a role's content, and whether the template cuts white space off the content's ends."""

    prefix: str
    suffix: str
    trim: bool = False

    def around(self, content: str) -> str:
        """A whole turn as text."""
        return self.prefix + (content.strip() if self.trim else content) + self.suffix


class ChatTemplate:
    """The chat template of one tokenizer.

    Raises:
        TurnFormatError: the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = str(tokenizer.name_or_path or type(tokenizer).__name__)
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise TurnFormatError(f"{self.name} has no chat template")

    def error(self, why: str) -> TurnFormatError:
        """An error that names the model."""
        return TurnFormatError(f"no turn format follows from the chat template of {self.name}: {why}")

    def render(self, talk: Talk, **options: Any) -> str:
        """The text of a conversation; fails as the template does."""
        return str(self._tokenizer.apply_chat_template(talk, tokenize=False, **options))

    def affixes(self) -> dict[str, Affixes]:
        """The affixes of every role. One that the template has no form for is written as a user's turn.

        Templates without a system role put its text into a user's turn next to it, but then that turn's tokens would
        depend on its neighbour; a turn of its own is the nearest thing that does not.

        Raises:
            TurnFormatError: the turns of a user and an assistant have no form of their own.
        """
        try:
            user, assistant = self._two_speakers()
            pair = {
                "user": self._kept(user, [], "user", []),
                "assistant": self._kept(assistant, ["user"], "assistant", ["user"]),
            }
        except _FAILURES as error:
            if isinstance(error, TurnFormatError):
                raise
            raise self.error(f"it fails on a plain conversation: {error}") from error
        extra = {role: self._attempt(pair, role) or pair["user"] for role in ("system", "tool")}
        return {**pair, **extra}

    def opens_with_bos(self, affixes: Mapping[str, Affixes]) -> bool:
        """Whether the tokenizer or the template puts a BOS in front of everything, as no part of the first turn."""
        tokenizer = self._tokenizer
        bos = str(tokenizer.bos_token or "")
        if not bos or any(affixes[role].prefix.startswith(bos) for role in ("system", "user")):
            return False  # SmolLM2 calls the token that opens every turn its BOS
        added: bool = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        return added or self.render(_talk("user")).startswith(bos)

    def generation_prompt(self, affixes: Mapping[str, Affixes]) -> str:
        """The text that opens the model's turn, without a think block.

        Mistral's is empty, as the user's suffix opens the reply. A template that knows no generation prompt gets the
        prefix, without the space that belongs to the reply's first word.
        """
        user, assistant = affixes["user"], affixes["assistant"]
        end = self.render(_talk("user"), add_generation_prompt=True).partition(_SENTINELS[0])[2]
        prompt = end.removeprefix(user.suffix) if end.startswith(user.suffix) else ""
        return prompt if prompt and assistant.prefix.startswith(prompt) else assistant.prefix.rstrip(" ")

    def _two_speakers(self) -> tuple[Affixes, Affixes]:
        """The affixes of user and assistant."""
        talk = _talk("user", "assistant", "user", "assistant", "user")
        pieces = _split(self.render(talk), _SENTINELS)
        if pieces is None:
            raise self.error("it changes or drops the text of a turn")
        head, to_assistant, to_user, to_assistant_again, to_user_again, user_suffix = pieces
        if (to_assistant, to_user) != (to_assistant_again, to_user_again):
            raise self.error("it writes a turn differently at different places")
        last = self.render(talk[:2]).partition(_SENTINELS[1])[2]
        if not (to_assistant.startswith(user_suffix) and to_user.startswith(last)):
            raise self.error("it ends a last turn otherwise than one in between")
        prefix = to_user.removeprefix(last)
        if not head.endswith(prefix):
            prefix = prefix.lstrip()  # OLMo 2 leaves out the line feed after the last turn
        if not head.endswith(prefix):
            raise self.error("it opens a first turn otherwise than a later one")
        user = Affixes(prefix, user_suffix)
        assistant = Affixes(to_assistant.removeprefix(user_suffix), to_user.removesuffix(prefix))
        user, assistant = _opener_to_its_turn(user, assistant)
        marks = [(a.prefix.strip(), a.suffix.strip()) for a in (user, assistant)]
        if ("", "") in marks or marks[0] == marks[1]:
            raise self.error("it does not mark who speaks")
        return user, assistant

    def _attempt(self, pair: Mapping[str, Affixes], role: str) -> Affixes | None:
        """The affixes of a role that not every template knows; None where it has no form of its own."""
        try:
            if found := self._in_between(pair, role):
                return found
        except _FAILURES:
            pass  # the template refuses the role there
        try:
            return self._in_front(pair["user"]) if role == "system" else None
        except _FAILURES:
            return None

    def _in_between(self, pair: Mapping[str, Affixes], role: str) -> Affixes | None:
        """A role's form behind a reply: there no template adds a date to a system's text."""
        pieces = _split(self.render(_talk("user", "assistant", role, "user")), _SENTINELS[:4])
        if pieces is None:
            return None
        before, after, user = pieces[2], pieces[3], pair["user"]
        if not (before.startswith(pair["assistant"].suffix) and after.endswith(user.prefix)):
            return None
        found = Affixes(before.removeprefix(pair["assistant"].suffix), after.removesuffix(user.prefix))
        if not (found.prefix + found.suffix).strip():
            return None
        return self._kept(found, ["user", "assistant"], role, ["user"])

    def _in_front(self, user: Affixes) -> Affixes | None:
        """A system's form in templates that know it as the first message only, and may write more into its block."""
        pieces = _split(self.render(_talk("system", "user")), _SENTINELS[:2])
        if pieces is None:
            return None
        before = pieces[0].removeprefix(str(self._tokenizer.bos_token or ""))
        for one, other in (("user", "system"), ("User", "System"), ("USER", "SYSTEM")):
            prefix, suffix = (text.replace(one, other) for text in (user.prefix, user.suffix))
            if one in user.prefix and any(text.startswith(prefix) for text in (before, pieces[0])):
                return Affixes(prefix, suffix, user.trim)
        found = Affixes(before, pieces[1].removesuffix(user.prefix))
        words = found.prefix + found.suffix
        for token in self._tokenizer.added_tokens_decoder.values():
            words = words.replace(token.content, "") if token.special else words
        if words.strip() or not found.prefix or not pieces[1].endswith(user.prefix):
            return None  # it may hold a date, or the text is a part of the user's turn
        return self._kept(found, [], "system", ["user"])

    def _kept(self, found: Affixes, before: Sequence[str], role: str, after: Sequence[str]) -> Affixes:
        """The affixes with what the template does to a text's ends.

        Raises:
            TurnFormatError: it changes the text itself.
        """
        rough = f"\n {_ROUGH} \n"
        talk = _talk(*before, role, *after)
        talk[len(before)]["content"] = rough
        text = self.render(talk)
        if found.prefix + rough + found.suffix in text:
            return found
        if found.prefix + _ROUGH + found.suffix in text:
            return replace(found, trim=True)
        if role == "tool" and found.prefix.endswith('"') and found.suffix.startswith('"'):
            # Llama writes a tool's text as a JSON string. Escaped, it would not be the text of the log.
            return Affixes(found.prefix[:-1], found.suffix[1:])
        if _ROUGH in text:
            return found  # white space at one end alone: what the log has stays
        raise self.error(f"it changes the text of a {role}'s turn")


def _opener_to_its_turn(user: Affixes, assistant: Affixes) -> tuple[Affixes, Affixes]:
    """Some templates write what opens a reply right behind the user's turn; it belongs to the reply."""
    opener = user.suffix.removeprefix(assistant.suffix)
    if assistant.prefix.strip() or not assistant.suffix.strip() or opener in ("", user.suffix):
        return user, assistant
    return replace(user, suffix=assistant.suffix), replace(assistant, prefix=opener + assistant.prefix)


def _talk(*roles: str) -> Talk:
    return [{"role": role, "content": text} for role, text in zip(roles, _SENTINELS, strict=False)]


def _split(text: str, marks: Sequence[str]) -> list[str] | None:
    """The text between the marks, each of which must stand in it once, in order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        pieces.append(before)
    return [*pieces, text]
