"""The engine: from token ids to traces, sizes and errors, and from a corpus to a store."""
