"""The reader: answers from a memory's state, token by token."""
