"""The writer: claims memories that are behind their logs, folds them in batches, commits their states."""
