"""Benchmarks that stay: run ``python -m benchmarks --help``; README.md says what each number means."""
