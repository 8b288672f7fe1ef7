"""Dynamo graph to pre-dispatch ATen graph."""
