"""rsp vectorize."""
