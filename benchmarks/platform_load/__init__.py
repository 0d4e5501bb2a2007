"""The parts of ``make load``: the platform, the traffic, what is measured, and the verdict."""
