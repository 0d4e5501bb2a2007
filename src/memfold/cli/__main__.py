"""``python -m memfold.cli``."""

from memfold.cli import app

app(prog_name="memfold")
