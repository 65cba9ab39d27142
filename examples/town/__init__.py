"""A generated town, seen from above, with the truth about its buildings."""
