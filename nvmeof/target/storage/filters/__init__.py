"""The filters of this package, each in a file of its own.

Each has a class, `make` for the text of a namespace, and the names of its `OPTIONS`.
"""
