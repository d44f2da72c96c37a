"""One queue of a target: the general path, and as its parts fast path, fused pairs, aborts, staging.

Must not know sockets or event loops: the driver of a queue implements its Protocol.
"""
