"""Short stories on one memory, each of which some guard in the scripts must hold."""

from memfold_faults import scenarios_copies, scenarios_log, scenarios_many, scenarios_removals
from memfold_faults.story import SCENARIOS

__all__ = ["SCENARIOS", "scenarios_copies", "scenarios_log", "scenarios_many", "scenarios_removals"]
