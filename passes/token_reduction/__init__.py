"""Token pruning and merging."""
