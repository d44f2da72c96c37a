"""What one target leaves, and another finds: through the form that goes between processes, in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof import Ramdisk, RamdiskPool, Target, ZoneGeometry, connect
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.spec.reservations import ReservationType
from nvmeof.spec.zns import ZoneState
from nvmeof.target.configuration.merge import merged
from nvmeof.target.document import from_document
from nvmeof.target.handover import Handover
from nvmeof.target.namespaces.reservations import Reservations
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.handed_over import hand_over, take_over, to_memory_file
from nvmeof.target.storage.kinds import make_backend
from nvmeof.target.storage.namespace_text import parse_namespace_text
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.transport.descriptors import DESCRIPTORS_PER_MESSAGE, Channel
from tests.target.management_tools import ATTACH, MANAGE, controller_list, create_data

NQN = "nqn.2026-01.org.example:disk"
BLOCK = b"handed over".ljust(512, b"\0")
PAGE = os.sysconf("SC_PAGE_SIZE")


async def through_a_channel(handover: Handover) -> Handover:
    """What another process gets."""
    handover.to_memory_files()
    ours, theirs = Channel.pair()
    document, descriptors = handover.encode()
    ours.send("take", document, descriptors)
    message = await theirs.receive()
    assert message is not None
    ours.close()
    theirs.close()
    handover.close()
    handover.close_sockets()
    return Handover.decode(message.document, message.descriptors)


async def successor(target: Target) -> Target:
    """Another target that goes on where this one has stopped."""
    handover = await through_a_channel(await target.hand_over())
    made = Target.from_settings(from_document(handover.document), handover=handover)
    await made.start()
    made.accept()
    handover.close()
    return made


def config(*namespaces: NamespaceConfig, **options: Any) -> TargetConfig:
    subsystem = SubsystemConfig(nqn=NQN, namespaces=namespaces, **options)
    return TargetConfig(subsystems=(subsystem,), ports=(PortConfig(transport="tcp", host="127.0.0.1", port=0),))


async def test_memory_reservations_identity_and_numbers(tmp_path: Path) -> None:
    storages = [Ramdisk("8M", keep=True), Ramdisk("8M"), FileBackend(tmp_path / "disk", size="8M")]
    target = Target(config(*(NamespaceConfig(backend=each) for each in storages)))
    await target.start()
    before = {n: (each.nguid, each.uuid) for n, each in target.subsystems[NQN].namespaces.items()}
    identities = [each.identity for each in storages]
    key = bytes(range(16))
    held = Reservations({key: 77}, ReservationType.WRITE_EXCLUSIVE, key, 5)
    async with await connect(target.address.host, target.address.port, subnqn=NQN, transport="tcp") as controller:
        for nsid in (1, 2, 3):
            await controller.namespace(nsid).write(16, BLOCK)
        used = controller.cntlid
        for namespace in target.subsystems[NQN].namespaces.values():
            namespace.reservations.change(held)
        generation, address = target.registry.generation, target.address
        after = await successor(target)
    try:
        subsystem = after.subsystems[NQN]
        assert after.address == address and after.registry.generation > generation
        assert {n: (each.nguid, each.uuid) for n, each in subsystem.namespaces.items()} == before
        assert [each.backend.identity for each in subsystem.namespaces.values()] == identities
        for namespace in subsystem.namespaces.values():
            assert namespace.reservations.state == held
            namespace.reservations.change(Reservations())
        async with await connect(address.host, address.port, subnqn=NQN, transport="tcp") as controller:
            assert controller.cntlid not in (used, 0)
            for nsid in (1, 2, 3):
                assert bytes(await controller.namespace(nsid).read(16)) == BLOCK
        history = subsystem.lifetime
        assert history.power_cycles == 2 and history.unsafe_shutdowns == 0, "what memory kept was not handed over"
    finally:
        await after.stop()


async def test_pools_and_zones_of_memory() -> None:
    zoned = NamespaceConfig(backend=Ramdisk("4M", keep=True), zoned=ZoneGeometry(zone_bytes=1 << 20))
    target = Target(config(zoned, pool=RamdiskPool("16M")))
    await target.start()
    host = target.address.host, target.address.port
    async with await connect(*host, subnqn=NQN, transport="tcp") as controller:
        created = await controller.admin_passthru(MANAGE, data=create_data())
        nsid = created.result & 0xFFFFFFFF
        await controller.admin_passthru(ATTACH, nsid=nsid, data=controller_list(controller.cntlid))
        await controller.namespace(nsid).write(7, BLOCK * 8)
        await controller.namespace(1).write(0, BLOCK * 3)
    zones = target.zones(1)
    assert (zones[0].state, zones[0].written) == (ZoneState.IMPLICITLY_OPENED, 3)
    after = await successor(target)
    try:
        again = after.zones(1)
        assert (again[0].state, again[0].written, again[1].state) == (ZoneState.CLOSED, 3, ZoneState.EMPTY)
        async with await connect(*host, subnqn=NQN, transport="tcp") as controller:
            assert bytes(await controller.namespace(nsid).read(7, 8)) == BLOCK * 8
            await controller.namespace(1).write(3, BLOCK)  # the write pointer
    finally:
        await after.stop()


async def test_a_command_in_progress_ends_before_it() -> None:
    slow = make_backend(parse_namespace_text("ramdisk:1M,delay:write=300ms"))
    target = Target(config(NamespaceConfig(backend=slow)))
    await target.start()
    async with await connect(target.address.host, target.address.port, subnqn=NQN, transport="tcp") as controller:
        writing = asyncio.create_task(controller.namespace(1).write(5, BLOCK))
        # On the I/O queue: event requests are always in progress.
        while not any(driver.queue.running for driver in target.drivers if driver.queue.ctx.qid):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        after = await successor(target)
        await writing  # it was answered
    async with await connect(after.address.host, after.address.port, subnqn=NQN, transport="tcp") as controller:
        assert bytes(await controller.namespace(1).read(5)) == BLOCK, "behind a filter nothing was handed over"
    await after.stop()


async def test_cntlids_in_use_come_last() -> None:
    target = Target(config(NamespaceConfig(backend=Ramdisk("1M")), cntlid_min=1, cntlid_max=3))
    async with target:
        subsystem = target.subsystems[NQN]
        subsystem.continue_cntlids(1, frozenset({2}))
        assert subsystem.allocate_cntlid() == 3
        assert subsystem.allocate_cntlid() == 1, "2 may be in use"
        subsystem.continue_cntlids(1, frozenset({1, 2, 3}))
        assert subsystem.allocate_cntlid() == 2, "any is better than none"
        assert subsystem.cntlids == (2, frozenset({1, 2, 3}))


async def test_it_can_be_taken_back_in_the_same_process() -> None:
    target = Target(config(*(NamespaceConfig(backend=Ramdisk("1M", keep=keep)) for keep in (True, False))))
    await target.start()
    for namespace in target.subsystems[NQN].namespaces.values():
        namespace.backend.write(0, memoryview(BLOCK))
    handover = await target.hand_over()  # nothing was moved to memory files
    again = Target.from_settings(from_document(handover.document), handover=handover)
    await again.start()
    again.accept()
    handover.close()
    for namespace in again.subsystems[NQN].namespaces.values():
        view = bytearray(512)
        namespace.backend.read_into(0, memoryview(view))
        assert view == BLOCK
    await again.stop()


async def test_nothing_is_accepted_before_it_is_allowed() -> None:
    target = Target(config(NamespaceConfig(backend=Ramdisk("1M"))))
    await target.start()
    handover = await through_a_channel(await target.hand_over())
    made = Target.from_settings(from_document(handover.document), handover=handover)
    await made.start()
    connecting = asyncio.create_task(
        connect(made.address.host, made.address.port, subnqn=NQN, transport="tcp", connect_timeout=20)
    )
    await asyncio.sleep(0.2)
    assert not connecting.done() and not made.drivers
    made.accept()
    async with await connecting:
        assert made.drivers
    await made.stop()
    handover.close()


def test_another_form_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="form 99, and form 1 is known"):
        Handover.decode({"version": 99}, [])
    for wrong in ({}, [], None, {"version": 1}, {"version": 1, "discovery_cntlids": [0, []], "document": {}}):
        with pytest.raises(ConfigurationError, match="no state of a target"):
            Handover.decode(wrong, [])


# -- ramdisks ----------------------------------------------------------------------------------------------------------


def content(ramdisk: Ramdisk) -> bytes:
    view = bytearray(ramdisk.capabilities.size_bytes)
    for start, end in ramdisk.allocated(0, len(view)):
        ramdisk.read_into(start, memoryview(view)[start:end])
    return bytes(view)


WRITES = st.lists(st.tuples(st.integers(0, 63), st.integers(1, 4), st.binary(min_size=1, max_size=4)), max_size=8)


@settings(max_examples=30, deadline=None)
@given(writes=WRITES, drops=WRITES, was=st.booleans(), becomes=st.booleans(), size=st.sampled_from([64, 32, 96]))
def test_a_ramdisk_is_the_same_after_it(
    writes: list[Any], drops: list[Any], was: bool, becomes: bool, size: int
) -> None:
    first = Ramdisk(64 * PAGE, keep=was)
    for page, count, data in writes:
        length = min(count, 64 - page) * PAGE
        first.write(page * PAGE, memoryview((data * length)[:length]))
    for page, count, _ in drops:
        first.deallocate(page * PAGE + 512, min(count, 64 - page) * PAGE - 512)
    wanted, used = content(first), first.allocated(0, 64 * PAGE)
    state = hand_over(first)
    assert state.memory is not None
    to_memory_file(state.memory)
    second = Ramdisk(size * PAGE, keep=becomes)
    take_over(second, state)
    os.close(state.memory.descriptor)
    assert second.capabilities.size_bytes == size * PAGE
    assert content(second)[: len(wanted)].ljust(size * PAGE, b"\0")[: 64 * PAGE] == wanted[: size * PAGE].ljust(
        min(size, 64) * PAGE, b"\0"
    )
    assert sum(end - start for start, end in second.allocated(0, size * PAGE)) <= sum(b - a for a, b in used)
    asyncio.run(second.close())


def test_a_kept_ramdisk_is_sparse() -> None:
    ramdisk = Ramdisk("4T", keep=True)
    ramdisk.write(1 << 40, memoryview(BLOCK))
    assert ramdisk.allocated(0, 4 << 40) == [(1 << 40, (1 << 40) + PAGE)]
    ramdisk.deallocate(1 << 40, PAGE)
    assert ramdisk.allocated(0, 4 << 40) == []
    assert str(ramdisk.to_text().backend.options) == "(('keep', None),)"
    asyncio.run(ramdisk.close())


# -- the channel and the merge -----------------------------------------------------------------------------------------


async def test_many_descriptors_and_a_large_document() -> None:
    ours, theirs = Channel.pair()
    count = DESCRIPTORS_PER_MESSAGE + 30
    files = [os.memfd_create(f"{n}") for n in range(count)]
    try:
        for n, each in enumerate(files):
            os.write(each, str(n).encode())
        document = {"text": "x" * (1 << 20)}
        ours.send("take", document, files, answer=42)
        message = await theirs.receive()
        assert message is not None and message.document == document and message.facts == {"answer": 42}
        assert [int(os.pread(each, 8, 0)) for each in message.descriptors] == list(range(count))
        for each in message.descriptors:
            os.close(each)
        ours.close()
        assert await theirs.receive() is None
        with pytest.raises(TransportError, match="cannot be told"):
            theirs.send("ready")
    finally:
        theirs.close()
        for each in files:
            os.close(each)


def test_a_descriptor_that_is_no_channel() -> None:
    file = os.memfd_create("x")
    for wrong in (file, 1 << 20):
        with pytest.raises(TransportError, match="no channel"):
            Channel.inherited(wrong)
    os.close(file)


ENTRY = st.fixed_dictionaries({"a": st.integers(0, 2), "b": st.integers(0, 2)})
DOCUMENT = st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(0, 2) | ENTRY).flatmap(
    lambda top: st.dictionaries(st.integers(1, 3), ENTRY).map(
        lambda ports: {**top, "ports": [{"portid": n, **each} for n, each in ports.items()]}
    )
)


def by_number(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "ports": {each["portid"]: each for each in document.get("ports", [])}}


@given(DOCUMENT, DOCUMENT)
def test_a_merge_changes_what_the_file_changes_and_nothing_else(running: Any, after: Any) -> None:
    check: Callable[[Any, Any], None] = lambda found, wanted: _equal(by_number(found), by_number(wanted))  # noqa: E731
    check(merged(running, after, after), running)
    check(merged(running, running, after), after)


def _equal(found: Any, wanted: Any) -> None:
    assert found == wanted


def test_a_merge_keeps_both_changes() -> None:
    before = {"ports": [{"portid": 1, "host": "a"}, {"portid": 2, "host": "b"}], "most": 1}
    running = {"ports": [{"portid": 1, "host": "a", "ana": "x"}, {"portid": 3, "host": "c"}], "most": 1}
    after = {"ports": [{"portid": 1, "host": "z"}, {"portid": 2, "host": "b"}], "most": 2}
    assert merged(running, before, after) == {
        "ports": [{"portid": 1, "host": "z", "ana": "x"}, {"portid": 3, "host": "c"}],
        "most": 2,
    }
