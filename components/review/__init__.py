"""rsp review: decide on what `rsp changes` found, and correct the map by it."""
