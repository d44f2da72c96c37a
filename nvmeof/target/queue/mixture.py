"""Reads of one batch that are like different templates: by template, with their places in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nvmeof.target.queue.deferred import CommandTemplate


@dataclass(slots=True, eq=False)
class Group:
    """Reads that are like one template. `places`: which of all Reads of the run each of them is."""

    template: CommandTemplate
    cids: list[int] = field(default_factory=list)
    slbas: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


class Mixture:
    """Collects Reads while they are like one template for some commands, and like another one for the next."""

    __slots__ = ("_by_template", "_count", "groups")

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._by_template: dict[int, Group] = {}  # by its identity
        self._count = 0

    def change(
        self, template: CommandTemplate | None, cids: list[int], slbas: list[int], other: CommandTemplate
    ) -> tuple[list[int], list[int]]:
        """Note Reads that are like ``template``; return the lists for those to come, that are like another one.

        ``cids`` and ``slbas`` are the lists that were returned before, or new ones.
        """
        if template is not None and cids:
            group = self._group(template)
            if group.cids is not cids:
                group.cids, group.slbas = cids, slbas
            new = len(cids) - len(group.places)
            group.places.extend(range(self._count, self._count + new))
            self._count += new
        group = self._group(other)
        return group.cids, group.slbas

    def _group(self, template: CommandTemplate) -> Group:
        group = self._by_template.get(id(template))
        if group is None:
            group = self._by_template[id(template)] = Group(template)
            self.groups.append(group)
        return group


def in_order(groups: list[Group]) -> Iterator[tuple[CommandTemplate, int, int]]:
    """Yield template, CID and SLBA of each Read, in the order of their arrival."""
    found = [
        (place, group.template, cid, slba)
        for group in groups
        for place, cid, slba in zip(group.places, group.cids, group.slbas, strict=True)
    ]
    for _, template, cid, slba in sorted(found, key=lambda each: each[0]):
        yield template, cid, slba
