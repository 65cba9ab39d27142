"""rsp train."""
