"""TorchServe around the one inference function: handler, archive, server, client."""
