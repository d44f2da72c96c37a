"""The offload device: NVMe/TCP in a process of its own, behind shared memory, two rings and two doorbells.

``layout`` (records and rings), ``pool`` (who has which part of the memory) and ``options_text`` are what both processes
share. ``engine`` is the device's process; ``process`` its handle in the application, ``link`` one queue of it there,
``device`` what the controller sees: a :class:`nvmeof.host.queue.QueueDevice`. docs/offload.md has the layout, the
owners of buffers, and what happens at each failure.
"""
