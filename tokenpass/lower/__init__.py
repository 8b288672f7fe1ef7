"""The rewritten graph becomes a callable."""
