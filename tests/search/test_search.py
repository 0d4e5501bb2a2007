"""The verbatim lane finds what the log holds now, and nothing that it does not hold any more."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfold.api.errors import MemoryNotFoundError
from memfold.api.values import Memory, MemoryName, ModelCard, Role, Turn
from memfold.search import Search
from memfold.search.index import TurnIndex
from memfold.store import Store

NAME = MemoryName("acme", "bob")


def turn(sequence: int, content: str, speaker: str = "") -> Turn:
    return Turn(f"id-{sequence}", Role.USER, content, speaker, sequence=sequence)


def bm25(texts: list[str], query: list[str]) -> list[float]:
    """BM25 by its formula (Robertson and Zaragoza, 2009), k1 1.2, b 0.75; the oracle."""
    documents = [Counter(text.split()) for text in texts]
    mean = sum(document.total() for document in documents) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            holding = sum(word in other for other in documents)
            idf = max(1e-6, math.log((len(documents) - holding + 0.5) / (holding + 0.5)))
            often = document[word]
            score += idf * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * document.total() / mean))
        scores.append(score)
    return scores


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    store = await Store.open(redis_url)
    await store.register_model(
        ModelCard(hashlib.sha256(b"a model").hexdigest(), "backbone", "adapter", (1, 1, 2, 4), 64, 256)
    )
    yield store
    await store.close()


@pytest.fixture
def search(store: Store) -> Search:
    return Search(store)


async def say(store: Store, *contents: str, begin: int = 1) -> None:
    turns = [Turn(f"id-{i}", Role.USER, content) for i, content in enumerate(contents, begin)]
    await store.append(NAME, turns, create=True)


async def found(search: Search, query: str, limit: int = 10) -> list[str]:
    return [one.turn.content for one in (await search.find(NAME, query, limit))[1]]


def test_scores_are_bm25() -> None:
    rng = random.Random(5)
    # Words that Porter leaves alone.
    words = ["cat", "dog", "fox", "owl", "hen", "bat", "elk"]
    texts = [" ".join(rng.choices(words, weights=range(1, 8), k=rng.randint(2, 12))) for _ in range(60)]
    index = TurnIndex()
    index.add([turn(i, text) for i, text in enumerate(texts, 1)])
    for query in (["cat"], ["cat", "dog"], ["hen", "cat", "zebra"]):
        expected = {i: score for i, score in enumerate(bm25(texts, query), 1) if set(query) & set(texts[i - 1].split())}
        hits = index.search(" ".join(query), 100)
        assert {hit.sequence for hit in hits} == set(expected)
        assert [hit.score for hit in hits] == pytest.approx([expected[hit.sequence] for hit in hits], abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_can_be_indexed_and_asked_for(said: str, query: str) -> None:
    index = TurnIndex()
    index.add([turn(1, said.encode(errors="ignore").decode()), turn(2, "an anchor")])
    index.search(query, 5)


def test_words_are_found_without_case_accents_and_endings_and_by_who_said_them() -> None:
    index = TurnIndex()
    index.add([turn(1, "We were PAINTING at the café"), turn(2, "Nothing here", speaker="Caroline")])
    assert [hit.sequence for hit in index.search("painted", 5)] == [1]
    assert [hit.sequence for hit in index.search("Cafe", 5)] == [1]
    assert [hit.sequence for hit in index.search("what did caroline say", 5)] == [2]
    assert index.search("?!", 5) == []


async def test_what_is_appended_is_found_at_once(store: Store, search: Search) -> None:
    await say(store, "My dog is called Rex.", "Noted.")
    assert await found(search, "the dog") == ["My dog is called Rex."]
    await say(store, "The other dog is Ada.", begin=3)
    assert await found(search, "dog") == ["My dog is called Rex.", "The other dog is Ada."]
    assert await found(search, "dog", limit=1) == ["My dog is called Rex."]


async def test_a_forgotten_turn_is_not_found_and_its_words_are_gone(store: Store, search: Search) -> None:
    await say(store, "My dog is called Rex.", "I live in Oslo.")
    assert await found(search, "Rex") == ["My dog is called Rex."]
    memory = await store.get_memory(NAME)
    await store.forget(NAME, [1], expected_incarnation=memory.incarnation)
    assert await found(search, "Rex") == []
    assert await found(search, "Oslo") == ["I live in Oslo."]
    [entry] = search._entries.values()
    terms = entry.index._words
    terms.execute("CREATE VIRTUAL TABLE words USING fts5vocab(turns, 'row')")
    assert not [word for (word,) in terms.execute("SELECT term FROM words") if re.search("rex|dog", word)]


async def test_a_memory_that_was_made_anew_shares_nothing_with_the_old_one(store: Store, search: Search) -> None:
    await say(store, "an old secret")
    assert await found(search, "secret") == ["an old secret"]
    await store.delete_memory(NAME)
    with pytest.raises(MemoryNotFoundError):
        await found(search, "secret")
    await say(store, "a new beginning")
    assert await found(search, "secret beginning") == ["a new beginning"]


class Replacing:
    """A store whose memory may be deleted and made anew, with other words, before any read."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._rng = random.Random(seed)
        self.generation = 0

    async def replace(self) -> None:
        self.generation += 1
        with contextlib.suppress(MemoryNotFoundError):
            await self._store.delete_memory(NAME)
        await say(self._store, *[f"word{n} of generation{self.generation}" for n in range(30)])

    async def get_memory(self, name: MemoryName) -> Memory:
        await self._perhaps()
        return await self._store.get_memory(name)

    async def read_turns(self, name: MemoryName, **page: int) -> list[Turn]:
        await self._perhaps()
        return await self._store.read_turns(name, **page)

    async def _perhaps(self) -> None:
        if self._rng.random() < 0.04:
            await self.replace()


@pytest.mark.parametrize("seed", range(3))
async def test_a_search_during_replacements_never_mixes_two_memories(store: Store, seed: int) -> None:
    replacing = Replacing(store, seed)
    await replacing.replace()
    search = Search(cast("Store", replacing))
    answered = 0
    for _ in range(20):
        before = replacing.generation
        with contextlib.suppress(MemoryNotFoundError):
            texts = await found(search, "word1 word7 word11 of", limit=10)
            assert len(texts) == 10
            assert len({text.split()[-1] for text in texts}) == 1
            assert int(texts[0].rsplit("generation", 1)[1]) >= before
            answered += 1
    assert answered > 10
    assert replacing.generation > 5


async def test_indexes_that_are_not_used_are_let_go_when_there_is_no_room(store: Store) -> None:
    search = Search(store, max_turns=5)
    for number in range(6):
        await store.append(
            MemoryName("acme", f"m{number}"), [Turn(f"t{i}", Role.USER, f"said {i}") for i in range(3)], create=True
        )
    for number in range(6):
        _, hits = await search.find(MemoryName("acme", f"m{number}"), "said", 10)
        assert len(hits) == 3
    assert sum(entry.index.turns for entry in search._entries.values()) <= 5 + 3


async def test_a_note_to_skip_a_turn_is_no_turn(store: Store, search: Search) -> None:
    await say(store, "poison words", "sound words")
    await store.skip_turn(NAME, 1)
    assert sorted(await found(search, "words skip")) == ["poison words", "sound words"]
