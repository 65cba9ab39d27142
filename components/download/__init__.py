"""rsp download."""
