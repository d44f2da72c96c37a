"""Hostile bytes for everything that takes bytes from a peer: see docs/fuzzing.md."""
