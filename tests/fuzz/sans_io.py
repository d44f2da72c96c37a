"""Harnesses without a socket: connections of both ends, commands, authentication, NBD's negotiation."""

from __future__ import annotations

import random
import struct
from typing import Any, ClassVar

from nvmeof.errors import CommandError
from nvmeof.nbd.numbers import OPTION_MAGIC
from nvmeof.nbd.option_data import NbdProtocolError
from nvmeof.nbd.server_negotiation import ServerNegotiation
from nvmeof.nbd.steps import ExportFacts, Lookup, Receive, Send
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.dhchap_host import HostCredentials, HostExchange
from nvmeof.security.secret import generate_secret
from nvmeof.spec.auth import DhGroupId
from nvmeof.spec.sqe import SQE
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.states import QueueState
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.namespace_kinds import NamespaceKinds
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.fuzz.bytes_reader import Reader
from tests.fuzz.harness import Harness, Violation, register
from tests.fuzz.pdus import FRAMINGS, connect, damaged, sqe, stream
from tests.protocol.test_fuzz import MAKE, survives
from tests.target.harness import HOST, NQN, TABLES, Pending, Target, TestQueue

NEIGHBOUR = "nqn.2026-01.org.example:neighbour"
PATTERN = bytes(range(256)) * 2


@register
class Framer(Harness):
    """Connections of a target and of a host, from PDU to PDU: framing, digests, states, R2Ts, endings."""

    name: ClassVar[str] = "framer"

    def one(self, data: bytes) -> int:
        reader = Reader(data)
        make, framing = reader.choose(MAKE), reader.choose(FRAMINGS)
        seed = reader.number(2)
        pdus = stream(reader, framing, admin=False)
        survives(make(framing), b"".join(pdus), random.Random(seed))
        return len(pdus)


class Commands:
    """A target, a subsystem that is attacked, and one of a neighbour."""

    def __init__(self, **options: Any) -> None:
        self.target = Target(Ramdisk("64K"), Ramdisk("64K"), **options)
        disk = Ramdisk("64K")
        disk.write(0, memoryview(PATTERN))
        self.target.registry.add_subsystem(
            Subsystem(
                SubsystemConfig(nqn=NEIGHBOUR, namespaces=(NamespaceConfig(backend=disk),)),
                kinds=TABLES[NamespaceKinds],
            )
        )
        admin = self.target.admin(subnqn=NEIGHBOUR, hostnqn=HOST, kato=0)
        self.neighbour = self.target.io(admin, subnqn=NEIGHBOUR)

    def check(self) -> None:
        """Raise `Violation` when the neighbour is not served as ever."""
        read = self.neighbour.command(0x02, length=512, nsid=1)
        if read.status or bytes(read.data or b"") != PATTERN:
            raise Violation(f"the neighbour's Read ends with {read.status:#x}")

    def submit(self, queue: TestQueue, raw: bytes, data: bytes) -> Completion | None:
        """Execute a command as a queue does; None: it waits for something."""
        ctx, entry = queue.ctx, SQE.unpack_from(raw)
        ctx.activity.heard = True
        try:
            spec, length = prepare(ctx, entry)
        except CommandError as error:
            return ctx.refuse(entry, error)
        if length > 1 << 21:
            raise Violation(f"{spec.name} would move {length} bytes")
        result = execute(
            ctx, spec, entry, memoryview(bytearray(data.ljust(length, b"\0")[:length])) if length else None
        )
        if isinstance(ctx, ConnectContext) and ctx.accepted is not None:
            queue.ctx = ctx.queue.ctx = ctx.accepted
        if not isinstance(result, Completion):
            pending = Pending(result)
            for _ in range(200):
                if pending.step() is not None or not ctx.runtime.turn():
                    break
            if pending.completion is None:
                pending.close()
                return None
            result = pending.completion
        if result.release is not None:
            result.release()
        return result

    def end(self, queues: list[TestQueue]) -> None:
        """End the associations of queues, as when their connections are lost."""
        for queue in queues:
            if not isinstance(queue.ctx, ConnectContext):
                queue.ctx.detach("its host has gone")
        runtime = self.target.runtime
        runtime.settle()
        runtime.timers = [timer for timer in runtime.timers if not timer.cancelled]


def legal(completion: Completion | None) -> None:
    """Raise `Violation` for a completion that is none of the specification's."""
    if completion is not None and (completion.status >> 11 or completion.status < 0):
        raise Violation(f"a status of {completion.status:#x}")


@register
class CommandLayer(Harness):
    """Every row of the command tables, on an admin and an I/O queue, with fields that are right or nearly right."""

    name: ClassVar[str] = "commands"
    RENEW: ClassVar[int] = 500

    def __init__(self) -> None:
        super().__init__()
        self._runs = 0
        self._layer = Commands()

    def one(self, data: bytes) -> int:
        self._runs += 1
        if not self._runs % self.RENEW:  # what was sanitized, deleted or protected is there again
            self._layer = Commands()
        reader, layer = Reader(data), self._layer
        admin = layer.target.queue()
        queues = [admin]
        if reader.below(8):
            admin.connect(kato=0)
            if reader.below(8):
                admin.set_property(0x14, 0x460061)
                queues.append(layer.target.io(admin))
        count = 0
        while reader.left and count < 64:
            queue = reader.choose(queues)
            if isinstance(queue.ctx, ConnectContext) and not reader.below(2):
                entry, payload = connect(reader, NQN.encode(), HOST.encode(), 0xFFFF)
            else:
                entry, payload = sqe(reader, admin=queue is admin), reader.take(16)
            legal(layer.submit(queue, entry, payload))
            count += 1
            if queue.ctx.queue_state not in QueueState or (not isinstance(queue.ctx, ConnectContext) and queue.closed):
                break
        layer.end(queues)
        layer.check()
        return count


