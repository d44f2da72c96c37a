"""The namespace table: pause, apply an epoch, resume; and commands admitted before."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvmeof.target.core.admission import AdmissionToken
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.projection.namespace_table import NamespaceTable
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.projection.test_io_context import make


def test_a_table_is_changed_only_while_it_is_paused():
    table, one = NamespaceTable(), make(1, Ramdisk("1M"))
    with pytest.raises(ValueError, match="not paused"):
        table.apply(1, {1: one})
    table.pause()
    table.apply(3, {1: one})
    for epoch in (3, 2, 0):
        with pytest.raises(ValueError, match="count up"):
            table.apply(epoch, {})
    assert dict(table) == {1: one} and table.epoch == 3


def test_namespaces_are_in_the_order_of_their_nsids():
    table, some = NamespaceTable(), {nsid: make(nsid, Ramdisk("1M")) for nsid in (7, 2, 5)}
    table.pause()
    table.apply(1, some)
    assert list(table) == [2, 5, 7]


def test_the_same_mapping_is_not_taken_apart_again():
    table, some = NamespaceTable(), {2: make(2, Ramdisk("1M")), 1: make(1, Ramdisk("1M"))}
    for epoch in (1, 2):
        table.pause()
        table.apply(epoch, some)
        assert list(table) == [1, 2] and table.epoch == epoch
    table.pause()
    table.apply(3, {2: some[2]})
    assert list(table) == [2]


class Epochs(RuleBasedStateMachine):
    """Tokens and waiting queues against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = {nsid: make(nsid, Ramdisk("64K")) for nsid in range(1, 5)}
        self.table = NamespaceTable()
        self.tokens: list[tuple[AdmissionToken, int, Namespace]] = []  # with its epoch
        self.withdrawn: set[int] = set()  # of a token, by id
        self.called: list[int] = []
        self.waiting: list[int] = []
        self.number = 0

    @rule(nsids=st.sets(st.integers(1, 4)), step=st.integers(1, 3))
    def change(self, nsids: set[int], step: int) -> None:
        self.table.pause()
        assert not self.called
        self.table.apply(self.table.epoch + step, {nsid: self.pool[nsid] for nsid in nsids})
        assert list(self.table) == sorted(nsids) and not self.called, "no queue is called before the table is resumed"
        self.table.resume()
        assert self.called == self.waiting
        self.called, self.waiting = [], []

    @rule()
    def pause(self) -> None:
        self.table.pause()

    @rule()
    def resume(self) -> None:
        self.table.resume()
        assert self.called == self.waiting
        self.called, self.waiting = [], []

    @precondition(lambda self: self.table.paused)
    @rule()
    def wait(self) -> None:
        self.number += 1
        number = self.number

        def call() -> None:
            self.called.append(number)

        self.table.when_resumed(call)
        self.table.when_resumed(call)
        self.waiting.append(number)

    @precondition(lambda self: self.table and not self.table.paused)
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        namespace = self.table[data.draw(st.sampled_from(sorted(self.table)))]
        token = self.table.admission_token(namespace)
        assert token.valid and self.table.admission_token(namespace) is token
        self.tokens.append((token, self.table.epoch, namespace))

    @rule(nsid=st.integers(1, 4))
    def namespace_changes(self, nsid: int) -> None:
        self.withdrawn.update(id(token) for token, _, namespace in self.tokens if namespace.nsid == nsid)
        self.pool[nsid].admission_tokens.withdraw()

    @invariant()
    def a_token_holds_for_its_epoch(self) -> None:
        for token, epoch, _ in self.tokens:
            if token.valid:
                assert epoch == self.table.epoch and not self.table.paused and id(token) not in self.withdrawn
        if not self.table.paused:
            current = {id(token) for token, _, _ in self.tokens if token.valid}
            assert len(current) <= len(self.table)


TestEpochs = Epochs.TestCase
