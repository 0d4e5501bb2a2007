"""The verbatim lane: finds turns of a memory's own log by their words."""

from memfold.search.search import Search

__all__ = ["Search"]
