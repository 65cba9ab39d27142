"""rsp deploy."""
