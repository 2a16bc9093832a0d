"""Running policies and judging them: stepping, the protocol, scores."""
