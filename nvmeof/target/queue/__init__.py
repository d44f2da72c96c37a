"""One queue of a target: commands in flight, the fast path, fused pairs, aborts.

Must not know sockets or event loops: whoever drives a queue implements its Protocol.
"""
