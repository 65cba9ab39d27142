"""Pipelines over the components, and how to compile, run, submit and schedule them."""
