"""The gateway: memfold's public API. Knows the store and the wire, and no model."""
