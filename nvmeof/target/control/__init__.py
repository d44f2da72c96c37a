"""Live control of a running target: verbs for all that can be shown and changed, and a socket that takes them.

``Control`` has the verbs as methods, for a program that has the target; ``ControlServer`` offers them to other
processes of the same user as JSON-RPC 2.0 on a Unix-domain socket; ``ControlClient`` calls them there. The verbs change
a target by what its users have (``Target``, ``Administration``), and execute no command. docs/control.md lists them.

>>> control = Control(target)                                        # doctest: +SKIP
>>> await control.namespaces.add("ramdisk:64M", nsid=7)              # doctest: +SKIP
>>> await control.call("namespace.list")                             # doctest: +SKIP
"""

from nvmeof.target.control.client import ControlClient as ControlClient
from nvmeof.target.control.client import ControlError as ControlError
from nvmeof.target.control.control import Control as Control
from nvmeof.target.control.server import ControlServer as ControlServer
