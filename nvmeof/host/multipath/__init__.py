"""Native NVMe multipath: several controllers of one subsystem as one, in the manner of Linux (docs/multipath.md).

======================  ==============================================================================================
``iopolicy``            which path the next command takes: numa, round-robin, queue-depth, service-time
``disposition``         what becomes of a command that failed: completed, retried on its path, sent over another
``ana``                 the ANA log: read strictly, followed by event, its transition time obeyed
``identity``            which controllers make one subsystem, and which namespaces are the same one
``member``              one controller of the subsystem, across its associations
``requests``            a command that survives the path over which it was sent
``head``                a namespace over all of its paths: the ``IoPort`` of :class:`nvmeof.host.namespace.Namespace`
``subsystem``           the controllers and heads of one SUBNQN; what comes, goes and changes
======================  ==============================================================================================

Nothing here knows a socket, an event loop or a clock: time is the injected runtime's.
"""
