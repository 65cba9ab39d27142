"""The tools, one folder each: a typed function, its command line, and how Kubeflow sees it."""
