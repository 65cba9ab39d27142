"""rsp predict."""
