"""rsp evaluate."""
