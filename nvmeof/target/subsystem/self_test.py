"""Device self-tests of a subsystem: one at a time, in the background, with the results of the last twenty.

A short test looks at samples of every namespace, an extended one reads every block. Results are stored with the
subsystem; an extended test goes on at the next start if the subsystem's metadata store is durable.
"""

from __future__ import annotations

import errno
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, Final

from nvmeof.runtime import Runtime, pause, settled
from nvmeof.spec.media import SELF_TEST_RESULTS, SelfTestCode, SelfTestResult, SelfTestValid
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.namespaces.namespace import Namespace, status_of_os_error
from nvmeof.target.subsystem.persistent_events import watch

SECTION: Final = "self-test"
SEGMENT_MEMORY: Final = 1
SEGMENT_HEALTH: Final = 2
SEGMENT_MEDIA: Final = 7
PIECE_BYTES: Final = 4 << 20
SHORT_SAMPLES: Final = 64
"""How many pieces of a namespace a short test looks at."""
_MEMORY_BYTES: Final = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """One result. `valid` says which of the last four fields mean something; `segment`: 0 for none."""

    code: int
    result: int
    power_on_hours: int
    segment: int = 0
    valid: int = 0
    nsid: int = 0
    lba: int = 0
    status: int = 0  # SCT << 8 | SC


class _Failed(Exception):
    def __init__(self, segment: int, nsid: int = 0, lba: int | None = None, status: int = 0) -> None:
        super().__init__()
        self.segment = segment
        self.nsid = nsid
        self.lba = lba
        self.status = status


class _Removed(Exception):
    """The namespace of a test of one namespace was removed."""


@dataclass(slots=True)
class _Test:
    code: SelfTestCode
    nsids: tuple[int, ...]
    chosen: bool  # one namespace, named by the host
    cntlid: int
    aborted: SelfTestResult | None = None
    done_bytes: int = 0
    total_bytes: int = 1


