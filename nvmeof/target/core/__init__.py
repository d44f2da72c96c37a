"""Small mechanisms of a target without NVMe objects: a FIFO lock, buffers, completions, controller states.

Must not know namespaces, controllers, commands, sockets or event loops.
"""
