"""What all controllers of an NVM subsystem share: namespaces, hosts, history, sanitize, self-test, ports.

Must not know the class of its controllers: they are a Protocol here.
"""
