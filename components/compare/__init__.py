"""rsp compare."""
