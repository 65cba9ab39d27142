"""rsp extract."""
