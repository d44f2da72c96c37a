"""One association of a host: properties, events, logs and timers of a controller, and the Discovery log.

Must not know commands or queues but by Protocols.
"""
