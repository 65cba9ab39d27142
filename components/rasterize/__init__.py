"""rsp rasterize."""
