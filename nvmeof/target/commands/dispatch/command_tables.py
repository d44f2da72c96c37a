"""The commands of a target: one table for each kind of queue, and the checks that stand before all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nvmeof.spec.enums import Csi
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import CommandSpec, IoSpec

AdmissionCheck = Callable[[CommandContext, CommandSpec, Sqe], None]
"""Raises `CommandError` for a command that something stands in the way of: a sanitize operation, a reservation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTables:
    """The commands by opcode, those of Fabrics by FCTYPE; `io` has the tables of the I/O command sets by CSI.

    The checks of `admission` run in order for every admin and I/O command of the general path, once its row and its
    namespace are known, and again when its data came later. A check of Reads or Writes must invalidate the admission
    tokens of the namespace (or the controller) when its result changes.
    """

    admin: Mapping[int, CommandSpec]
    discovery: Mapping[int, CommandSpec]
    fabrics_admin: Mapping[int, CommandSpec]
    fabrics_io: Mapping[int, CommandSpec]
    io: Mapping[int, Mapping[int, IoSpec]]
    admission: tuple[AdmissionCheck, ...]

    @property
    def nvm(self) -> Mapping[int, IoSpec]:
        """The commands of the NVM Command Set, which every other I/O command set builds upon."""
        return self.io[Csi.NVM]

    def beside_nvm(self, csi: int) -> dict[int, IoSpec]:
        """Return the commands of an I/O command set that the NVM Command Set does not have."""
        return {opcode: spec for opcode, spec in self.io[csi].items() if opcode not in self.nvm}
