"""From messages and texts to tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

from memfold.api.errors import PromptTooLongError
from memfold.api.values import Turn
from memfold_osam.serving import ServedModel
from memfold_osam.turns import Message
from memfold_reader.scoring import Candidate
from memfold_reader.sequence import Segment

DEFAULT_MAX_TOKENS = 256

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reply goes on from.

    Attributes:
        tokens: BOS where the model has one, turns of the log, the request's own messages, the header of the reply.
        own: where the request's own messages begin.
        segments: those of them that an adapter which writes whole messages would write.
    """

    tokens: list[int]
    own: int
    segments: tuple[Segment, ...]

    def behind(self, before: Sequence[int]) -> Prompt:
        """The same with other tokens in front."""
        by = len(before)
        segments = (replace(segment, begin=segment.begin + by, end=segment.end + by) for segment in self.segments)
        return Prompt([*before, *self.tokens], self.own + by, tuple(segments))


class Prompter:
    """Writes prompts for one model, off the event loop and one at a time: tokenizers are not made for threads."""

    def __init__(self, served: ServedModel) -> None:
        self._turns = served.turns
        self._by_sentence = served.memory.config.memory_write_granularity == "sentence_mean"
        self._bos = tuple(served.turns.bos)
        eos: int | None = served.tokenizer.eos_token_id
        self._opening = self._bos or (min(served.turns.end_ids) if eos is None else eos,)
        self._context_tokens = served.context_tokens
        self._thread = ThreadPoolExecutor(1, "tokenizer")

    @property
    def unread(self) -> int:
        """How many tokens at the beginning of every prompt take no part in the memory."""
        return len(self._bos)

    async def messages(self, messages: Sequence[Message]) -> Prompt:
        """The prompt without BOS and without a window."""
        return await self._run(self._own, messages)

    async def turns(self, turns: Sequence[Turn]) -> list[list[int]]:
        """The tokens of each turn of a log."""
        return await self._run(self._encode, [Message(str(t.role), t.content, t.speaker) for t in turns])

    def whole(self, window: Sequence[Sequence[int]], messages: Prompt) -> Prompt:
        """The whole prompt, from turns of the log and what ``messages`` gave."""
        return messages.behind([*self._bos, *chain.from_iterable(window)])

    def plan(self, message_tokens: int, max_tokens: int | None) -> tuple[int, int]:
        """Divide the context: (tokens of the reply at most, tokens left for a window).

        Raises:
            PromptTooLongError: messages and reply do not fit.
        """
        room = self._context_tokens - len(self._bos) - message_tokens
        reply = min(DEFAULT_MAX_TOKENS, room) if max_tokens is None else max_tokens
        if reply < 1 or reply > room:
            raise self._too_long(len(self._bos) + message_tokens, max_tokens or 1)
        return reply, room - reply

    async def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text by itself; what looks like a special token stays text, as in a turn."""
        return await self._run(lambda: [self._turns.content(text) for text in texts])

    async def continued(self, prompt: str, continuations: Sequence[str]) -> list[Candidate]:
        """Each continuation with the prompt as one text, cut where the prompt alone would end.

        As in lm-evaluation-harness, white space at the prompt's end belongs to the continuation, and the end-of-text
        token stands in for an empty prompt. Where both melt into fewer tokens than the prompt alone has, the last
        token is the continuation's.

        Raises:
            PromptTooLongError: one does not fit.
        """
        context = prompt.rstrip()
        alone, *wholes = await self.texts([context, *(prompt + text for text in continuations)])
        return [self._candidate(len(alone), whole) for whole in wholes]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _candidate(self, prompt_tokens: int, whole: list[int]) -> Candidate:
        start = min(prompt_tokens, len(whole) - 1)
        # Something has to come before the first token for it to have a probability.
        head = self._bos if start > 0 else self._opening
        if len(head) + len(whole) > self._context_tokens:
            raise self._too_long(len(head) + start, len(whole) - start)
        return Candidate((*head, *whole), len(head) + start)

    def _too_long(self, prompt_tokens: int, reply_tokens: int) -> PromptTooLongError:
        return PromptTooLongError(
            f"{prompt_tokens} tokens of prompt and {reply_tokens} of reply do not fit a context of "
            f"{self._context_tokens}",
            facts={
                "prompt_tokens": str(prompt_tokens),
                "reply_tokens": str(reply_tokens),
                "context_tokens": str(self._context_tokens),
            },
        )

    def _own(self, messages: Sequence[Message]) -> Prompt:
        tokens: list[int] = []
        segments: list[Segment] = []
        for message, encoded in zip(messages, self._encode(messages), strict=True):
            begin = len(tokens)
            tokens += encoded
            if message.role != "system":  # a fold does not write those either
                sentences = self._turns.sentences(message) if self._by_sentence else ()
                segments.append(Segment(begin, len(tokens), tuple(sentences)))
        return Prompt([*tokens, *self._turns.generation_prompt], 0, tuple(segments))

    def _encode(self, messages: Sequence[Message]) -> list[list[int]]:
        return [self._turns.encode(message) for message in messages]

    async def _run(self, function: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
