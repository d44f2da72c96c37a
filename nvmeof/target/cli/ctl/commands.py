"""The commands of ``ctl``, made from the verbs: a parameter that must be given is an argument, others are options."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from nvmeof.cli.tables import print_json
from nvmeof.cli.types import AnyType, Number, Seconds
from nvmeof.target.cli.ctl.calls import call, client, complete, run
from nvmeof.target.cli.ctl.local import local
from nvmeof.target.cli.ctl.results import print_result
from nvmeof.target.cli.ctl.top import top_command
from nvmeof.target.cli.ctl.watch import watch_command
from nvmeof.target.control.control import GROUPS, all_verbs
from nvmeof.target.control.schema import Parameter
from nvmeof.target.control.verbs import Verb
from nvmeof.target.control.where import VARIABLE

_SHORT: Final = {"subnqn": "-n", "force": "-f"}
_OUTPUT: Final = click.Option(
    ["-o", "--output-format", "output"],
    type=click.Choice(["normal", "json"]),
    default="normal",
    show_default=True,
    help="Form of what is shown.",
)
_MADE_HERE: Final = frozenset({"watch"})
"""Verbs with commands that are more than a call."""


class JsonObject(AnyType):
    """An object, as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the object of a text. Fails for anything else."""
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self.fail(f'{value!r} is no JSON object such as {{"model": "x"}}', param, ctx)
        return found


@click.group("ctl")
@click.option(
    "-s",
    "--socket",
    metavar="PATH",
    envvar=VARIABLE,
    help=f"The target's --control socket; also {VARIABLE} in the environment.  [default: that of --control auto]",
)
def ctl_group(socket: str | None) -> None:
    """Show and change a target that runs, through its --control socket.

    The verbs, one by one, are in docs/control.md; how they are used is in docs/howto/control.md.
    """


def _kinds(parameter: Parameter) -> list[str]:
    kinds = parameter.schema.get("type", "string")
    return [each for each in (kinds if isinstance(kinds, list) else [kinds]) if each != "null"]


def _type(parameter: Parameter) -> AnyType:
    schema, kinds = parameter.schema, _kinds(parameter)
    if "enum" in schema:
        return click.Choice([each for each in schema["enum"] if each is not None])
    if kinds == ["integer"]:
        return Number(schema.get("minimum", 0), schema.get("maximum"))
    if kinds == ["number"]:
        return Seconds(schema.get("minimum", 0.0))
    return JsonObject() if kinds == ["object"] else click.STRING


def _click_parameter(parameter: Parameter) -> click.Parameter:
    name = parameter.name
    completed = None if "enum" in parameter.schema else complete  # a choice completes itself
    if parameter.required:
        metavar = None if "enum" in parameter.schema else name.upper()
        return click.Argument([name], type=_type(parameter), metavar=metavar, shell_complete=completed)
    option = f"--{name.replace('_', '-')}"
    declared = [*([_SHORT[name]] if name in _SHORT else []), option, name]
    text = f"{parameter.text[:1].upper()}{parameter.text[1:]}."
    kinds = _kinds(parameter)
    if kinds == ["boolean"]:
        if parameter.default:
            declared = [f"{option}/--no-{name.replace('_', '-')}", name]
            return click.Option(declared, default=True, help=text, show_default=True)
        return click.Option(declared, is_flag=True, help=text)
    if kinds == ["array"]:
        return click.Option(declared, multiple=True, help=f"{text} Repeatable.", shell_complete=complete)
    default = parameter.default if kinds == ["number"] or "enum" in parameter.schema else None
    return click.Option(
        declared, type=_type(parameter), help=text, default=default, show_default=default is not None,
        shell_complete=completed,
    )  # fmt: skip


def _arguments(verb: Verb, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call: what was left out is left out there too."""
    arguments = {}
    for parameter in verb.parameters:
        value = given[parameter.name]
        if isinstance(value, tuple):
            value = list(value) or None
        if value is not None and (parameter.required or value != parameter.default):
            arguments[parameter.name] = local(verb, parameter.name, value)
    return arguments


def _command(verb: Verb) -> click.Command:
    def called(output: str, **given: Any) -> None:
        result = run(call(client(), verb.name, _arguments(verb, given)))
        if output == "json":
            print_json(result)
        else:
            print_result(verb.name, result)

    parameters = [*map(_click_parameter, verb.parameters), _OUTPUT]
    return click.Command(verb.name.rpartition(".")[2], callback=called, params=parameters, help=verb.text)


def _fill() -> None:
    summaries = {group.prefix: (group.__doc__ or "").strip() for group in GROUPS if group.prefix}
    groups = {prefix: click.Group(prefix, help=text) for prefix, text in summaries.items()}
    for verb in all_verbs():
        prefix, _, _ = verb.name.rpartition(".")
        if verb.name not in _MADE_HERE:
            (groups[prefix] if prefix else ctl_group).add_command(_command(verb))
    for group in groups.values():
        ctl_group.add_command(group)
    ctl_group.add_command(watch_command)
    ctl_group.add_command(top_command)


@ctl_group.command("call")
@click.argument("verb")
@click.argument("params", metavar="[PARAMS]", type=JsonObject(), required=False)
def call_command(verb: str, params: dict[str, Any] | None) -> None:
    """Call any verb, also one that a newer target has. PARAMS is a JSON object; so is what is shown."""
    print_json(run(call(client(), verb, params or {})))


_fill()
COMMANDS: Final = (ctl_group,)
