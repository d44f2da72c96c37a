"""``nvmeof-target ctl``: the verbs of the control socket as commands, with tables, and what goes on as it happens."""

from nvmeof.target.cli.ctl.commands import COMMANDS as COMMANDS
