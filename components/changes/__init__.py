"""rsp changes: what is on a map and what is predicted, object by object."""
