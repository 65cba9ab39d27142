"""rsp subset."""
