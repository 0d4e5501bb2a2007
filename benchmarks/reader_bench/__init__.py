"""The parts of ``make bench-reader``: a random model, the engine and its peers on it, the rows, and the report."""
