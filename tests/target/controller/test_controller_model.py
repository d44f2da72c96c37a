"""Any sequence of writes of CC, NSSR and NSSD against a model of the specification."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.spec.properties import CC_OFFSET, CSTS_OFFSET, NSSD_NORMAL, NSSD_OFFSET, NSSR_OFFSET, NSSR_RESET
from nvmeof.spec.status import Status
from nvmeof.target.core.states import ControllerState
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.harness import Target

FIXED_WHEN_ENABLED = 0x3FF0  # CSS, MPS, AMS
WRITABLE = 0x00FFFFF1


@dataclass
class Model:
    """The model of a controller. Two of them share `whole`, the subsystem's state: SHST of a subsystem shutdown."""

    cc: int = 0
    ready: bool = False
    failed: bool = False
    shst: int = 0
    whole: int = 0
    reset_seen: bool = False

    @property
    def csts(self) -> int:
        shst = self.whole or self.shst
        return self.ready | self.failed << 1 | shst << 2 | self.reset_seen << 4 | bool(self.whole) << 6

    def write_cc(self, value: int) -> bool:
        """Return whether the write is accepted. Shutdowns complete at once: memory has nothing to flush."""
        new, shn, old_shn = value & WRITABLE, value >> 14 & 3, self.cc >> 14 & 3
        enabled, enable = self.cc & 1, new & 1
        if shn == 3 or (enabled and enable and (self.cc ^ new) & FIXED_WHEN_ENABLED):
            return False
        self.cc = new
        if enabled and not enable:
            self.ready, self.failed, self.shst = False, False, 0
        if enable and not enabled:
            self.shst = self.shst if shn else 0
            if not self.shst and not self.whole:
                good = new >> 4 & 7 in (0, 6) and not new >> 7 & 0x7F and new >> 16 & 0xFF in (0, 0x46, 0x40, 0x06)
                self.ready, self.failed = good, not good
        if shn and (not old_shn or (enabled and not enable)) and not self.whole:
            self.shst = 2
        return True

    def state(self) -> ControllerState:
        if self.failed:
            return ControllerState.FAILED
        if self.shst or self.whole:
            return ControllerState.SHUTDOWN
        return ControllerState.READY if self.ready else ControllerState.DISABLED


CC = st.builds(
    lambda en, css, mps, ams, shn, sizes, rest: en | css << 4 | mps << 7 | ams << 11 | shn << 14 | sizes << 16 | rest,
    st.integers(0, 1),
    st.sampled_from([6, 6, 6, 0, 7, 1]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.sampled_from([0x46, 0x46, 0x46, 0, 0x40, 0x47]),
    st.sampled_from([0, 0, 0xFF00000E]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("cc"), st.integers(0, 1), CC),
        st.tuples(st.just("nssr"), st.integers(0, 1), st.sampled_from([NSSR_RESET, 0, 1])),
        st.tuples(st.just("nssd"), st.integers(0, 1), st.sampled_from([NSSD_NORMAL, 0, 0])),
        st.tuples(st.just("csts"), st.integers(0, 1), st.sampled_from([1 << 4, 0xFFFFFFEF])),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_any_sequence_of_property_writes(steps):
    target = Target(Ramdisk("64K"))
    queues = [target.queue(), target.queue()]
    models = [Model(), Model()]
    for queue in queues:
        queue.connect()
    for what, which, value in steps:
        queue, model = queues[which], models[which]
        if what == "cc":
            taken = model.write_cc(value)
            assert queue.set_property(CC_OFFSET, value).status == (0 if taken else Status.INVALID_FIELD)
        elif what == "csts":
            model.reset_seen &= not value & 1 << 4
            assert queue.set_property(CSTS_OFFSET, value).status == 0
        elif what == "nssd":
            assert queue.set_property(NSSD_OFFSET, value).status == 0
            for each in models:
                each.whole = 2 if value else each.whole
        else:
            assert queue.set_property(NSSR_OFFSET, value).status == 0
            for index in range(2) if value == NSSR_RESET else ():
                models[index] = Model(reset_seen=True)
        for each, model in zip(queues, models, strict=True):
            assert each.csts == model.csts and each.get_property(CC_OFFSET).dw0 == model.cc
            assert each.ctx.state is model.state() and not each.closed
