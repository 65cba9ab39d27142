"""The generated town and the demo that runs on it; no part of the wheel."""
