"""What commands know of their association: values that its controller projects, and the door for their effects.

Must not know a controller, a subsystem or a queue: a process that serves I/O queues alone has all of this and none of
those.
"""
