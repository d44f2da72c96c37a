"""The log pages: one row each."""
