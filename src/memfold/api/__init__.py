"""The words of memfold: values, errors, and their translation to and from the wire."""