def _now(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise Violation("a host's reply waits")


async def _at_once(function: Any) -> Any:
    return function()


@register
class Authentication(Harness):
    """DH-HMAC-CHAP at the target: messages that are right, damaged, repeated, of another transaction or of none."""

    name: ClassVar[str] = "authentication"

    def __init__(self) -> None:
        super().__init__()
        self._secret, self._wrong, ours = generate_secret(), generate_secret(), generate_secret(48)
        self._layer = Commands(host_keys=((HOST, HostKeys(self._secret, ours)),))
        self._ours = ours

    def one(self, data: bytes) -> int:
        reader, layer = Reader(data), self._layer
        queue = layer.target.queue()
        queue.connect(kato=0)
        right = bool(reader.below(4))
        secret = self._secret if right else self._wrong
        credentials = HostCredentials(secret, self._ours if reader.below(2) else None, groups=(DhGroupId.NULL,))
        host = HostExchange(credentials, t_id=reader.below(3), hostnqn=HOST, subnqn=NQN, in_thread=_at_once)
        messages, count = [host.negotiate()], 0
        while reader.left and count < 32 and not queue.closed:
            count += 1
            kind = reader.below(8)
            message = messages[-1] if kind < 3 else reader.choose(messages)
            if kind == 4:
                message = damaged(reader, message)
            elif kind == 5:
                message = reader.take(reader.below(80))
            elif kind >= 6:
                answer = layer.submit(queue, self._entry(reader, 6, 4096), b"")
                legal(answer)
                if answer is not None and answer.data is not None and not answer.status:
                    messages += self._next(host, bytes(answer.data))
                continue
            legal(layer.submit(queue, self._entry(reader, 5, len(message)), message))
            if queue.ctx.queue_state is QueueState.READY and not right:
                raise Violation("a host with a wrong secret was let in")
        layer.end([queue])
        layer.check()
        if layer.target.registry.authentication.pending:
            raise Violation("an exchange that has ended is counted still")
        return count

    @staticmethod
    def _entry(reader: Reader, fctype: int, length: int) -> bytes:
        protocol = 0xE9 << 24 | 1 << 16 | 1 << 8 if reader.below(16) else reader.number(4)
        if not reader.below(16):
            length = reader.number(2)
        head = struct.pack(
            "<BBHI16xQI3xB", 0x7F, 0x40, reader.number(), fctype, 0, length, 0x01 if fctype == 5 else 0x5A
        )
        return head + struct.pack("<II16x", protocol, length)

    @staticmethod
    def _next(host: HostExchange, message: bytes) -> list[bytes]:
        """Return what a host says to a message, if it has something to say."""
        for say in (lambda: _now(host.reply(message)), lambda: host.finish(message)):
            try:
                answer = say()
            except Violation:
                raise
            except Exception:  # the host refuses what it gets, in whatever way
                continue
            if answer:
                return [bytes(answer)]
        return []


@register
class NbdNegotiation(Harness):
    """The server's half of NBD's negotiation: flags, options, their data."""

    name: ClassVar[str] = "nbd-negotiation"

    def one(self, data: bytes) -> int:
        reader = Reader(data)
        negotiation = ServerNegotiation((("", "a disk"), ("b", "another")), tls=reader.choose((None, False)))
        incoming = bytearray(struct.pack(">I", reader.below(4)) if reader.below(8) else reader.take(4))
        count = 0
        while reader.left and count < 64:
            count += 1
            payload = self._payload(reader)
            magic = OPTION_MAGIC if reader.below(16) else reader.number(8)
            length = len(payload) if reader.below(8) else reader.number(4)
            incoming += (
                struct.pack(">QII", magic, reader.choose((1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 255)), length) + payload
            )
        self._drive(negotiation, bytes(incoming))
        return count

    @staticmethod
    def _payload(reader: Reader) -> bytes:
        name = reader.choose((b"", b"b", b"none", bytes(5), b"x" * 4097))
        kind = reader.below(4)
        if kind == 0:
            return name
        if kind == 1:
            return struct.pack(">I", len(name)) + name + struct.pack(">HHH", 2, 0, 3)
        if kind == 2:
            query = reader.choose((b"base:allocation", b"base:", b"qemu:dirty", b""))
            body = struct.pack(">II", 1, len(query)) + query
            return struct.pack(">I", len(name)) + name + body
        return reader.take(reader.below(64))

    @staticmethod
    def _drive(negotiation: ServerNegotiation, incoming: bytes) -> None:
        steps, answer = negotiation.run(), None
        sent = 0
        try:
            while True:
                step = steps.send(answer)  # type: ignore[arg-type]
                answer = None
                if isinstance(step, Receive):
                    if len(incoming) < step.count:
                        return
                    answer, incoming = incoming[: step.count], incoming[step.count :]  # type: ignore[assignment]
                elif isinstance(step, Lookup):
                    answer = FACTS.get(step.name)  # type: ignore[assignment]
                elif isinstance(step, Send):
                    sent += len(step.data)
                    if sent > 1 << 20:
                        raise Violation("a client gets more than it has asked for")
        except StopIteration:
            return
        except NbdProtocolError as error:
            if "\n" in str(error) or not str(error):
                raise Violation(f"not one sentence: {error!r}") from error


FACTS = {"": ExportFacts(1 << 20, 1), "b": ExportFacts(1 << 20, 3, name="b")}
