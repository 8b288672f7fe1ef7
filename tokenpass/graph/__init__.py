"""Facts about a captured graph: axes, demand, aliases, regions, sites. Nothing is changed."""
