"""TorchServe around the one inference function: handler, archive and store, front, server, client."""
