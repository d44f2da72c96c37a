"""Admission tokens: results of admission checks that hold for like commands until they are invalidated."""

from __future__ import annotations


class AdmissionToken:
    """Result of the admission checks for one controller and one namespace, as long as it is `valid`.

    A queue that holds one need not check again what does not depend on a command's own fields: that the controller is
    ready, that the namespace is attached, as large as it was, accessible, writable, and not reserved for others.
    """

    __slots__ = ("valid",)

    def __init__(self) -> None:
        self.valid = True


class AdmissionTokens:
    """All admission tokens that depend on one object; invalidated together when it changes."""

    __slots__ = ("_given",)

    def __init__(self) -> None:
        self._given: list[AdmissionToken] = []

    def add(self, admission_token: AdmissionToken) -> None:
        """Add a token that depends on the object."""
        self._given = [each for each in self._given if each.valid]
        self._given.append(admission_token)

    def withdraw(self) -> None:
        """Invalidate all tokens after a change: commands have to be checked again."""
        for admission_token in self._given:
            admission_token.valid = False
        self._given.clear()
