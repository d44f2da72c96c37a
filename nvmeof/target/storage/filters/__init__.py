"""The filters of this package, each in a separate file.

Each has a class, `make` for the text of a namespace, and the names of its `OPTIONS`.
"""
