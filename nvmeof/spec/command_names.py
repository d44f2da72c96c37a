"""What a command is called in messages."""

from __future__ import annotations

from nvmeof.spec.enums import FABRICS_OPCODE, AdminOpcode, FabricsType, NvmOpcode


def command_name(qid: int, opcode: int, fctype: int | None = None) -> str:
    """Return the name of a command on queue ``qid``, as ``Get Log Page``; its number when it has none here.

    ``fctype``: FCTYPE of a Fabrics command (opcode 7Fh). (NVMe Base, Opcodes for Admin Commands, Opcodes for I/O
    Commands, Fabrics Command Type.)
    """
    names: type[AdminOpcode | NvmOpcode | FabricsType]
    if opcode == FABRICS_OPCODE and fctype is not None:
        names, opcode = FabricsType, fctype
    else:
        names = NvmOpcode if qid else AdminOpcode
    try:
        return names(opcode).name.replace("_", " ").title().replace("Io ", "I/O ")
    except ValueError:
        return f"Command {opcode:#04x}"
