"""The web page beside a tile set: a map of it, or a viewer to compare and select tiles."""
