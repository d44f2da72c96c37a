"""Who is at the other end: secrets, and the exchange of DH-HMAC-CHAP for both ends.

Knows the messages (:mod:`nvmeof.spec.auth`) and no queue, command, event loop or socket.
"""
