"""Any sequence of creating, attaching, detaching, deleting, connecting and leaving, against a plain model."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvmeof.spec.status import Status
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.registry import TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.harness import NQN, TABLES, Target, TestQueue
from tests.target.management_tools import (
    ALL,
    active,
    allocated,
    attach,
    attached,
    capacity,
    create,
    delete,
    read,
    write,
)

MEGABYTE = 1 << 20
HOSTS = [f"nqn.2026-01.org.example:host{number}" for number in range(3)]
LIMIT = 6  # namespaces
ATTACH_LIMIT = 3


@dataclass
class Space:
    blocks: int
    shared: bool = True
    made: bool = True
    data: bytes = bytes(512)

    @property
    def bytes(self) -> int:
        return -(-self.blocks * 512 // 4096) * 4096


@dataclass
class Member:
    host: str
    queue: TestQueue
    io: TestQueue
    attached: set[int] = field(default_factory=set)


class Namespaces(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.pool = RamdiskPool("4M")
        self.spaces = {1: Space(2048, made=False)}
        self.remembered: dict[tuple[str, int], bool] = {}
        self.members: dict[int, Member] = {}
        self.target = Target(pool=self.pool, max_namespaces=LIMIT, max_attached=ATTACH_LIMIT)
        self.connect(HOSTS[0])

    # Helpers of the model

    def starts_with(self, host: str) -> set[int]:
        chosen: set[int] = set()
        for nsid, space in sorted(self.spaces.items()):
            wanted = self.remembered.get((host, nsid), not space.made)
            taken = not space.shared and any(nsid in member.attached for member in self.members.values())
            if wanted and not taken and len(chosen) < ATTACH_LIMIT:
                chosen.add(nsid)
        return chosen

    @property
    def left(self) -> int:
        return 4 * MEGABYTE - sum(space.bytes for space in self.spaces.values() if space.made)

    def forget(self, nsid: int) -> None:
        del self.spaces[nsid]
        self.remembered = {key: value for key, value in self.remembered.items() if key[1] != nsid}
        for member in self.members.values():
            member.attached.discard(nsid)

    def pick(self, number: int) -> Member:
        return list(self.members.values())[number % len(self.members)]

    def cntlids(self, chosen: set[int]) -> list[int]:
        known = sorted(self.members)
        return sorted({known[number % len(known)] for number in chosen})

    # Rules

    @precondition(lambda self: len(self.members) < 5)
    @rule(host=st.sampled_from(HOSTS))
    def connect(self, host: str) -> None:
        queue = self.target.admin(hostnqn=host)
        started = self.starts_with(host)
        self.members[queue.controller.cntlid] = Member(host, queue, self.target.io(queue, hostnqn=host), started)

    @precondition(lambda self: len(self.members) > 1)
    @rule(number=st.integers(0, 7))
    def leave(self, number: int) -> None:
        member = self.pick(number)
        del self.members[member.queue.controller.cntlid]
        member.queue.controller.destroy("leaves")

    @precondition(lambda self: self.members)
    @rule(number=st.integers(0, 7), blocks=st.sampled_from([1, 8, 9, 2048, 4096, 8192]), shared=st.booleans())
    def create(self, number: int, blocks: int, shared: bool) -> None:
        completion = create(self.pick(number).queue, nsze=blocks, nmic=int(shared))
        space = Space(blocks, shared)
        if len(self.spaces) == LIMIT:
            assert completion.status == Status.NAMESPACE_ID_UNAVAILABLE
        elif space.bytes > self.left:
            assert completion.status == Status.NAMESPACE_INSUFFICIENT_CAPACITY
        else:
            assert completion.status == 0
            assert completion.dw0 == min(set(range(1, LIMIT + 1)) - set(self.spaces))
            self.spaces[completion.dw0] = space

    @precondition(lambda self: self.members)
    @rule(number=st.integers(0, 7), nsid=st.one_of(st.integers(1, LIMIT), st.just(ALL)))
    def delete(self, number: int, nsid: int) -> None:
        status = delete(self.pick(number).queue, nsid).status
        victims = list(self.spaces) if nsid == ALL else [nsid]
        if any(each not in self.spaces for each in victims):
            assert status == Status.INVALID_FIELD
        elif any(not self.spaces[each].made for each in victims):
            assert status == Status.OPERATION_DENIED
        else:
            assert status == 0
            for each in victims:
                self.forget(each)

    @precondition(lambda self: self.members)
    @rule(number=st.integers(0, 7), nsid=st.integers(1, LIMIT), chosen=st.sets(st.integers(0, 7), min_size=1))
    def attach(self, number: int, nsid: int, chosen: set[int]) -> None:
        cntlids = self.cntlids(chosen)
        status = attach(self.pick(number).queue, nsid, *cntlids).status
        members = [self.members[each] for each in cntlids]
        holders = sum(nsid in member.attached for member in self.members.values())
        if nsid not in self.spaces:
            assert status == Status.INVALID_FIELD
        elif any(nsid in member.attached or len(member.attached) >= ATTACH_LIMIT for member in members):
            first = next(each for each in members if nsid in each.attached or len(each.attached) >= ATTACH_LIMIT)
            already = nsid in first.attached
            limit = Status.NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED
            assert status == (Status.NAMESPACE_ALREADY_ATTACHED if already else limit)
        elif not self.spaces[nsid].shared and len(members) + holders > 1:
            assert status == Status.NAMESPACE_IS_PRIVATE
        else:
            assert status == 0
            if not self.spaces[nsid].shared:
                for host in HOSTS:
                    self.remembered.pop((host, nsid), None)
            for member in members:
                member.attached.add(nsid)
                self.remembered[member.host, nsid] = True

    @precondition(lambda self: self.members)
    @rule(number=st.integers(0, 7), nsid=st.integers(1, LIMIT), chosen=st.sets(st.integers(0, 7), min_size=1))
    def detach(self, number: int, nsid: int, chosen: set[int]) -> None:
        cntlids = self.cntlids(chosen)
        status = attach(self.pick(number).queue, nsid, *cntlids, sel=1).status
        members = [self.members[each] for each in cntlids]
        if nsid not in self.spaces:
            assert status == Status.INVALID_FIELD
        elif any(nsid not in member.attached for member in members):
            assert status == Status.NAMESPACE_NOT_ATTACHED
        else:
            assert status == 0
            for member in members:
                member.attached.discard(nsid)
                self.remembered[member.host, nsid] = False

    @precondition(lambda self: len(self.spaces) < LIMIT)
    @rule()
    def configure(self) -> None:
        added = self.target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M")))
        assert added.nsid not in self.spaces
        self.spaces[added.nsid] = Space(2048, made=False)
        for member in self.members.values():
            if len(member.attached) < ATTACH_LIMIT:
                member.attached.add(added.nsid)

    @precondition(lambda self: any(not space.made for space in self.spaces.values()))
    @rule()
    def remove_configured(self) -> None:
        nsid = next(nsid for nsid, space in self.spaces.items() if not space.made)
        self.target.subsystem.remove_namespace(nsid)
        self.forget(nsid)

    @precondition(lambda self: self.members)
    @rule(number=st.integers(0, 7), nsid=st.integers(1, LIMIT), content=st.binary(min_size=4, max_size=4))
    def write(self, number: int, nsid: int, content: bytes) -> None:
        member = self.pick(number)
        status = write(member.io, nsid, content * 128).status
        assert status == (0 if nsid in member.attached else Status.INVALID_FIELD)
        if nsid in member.attached:
            self.spaces[nsid].data = content * 128

    @rule()
    def restart(self) -> None:
        """Restart the target: created namespaces are found again, configured ones are configured again."""
        for member in self.members.values():
            member.queue.controller.destroy("the target is stopping")
        self.members.clear()
        namespaces = tuple(
            NamespaceConfig(backend=self.target.subsystem.namespaces[nsid].backend, nsid=nsid)
            for nsid, space in self.spaces.items()
            if not space.made
        )
        subsystem = Subsystem(
            SubsystemConfig(
                nqn=NQN, pool=self.pool, namespaces=namespaces, max_namespaces=LIMIT, max_attached=ATTACH_LIMIT
            )
        )
        self.target.registry = TargetRegistry(TABLES)
        self.target.registry.add_subsystem(subsystem)
        self.target.registry.add_port(self.target.port)
        self.target.subsystem = subsystem
        opening = subsystem.manager.open()
        try:
            opening.send(None)
        except StopIteration:
            return
        raise AssertionError("memory is opened at once")

    # Invariants

    @invariant()
    def lists(self) -> None:
        for cntlid, member in self.members.items():
            assert active(member.queue) == sorted(member.attached), cntlid
        if self.members:
            queue = self.pick(0).queue
            assert allocated(queue) == sorted(self.spaces)
            for nsid in self.spaces:
                holders = sorted(cntlid for cntlid, member in self.members.items() if nsid in member.attached)
                assert attached(queue, nsid) == holders
            total = 4 * MEGABYTE + sum(space.bytes for space in self.spaces.values() if not space.made)
            assert capacity(queue) == (total, self.left)

    @invariant()
    def content(self) -> None:
        for member in self.members.values():
            for nsid in member.attached:
                assert member.io.read_bytes(read(member.io, nsid)) == self.spaces[nsid].data


TestNamespaces = Namespaces.TestCase
TestNamespaces.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
