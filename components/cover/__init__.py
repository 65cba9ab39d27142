"""rsp cover."""
