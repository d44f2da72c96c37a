"""The NBD protocol without I/O: numbers, messages, options, negotiation of both sides, URIs.

The document is the NetworkBlockDevice project's ``doc/proto.md`` (and ``doc/uri.md``). The target's storage uses the
client's half, the host's export the server's; both halves share every declaration.
"""
