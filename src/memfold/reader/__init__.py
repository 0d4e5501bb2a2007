"""What readers and gateways say to each other; not part of the public API."""
