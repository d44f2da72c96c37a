"""The tests, mirroring the package; `traces`, `interop`, `conformance` and `fuzz` go across it."""
