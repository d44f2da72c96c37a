"""Bytes on a medium: backends, their pools, and what is stored beside the data.

Must not know namespaces, hosts or commands. Threads are used here, and nowhere above.
"""
