"""Networks, data, losses, metrics, checkpoints, and the one inference function."""
