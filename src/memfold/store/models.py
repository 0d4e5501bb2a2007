"""Which models fold, and what those who hold no model need to know of them."""

from __future__ import annotations

from memfold.api.errors import ModelLoadingError, ModelNotFoundError
from memfold.api.values import ModelCard
from memfold.store import keys
from memfold.store.part import StorePart

_NAMED = 8


class Models(StorePart):
    """The register of models."""

    async def register_model(self, card: ModelCard, *, default: bool = True) -> None:
        """Make a model known; ``default``: memories created from now on are folded with it."""
        await self._server.command("HSET", keys.MODELS, card.fingerprint, card.to_json())
        if default:
            await self._server.command("SET", keys.DEFAULT_MODEL, card.fingerprint)

    async def fingerprints(self) -> list[str]:
        """Of every model that is known, in no order."""
        return [name.decode() for name in await self._server.command("HKEYS", keys.MODELS)]

    async def default_model(self) -> ModelCard:
        """The model that new memories are folded with.

        Raises:
            ModelLoadingError: none has been registered yet.
        """
        fingerprint = await self._server.command("GET", keys.DEFAULT_MODEL)
        if fingerprint is None:
            raise ModelLoadingError("no model has been loaded yet", retry_after_ms=1000)
        return await self.model(fingerprint.decode())

    async def model(self, fingerprint: str) -> ModelCard:
        """The model with this fingerprint.

        Raises:
            ModelNotFoundError: it has never been registered; the text names those that have been.
        """
        card = await self._server.command("HGET", keys.MODELS, fingerprint)
        if card is None:
            raise ModelNotFoundError(
                f"no writer has loaded a model {fingerprint[:16]}; {await self._known_models()}",
                facts={"fingerprint": fingerprint},
            )
        return ModelCard.from_json(card)

    async def _known_models(self) -> str:
        """The models there are, in words; of many some."""
        cards = [ModelCard.from_json(card) for card in await self._server.command("HVALS", keys.MODELS)]
        known = sorted(f"{card.fingerprint} ({card.backbone})" for card in cards)
        more = [f"{len(known) - _NAMED} more"] if len(known) > _NAMED else []
        return f"there are {', '.join(known[:_NAMED] + more)}" if known else "there is none yet"
