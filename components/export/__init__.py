"""rsp export."""
