"""What a verb is: a method of a group with a name, whose signature says what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_args

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import CNTLID_MAX
from nvmeof.target.administration import REMOVE_SECONDS, Administration
from nvmeof.target.control.schema import Parameter, Range, Schema, object_schema, parameters_of
from nvmeof.target.document import VERSION, Document, TargetSettings, from_document
from nvmeof.target.server import Target
from nvmeof.target.subsystem.ana import STATE_WORDS
from nvmeof.target.subsystem.subsystem import Subsystem

F = TypeVar("F", bound=Callable[..., Any])

Facts: TypeAlias = dict[str, Any]
Table: TypeAlias = list[dict[str, Any]]
Texts: TypeAlias = list[str]

Subnqn = Annotated[str | None, "NQN of the subsystem; the first one unless given"]
Nsid = Annotated[int, Range(1, 0xFFFFFFFE), "namespace identifier"]
PortId = Annotated[int, Range(1, 0xFFFF), "Port ID"]
AnyPort = Annotated[int | None, Range(1, 0xFFFF), "Port ID; all ports unless given"]
HostNqn = Annotated[str, "NQN of the host"]
Group = Annotated[int, Range(1, 0xFFFF), "ANA group (ANAGRPID)"]
Cntlid = Annotated[int, Range(1, CNTLID_MAX), "controller identifier"]
Force = Annotated[bool, "cut what is in use at once, without letting its commands end"]
DrainSeconds = Annotated[float, Range(0, 3600), "the longest that commands in progress are waited for"]
AnaWord = Literal["optimized", "non-optimized", "inaccessible", "persistent-loss", "change"]
assert set(get_args(AnaWord)) == set(STATE_WORDS), "an ANA state has no word here"

DRAIN_SECONDS: Final = REMOVE_SECONDS
"""How long a removal waits for commands in progress unless told otherwise."""
_MARK: Final = "__control_verb__"
_SESSION: Final = "session"


@dataclass(frozen=True, slots=True)
class Mark:
    """What the decorator notes of a method: its name within the group, and what kind of verb it is."""

    name: str
    changes: bool
    secret: frozenset[str]


def verb(name: str, *, changes: bool = False, secret: Sequence[str] = ()) -> Callable[[F], F]:
    """Make a method of a group a verb. `changes`: calls are logged. `secret`: parameters that are not."""

    def marked(function: F) -> F:
        setattr(function, _MARK, Mark(name, changes, frozenset(secret)))
        return function

    return marked


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the control: what introspection tells of it, and what command lines are made from."""

    name: str
    text: str
    parameters: tuple[Parameter, ...]
    changes: bool
    secret: frozenset[str]
    takes_session: bool

    @property
    def summary(self) -> str:
        """The first sentence of its description."""
        return self.text.partition("\n\n")[0].replace("\n", " ")

    @property
    def schema(self) -> Schema:
        """JSON Schema of its parameters, as one object."""
        return object_schema(self.parameters)

    def described(self) -> Facts:
        """Return what introspection tells of the verb."""
        return {
            "name": self.name,
            "summary": self.summary,
            "description": self.text,
            "changes": self.changes,
            "params": self.schema,
        }


class VerbGroup:
    """The verbs of one kind of object. `prefix` comes before their names."""

    prefix = ""

    def __init__(self, target: Target) -> None:
        self._target = target

    @property
    def _administration(self) -> Administration:
        return self._target.administration

    def _subsystem(self, subnqn: str | None) -> Subsystem:
        """Return a subsystem; None: the first that exists. Raises `ConfigurationError`, `LocalProtocolError`."""
        if subnqn is None and self._target.subsystems:
            subnqn = next(iter(self._target.subsystems))
        if subnqn is None:
            raise ConfigurationError("the target has no subsystem: add one first")
        return self._target.subsystem(subnqn)

    def _nqn(self, subnqn: str | None) -> str:
        return self._subsystem(subnqn).nqn

    @classmethod
    def own_verbs(cls) -> dict[str, tuple[Verb, str]]:
        """Return the verbs of the group by their whole names, each with the name of its method."""
        found = {}
        for attribute, function in vars(cls).items():
            mark = getattr(function, _MARK, None)
            if isinstance(mark, Mark):
                name = f"{cls.prefix}.{mark.name}" if cls.prefix else mark.name
                text = inspect.getdoc(function) or ""
                parameters = parameters_of(function, frozenset({"self", _SESSION}))
                session = _SESSION in inspect.signature(function).parameters
                found[name] = (Verb(name, text, parameters, mark.changes, mark.secret, session), attribute)
        return found


def settings_of(subsystems: Sequence[Document] = (), ports: Sequence[Document] = ()) -> TargetSettings:
    """Return the settings of some entries, as a configuration file has them. Raises `ConfigurationError`."""
    return from_document({"version": VERSION, "subsystems": list(subsystems), "ports": list(ports)})


def entry(given: Mapping[str, Any], settings: Mapping[str, Any] | None) -> Document:
    """Return an entry of a configuration: what was given, but for None, beside further `settings`.

    Raises `ConfigurationError` for what is given twice.
    """
    named = {name: value for name, value in given.items() if value is not None}
    twice = sorted(set(named) & set(settings or {}))
    if twice:
        raise ConfigurationError(f"{twice[0]} is given twice: as a parameter and in the settings")
    return {**(settings or {}), **named}


def removed(ended: Sequence[str] = (), cut: Sequence[str] = (), left: Sequence[str] = ()) -> Facts:
    """Return what a removal has done: associations that it ended, commands that it cut, and what goes on still."""
    return {"ended": list(ended), "cut": list(cut), "left": list(left)}
