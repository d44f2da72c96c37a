"""Permits: what was found out about a command once, and holds for others like it until it is withdrawn."""

from __future__ import annotations


class Permit:
    """Good for one controller and one namespace, as long as it is `valid`.

    A queue that holds one need not check again what does not depend on a command's own fields: that the controller is
    ready, that the namespace is attached, as large as it was, accessible, writable, and not reserved for others.
    """

    __slots__ = ("valid",)

    def __init__(self) -> None:
        self.valid = True


class Permits:
    """Those that depend on one thing, to be withdrawn together when it changes."""

    __slots__ = ("_given",)

    def __init__(self) -> None:
        self._given: list[Permit] = []

    def add(self, permit: Permit) -> None:
        """One more depends on it."""
        self._given = [each for each in self._given if each.valid]
        self._given.append(permit)

    def withdraw(self) -> None:
        """It has changed: everything has to be checked anew."""
        for permit in self._given:
            permit.valid = False
        self._given.clear()
