"""rsp info."""
