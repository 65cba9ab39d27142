"""rsp tile."""
