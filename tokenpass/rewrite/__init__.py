"""One replay of the graph with all edits of a plan."""
