"""Filters in front of a backend, their text, and backends that other packages bring."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof import Target, connect
from nvmeof.errors import ConfigurationError, NvmeStatusError
from nvmeof.target.storage.base import Backend, Lease
from nvmeof.target.storage.filter import BackendFilter, Kind
from nvmeof.target.storage.filters.count import CountFilter
from nvmeof.target.storage.filters.delay import DelayFilter
from nvmeof.target.storage.filters.error import ErrorFilter
from nvmeof.target.storage.filters.log import LogFilter
from nvmeof.target.storage.filters.rate import RateFilter
from nvmeof.target.storage.kinds import BACKENDS, FILTERS, make_backend
from nvmeof.target.storage.namespace_text import Element, NamespaceText, format_namespace_text, parse_namespace_text
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.namespace_option import parse_namespace_option

REPOSITORY = Path(__file__).parents[3]
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


# -- the base ------------------------------------------------------------------------------------------------------


def members(of: type[Backend]) -> set[str]:
    """Return every public member that the class itself has or declares."""
    own = {name for name in vars(of) if not name.startswith("_")}
    return own | {name for name in inspect.get_annotations(of) if not name.startswith("_")}


def test_a_filter_forwards_every_member() -> None:
    assert members(Backend) - members(BackendFilter) == set()


def test_forwarded_values_are_those_of_the_next_backend() -> None:
    disk = Ramdisk("1M")
    both = BackendFilter(disk)
    for name in members(Backend):
        value, behind = getattr(both, name), getattr(disk, name)
        if inspect.ismethod(value):
            assert value.__func__ is getattr(BackendFilter, name)
        else:
            assert value == behind, name


def test_a_filter_has_the_signatures_of_a_backend() -> None:
    for name, member in vars(Backend).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            assert inspect.signature(member) == inspect.signature(getattr(BackendFilter, name)), name


# -- the text ------------------------------------------------------------------------------------------------------


@st.composite
def elements(draw: st.DrawFn, *, backend: bool) -> Element:
    options = draw(st.dictionaries(NAMES, st.none() | VALUES, max_size=3))
    return Element(draw(NAMES), draw(VALUES) if backend else "", tuple(options.items()))


@given(elements(backend=True), st.lists(elements(backend=False), max_size=3))
def test_text_round_trips(backend: Element, filters: list[Element]) -> None:
    namespace = NamespaceText(backend, tuple(filters))
    assert parse_namespace_text(format_namespace_text(namespace)) == namespace


@given(st.text(max_size=40))
def test_any_text_is_taken_or_refused_with_a_sentence(text: str) -> None:
    try:
        parsed = parse_namespace_text(text)
    except ConfigurationError as error:
        assert str(error)
    else:
        assert parse_namespace_text(format_namespace_text(parsed)) == parsed


def test_paths_with_commas_and_colons() -> None:
    parsed = parse_namespace_text("file:/srv/a:b,,c=d,size=1M,delay:read=10ms,write=1s,count:,read-only")
    assert parsed.backend == Element("file", "/srv/a:b,c=d", (("size", "1M"),))
    assert parsed.filters == (
        Element("delay", "", (("read", "10ms"), ("write", "1s"))),
        Element("count", "", (("read-only", None),)),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ramdisk", "write KIND:VALUE first"),
        ("disk:1M", "no backend 'disk': one of file, nbd, ramdisk, rbd"),
        ("ramdisk:1M,size=2M", "ramdisk has no option 'size'; it has the options block-size"),
        ("ramdisk:1M,slow:", "no filter 'slow': one of count, delay, error, log, rate"),
        ("ramdisk:1M,delay:read=soon", "delay: read is a time such as 10ms"),
        ("ramdisk:1M,delay:read=1s,read=2s", "delay has the option read twice"),
        ("ramdisk:1M,error:errno=EFUN", "errno is a name such as EIO"),
        ("ramdisk:1M,error:rate=2", "rate is a number from 0 to 1, not '2'"),
        ("ramdisk:1M,error:kind=reads", "kind is one of all, read, write"),
        ("ramdisk:1M,rate:", "no limit is given"),
        ("ramdisk:1M,count:x=1", "count has no option 'x'; it has no options"),
        ("ramdisk:1M,nsid=0", "nsid is a number from 1"),
        ("ramdisk:1M,read-only=yes", "read-only is a flag"),
        ("file:", "write file:PATH"),
        (",", "a part between commas is empty"),
    ],
)
def test_wrong_text(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_namespace_option(text)
    assert said in str(caught.value)


def test_options_of_the_namespace() -> None:
    config = parse_namespace_option("ramdisk:64M,nsid=0x10,read-only,zoned,zone-size=1M,delay:all=1ms")
    assert (config.nsid, config.read_only) == (16, True)
    assert config.zoned is not None
    assert config.zoned.zone_bytes == 1 << 20
    assert isinstance(config.backend, DelayFilter)
    assert config.backend.description == "ramdisk 64M behind delay"


def test_every_kind_is_in_the_documentation() -> None:
    text = (REPOSITORY / "docs" / "howto" / "filters.md").read_text()
    for name, kind in {**BACKENDS, **FILTERS}.items():
        assert f"`{name}:" in text, name
        for option in kind.options:
            assert f"`{option}" in text, f"{name} {option}"


# -- the filters ---------------------------------------------------------------------------------------------------


async def test_delay() -> None:
    disk = DelayFilter(Ramdisk("1M"), {Kind.READ: 0.02})
    loop = asyncio.get_running_loop()
    assert disk.write(0, memoryview(b"x" * 512)) is None
    began = loop.time()
    lease = disk.acquire_read(0, 512)
    assert not isinstance(lease, Lease)
    assert bytes((await lease).view) == b"x" * 512
    assert loop.time() - began >= 0.02


def outcomes(disk: Backend, count: int) -> list[bool]:
    result = []
    for _ in range(count):
        try:
            disk.write(0, memoryview(bytes(512)))
            result.append(True)
        except OSError:
            result.append(False)
    return result


def test_errors_are_the_same_in_every_run() -> None:
    runs = [outcomes(ErrorFilter(Ramdisk("1M"), rate=0.3, seed=7), 200) for _ in range(2)]
    assert runs[0] == runs[1]
    assert 30 <= runs[0].count(False) <= 90
    assert outcomes(ErrorFilter(Ramdisk("1M"), rate=0.3, seed=8), 200) != runs[0]


def test_errors_begin_after_and_end() -> None:
    disk = ErrorFilter(Ramdisk("1M"), kinds=[Kind.WRITE], after=3, count=2)
    assert outcomes(disk, 7) == [True, True, True, False, False, True, True]
    assert isinstance(disk.acquire_read(0, 512), Lease)


async def test_count_and_log(caplog: pytest.LogCaptureFixture) -> None:
    counted = CountFilter(DelayFilter(ErrorFilter(Ramdisk("1M"), kinds=[Kind.TRIM]), {Kind.READ: 0.001}))
    disk = LogFilter(counted)
    with caplog.at_level(logging.INFO, "nvmeof.target.storage.log"):
        disk.write(512, memoryview(bytes(1024)))
        pending = [disk.read_into(0, memoryview(bytearray(512))) for _ in range(3)]
        assert counted.counts[Kind.READ].in_flight == 3
        for each in pending:
            assert each is not None
            await each
        with pytest.raises(OSError, match="Input/output error"):
            disk.deallocate(0, 4096)
    counts = counted.counts
    assert (counts[Kind.WRITE].operations, counts[Kind.WRITE].bytes) == (1, 1024)
    assert (counts[Kind.READ].operations, counts[Kind.READ].in_flight, counts[Kind.READ].most_in_flight) == (3, 0, 3)
    assert (counts[Kind.TRIM].operations, counts[Kind.TRIM].failed, counts[Kind.TRIM].in_flight) == (1, 1, 0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5
    assert "write 1024 bytes at 512" in lines[0]
    assert "trim 4096 bytes at 0" in lines[-1]
    assert "failed: Input/output error" in lines[-1]


def test_rate_counts_the_requested_bytes() -> None:
    clock = [100.0]
    disk = RateFilter(Ramdisk("1M"), bytes_per_second=1 << 20, now=lambda: clock[0])
    waits = [disk._pay(1 << 18) for _ in range(4)]
    assert waits == pytest.approx([-0.1, 0.15, 0.4, 0.65])
    clock[0] += 60
    assert disk._pay(1 << 18) == pytest.approx(-0.1)


# -- through the wire ----------------------------------------------------------------------------------------------


async def test_a_filtered_namespace_is_served() -> None:
    config = parse_namespace_option("ramdisk:1M,error:kind=write,errno=ENOSPC,after=1,count:")
    async with (
        Target(namespaces=[config], trtype="tcp", listen="127.0.0.1:0") as target,
        await connect(target.address.host, target.address.port, transport="tcp", subnqn=target.subnqn) as controller,
    ):
        namespace = controller.namespace(1)
        await namespace.write(0, b"a" * 512)
        with pytest.raises(NvmeStatusError) as caught:
            await namespace.write(0, b"b" * 512)
        assert caught.value.status == 0x81  # Capacity Exceeded
        assert await namespace.read(0, 1) == b"a" * 512
    assert isinstance(config.backend, CountFilter)
    assert config.backend.counts[Kind.WRITE].failed == 1


def test_a_backend_of_another_package(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    package = REPOSITORY / "examples" / "backend_package"
    done = subprocess.run([*install, "--target", tmp_path, package], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs pip and hatchling from the package index: {done.stderr.strip()[-200:]}")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from nvmeof.target.subsystem.namespace_option import parse_namespace_option as parse\n"
        "disk = parse('pattern:1M,count:').backend\n"
        "print(disk.description, bytes(disk.acquire_read(4096, 16).view).hex())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout == "pattern 1M behind count 00000000000010000000000000001008\n", done.stderr


def test_an_entry_point_that_is_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("odd", "pathlib:Path", "nvmeof.backends")
    found = importlib.metadata.EntryPoints([entry])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found.select(group=group))
    with pytest.raises(ConfigurationError, match="'odd' \\(pathlib:Path\\) is no BackendKind"):
        make_backend(parse_namespace_text("odd:1M"))
    with pytest.raises(ConfigurationError, match="one of file, nbd, odd, ramdisk, rbd"):
        make_backend(parse_namespace_text("other:1M"))
