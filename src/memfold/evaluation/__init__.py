"""How good a memory is: suites of questions, asked of a running platform on several arms, with a report."""
