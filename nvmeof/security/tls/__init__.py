"""TLS 1.3 with a pre-shared key: keys and identities, and TLS itself without I/O, for both ends.

``key`` has the formulas, ``hello`` reads a ClientHello, ``library`` is the only module that knows OpenSSL, and
``session`` is what others use: bytes in, bytes out. No module here knows a queue, a socket or an event loop.
"""
