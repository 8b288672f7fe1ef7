"""Token pruning and merging: signals, scorers, matchers, and the reductions made of them."""
