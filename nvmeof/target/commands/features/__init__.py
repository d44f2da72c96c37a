"""The features: one row each."""
