"""The namespaces that an association's commands reach: a projection with an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nvmeof.target.core.admission import AdmissionToken
from nvmeof.target.namespaces.namespace import Namespace


class NamespaceTable(dict[int, Namespace]):
    """Active namespaces by NSID, in their order. Queues hold on to the table, which is changed in place.

    It is changed as a whole, by ``pause``, ``apply`` and ``resume`` in this order, the manner of SPDK's poll groups.
    While it is paused no command begins: queues hold what comes, and ask with `when_resumed` to be called. `epoch`
    is the number of the projection that holds, and counts up with each change.

    A token of `admission_token` holds for one epoch at most, so that to look at it is to compare epochs.
    """

    __slots__ = ("_source", "_tokens", "_waiting", "epoch", "paused")

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.paused = False
        self._source: Mapping[int, Namespace] | None = None
        self._tokens: dict[int, AdmissionToken] = {}
        self._waiting: list[Callable[[], None]] = []

    def pause(self) -> None:
        """Let no command begin, and withdraw what commands were admitted by. Harmless when repeated."""
        self.paused = True
        for token in self._tokens.values():
            token.valid = False
        self._tokens.clear()

    def apply(self, epoch: int, namespaces: Mapping[int, Namespace]) -> None:
        """Take a projection over; the very mapping of the epoch before stands for the same namespaces.

        Raises `ValueError` while commands may begin, and for an epoch that has passed.
        """
        if not self.paused:
            raise ValueError("a namespace table is changed while it is not paused: call pause() first")
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} of a namespace table comes after epoch {self.epoch}: count up")
        if namespaces is not self._source:
            self.clear()
            self.update(sorted(namespaces.items()))
            self._source = namespaces
        self.epoch = epoch

    def resume(self) -> None:
        """Let commands begin again: those that were held are called for, in their order."""
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def when_resumed(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, when the table is no longer paused; a call that is registered already is not repeated."""
        if call not in self._waiting:
            self._waiting.append(call)

    def admission_token(self, namespace: Namespace) -> AdmissionToken:
        """Return the token for Reads and Writes of a namespace, one of which has just passed all checks.

        It is withdrawn with the epoch, and when something of the namespace itself changes that checks depend on.
        """
        token = self._tokens.get(namespace.nsid)
        if token is None or not token.valid:
            token = self._tokens[namespace.nsid] = AdmissionToken()
            namespace.admission_tokens.add(token)
        return token
