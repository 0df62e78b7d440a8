"""The tests: `pytest` from the top of the repository runs all of them."""
