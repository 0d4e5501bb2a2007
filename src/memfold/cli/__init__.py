"""The command ``memfold``."""

from memfold.cli.main import app

__all__ = ["app"]
