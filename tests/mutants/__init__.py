"""Small wrong versions of the project, each with the tests that have to notice it. `make mutants` runs them."""