class SelfTest:
    """`namespaces` is the subsystem's live table. `hours` returns the power-on hours, `healthy` is False while SMART
    warns."""

    def __init__(
        self,
        namespaces: dict[int, Namespace],
        metadata_store: MetadataStore,
        hours: Callable[[Runtime], int] = lambda runtime: 0,
    ) -> None:
        self._namespaces = namespaces
        self._metadata_store = metadata_store
        self._hours = hours
        self.healthy: Callable[[], bool] = lambda: True
        self.results: deque[Result] = deque(maxlen=SELF_TEST_RESULTS)  # the newest first
        self._test: _Test | None = None
        self._runtime: Runtime | None = None
        self._restore()

    def _restore(self) -> None:
        try:
            for each in reversed((self._metadata_store.get(SECTION) or {}).get("results", ())):
                self.results.appendleft(Result(*(int(value) for value in each)))
        except (AttributeError, TypeError, ValueError) as error:
            logger.warning("the stored self-test results cannot be read: %s", error)

    # The fields of the Device Self-test log page

    @property
    def running(self) -> SelfTestCode:
        """The test in progress."""
        return SelfTestCode.NONE if self._test is None else self._test.code

    @property
    def percent(self) -> int:
        """How much of it is done."""
        test = self._test
        return 0 if test is None else min(test.done_bytes * 100 // test.total_bytes, 99)

    def concerns(self, nsid: int) -> bool:
        """Return whether a test of this namespace is in progress."""
        return self._test is not None and nsid in self._test.nsids

    # Start and end

    def start(self, runtime: Runtime, code: SelfTestCode, nsids: list[int], *, chosen: bool, cntlid: int) -> None:
        """Begin a test; there must be none in progress."""
        assert self._test is None
        self._runtime = runtime
        test = self._test = _Test(code, tuple(nsids), chosen, cntlid)
        test.total_bytes = max(sum(self._bytes_of(test, nsid) for nsid in nsids), 1)
        self._keep()
        runtime.spawn(self._work(runtime, test))

    def abort(self, result: SelfTestResult) -> None:
        """End the test that is in progress, if there is one, for a reason."""
        test, runtime = self._test, self._runtime
        if test is None or runtime is None:
            return
        test.aborted = result
        self._end(runtime, test, Result(test.code, result, self._hours(runtime)))

    def controller_reset(self, cntlid: int) -> None:
        """End a short test of a controller that was reset or removed; an extended test goes on."""
        if self._test is not None and self._test.cntlid == cntlid and self._test.code is SelfTestCode.SHORT:
            self.abort(SelfTestResult.ABORTED_BY_RESET)

    def resume(self, runtime: Runtime) -> None:
        """Restart an extended test that the last process did not finish, on the namespaces that exist."""
        if self._test is not None:
            return
        try:
            stored = (self._metadata_store.get(SECTION) or {}).get("running")
            nsids = [int(nsid) for nsid in stored or () if int(nsid) in self._namespaces]
        except (AttributeError, TypeError, ValueError):
            return
        if nsids:
            self.start(runtime, SelfTestCode.EXTENDED, nsids, chosen=False, cntlid=0)

    def _end(self, runtime: Runtime, test: _Test, result: Result) -> None:
        if self._test is not test:
            return
        self._test = None
        self.results.appendleft(result)
        self._keep()

    def _keep(self) -> None:
        value: dict[str, Any] = {"results": [list(astuple(each)) for each in self.results]}
        if self._test is not None and self._test.code is SelfTestCode.EXTENDED:
            value["running"] = list(self._test.nsids)
        try:
            watch(self._metadata_store.put(SECTION, value), "the self-test results")
        except OSError as error:
            logger.error("the self-test results cannot be stored: %s", error.strerror or error)

    # The test

    async def _work(self, runtime: Runtime, test: _Test) -> None:
        hours = self._hours(runtime)
        try:
            self._check_memory()
            if not self.healthy():
                raise _Failed(SEGMENT_HEALTH)
            for nsid in test.nsids:
                await self._check_namespace(runtime, test, nsid)
            if not self.healthy():
                raise _Failed(SEGMENT_HEALTH)
        except _Failed as failure:
            valid = 0
            if failure.nsid:
                valid = SelfTestValid.NSID | SelfTestValid.SCT | SelfTestValid.SC
                valid |= SelfTestValid.FLBA if failure.lba is not None else 0
            self._end(
                runtime,
                test,
                Result(
                    test.code,
                    SelfTestResult.FAILED_SEGMENT,
                    hours,
                    failure.segment,
                    valid,
                    failure.nsid,
                    failure.lba or 0,
                    failure.status,
                ),
            )
        except _Removed:
            self._end(runtime, test, Result(test.code, SelfTestResult.ABORTED_BY_REMOVAL, hours))
        else:
            self._end(runtime, test, Result(test.code, SelfTestResult.SUCCESS, hours))

    @staticmethod
    def _check_memory() -> None:
        """Write a test pattern to memory and read it back."""
        pattern = bytes(range(256)) * (_MEMORY_BYTES // 256)
        copy = bytearray(pattern)
        if zlib.crc32(copy) != zlib.crc32(pattern) or copy != pattern:
            raise _Failed(SEGMENT_MEMORY)

    def _pieces(self, test: _Test, size_bytes: int) -> Iterator[tuple[int, int]]:
        count = -(-size_bytes // PIECE_BYTES)
        every = 1 if test.code is SelfTestCode.EXTENDED else max(count // SHORT_SAMPLES, 1)
        for number in range(0, count, every):
            offset = number * PIECE_BYTES
            yield offset, min(PIECE_BYTES, size_bytes - offset)

    def _bytes_of(self, test: _Test, nsid: int) -> int:
        size_bytes = self._namespaces[nsid].backend.capabilities.size_bytes
        return sum(length for _, length in self._pieces(test, size_bytes))

    async def _check_namespace(self, runtime: Runtime, test: _Test, nsid: int) -> None:
        namespace = self._namespaces.get(nsid)
        if namespace is None:
            if test.chosen:
                raise _Removed
            return
        for offset, length in self._pieces(test, namespace.backend.capabilities.size_bytes):
            if test.aborted is not None:
                return
            if self._namespaces.get(nsid) is not namespace:
                if test.chosen:
                    raise _Removed
                return
            await self._check_piece(namespace, offset, length)
            test.done_bytes += length
            await pause(runtime)

    async def _check_piece(self, namespace: Namespace, offset: int, length: int) -> None:
        shift = namespace.block_shift
        first, end = offset >> shift, (offset + length) >> shift
        for start, _, by_host in namespace.unreadable_blocks.ranges(first, end):
            if by_host:
                raise _Failed(SEGMENT_MEDIA, namespace.nsid, start, Status.UNRECOVERED_READ_ERROR)
        found = await find_unreadable(namespace, first, end)
        if found is not None:
            block, error = found
            status, _ = status_of_os_error(error, writing=False)
            raise _Failed(SEGMENT_MEDIA, namespace.nsid, block, status)


async def _readable(namespace: Namespace, first: int, end: int) -> OSError | None:
    shift = namespace.block_shift
    try:
        await settled(namespace.backend.verify(first << shift, (end - first) << shift))
    except OSError as error:
        return error
    return None


async def find_unreadable(namespace: Namespace, first: int, end: int) -> tuple[int, OSError] | None:
    """Return the first of these blocks that the backend cannot read, and the error; None when all can be read."""
    error = await _readable(namespace, first, end)
    if error is None:
        return None
    while end - first > 1:
        middle = (first + end) // 2
        left = await _readable(namespace, first, middle)
        if left is not None:
            end, error = middle, left
        else:
            first = middle
    if error.errno == errno.EIO:
        namespace.unreadable_blocks.fail(first, end)
    return first, error
