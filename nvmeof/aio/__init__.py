"""What runs on asyncio for both ends: the runtime, the connection driver, and the choice of the event loop.

It knows event loops, endpoints and connections. It must not know what a command means, nor import target or host.
"""
