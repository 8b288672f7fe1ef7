"""A slow interpreter of "dense graph + plan" that never shortens anything: the tests' oracle."""
