"""Every command of a target: a table row says when it is legal, how long its data is, and what executes it.

Must not know connections, sockets or event loops.
"""
