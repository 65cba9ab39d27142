"""The manifests, and the dashboard and alerts that are made from code."""
