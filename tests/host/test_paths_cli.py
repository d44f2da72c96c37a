"""Figures and view of `paths watch`, and errors of the paths commands."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nvmeof.host.__main__ import main
from nvmeof.host.cli.bench import _subflow_rows
from nvmeof.host.cli.watch import BAR_WIDTH, Sampler, bar, view
from nvmeof.transport import Address, ConnectionInfo, SubflowInfo
from nvmeof.transport.paths import netlink


def connection(*counts: tuple[int, int], token: int = 1, backup: bool = False) -> ConnectionInfo:
    flows = tuple(
        SubflowInfo(
            local=Address(f"10.1.{n}.2", 1000 + n),
            peer=Address("10.1.1.1", 4420),
            state="ESTABLISHED",
            bytes_sent=sent,
            bytes_received=received,
            backup=backup,
            congestion="cubic",
        )
        for n, (sent, received) in enumerate(counts, 1)
    )
    here = Address("10.1.1.2", 1001)
    there = Address("10.1.1.1", 4420)
    return ConnectionInfo(transport="mptcp", protocol="mptcp", local=here, peer=there, token=token, subflows=flows)


def test_rates_and_shares() -> None:
    sampler = Sampler()
    (first,) = sampler.take([connection((100, 0), (0, 0))], 10.0)
    assert [flow.rate for flow in first.flows] == [0, 0]
    (second,) = sampler.take([connection((300, 200), (0, 400))], 12.0)
    assert [(flow.out_rate, flow.in_rate) for flow in second.flows] == [(100, 100), (0, 200)]
    assert [flow.share for flow in second.flows] == [0.5, 0.5]
    assert (second.out_rate, second.in_rate) == (100, 300)
    facts = second.as_dict()
    assert facts["subflows"][1]["received_bytes_per_second"] == 200
    json.dumps(facts)


def test_a_new_subflow_has_no_rate_yet_and_counters_never_run_backwards() -> None:
    sampler = Sampler()
    sampler.take([connection((500, 0))], 1.0)
    (rates,) = sampler.take([connection((400, 0), (900, 900))], 2.0)
    assert [flow.rate for flow in rates.flows] == [0, 0]
    assert [flow.share for flow in rates.flows] == [0, 0]


@given(st.floats(-1, 2))
def test_bars_have_one_width(share: float) -> None:
    assert len(bar(share)) == BAR_WIDTH


def test_bars_grow() -> None:
    assert bar(0).strip() == ""
    assert bar(0.5) == "█" * (BAR_WIDTH // 2) + " " * (BAR_WIDTH // 2)
    assert bar(1) == "█" * BAR_WIDTH


def test_the_view_names_every_subflow() -> None:
    sampler = Sampler()
    sampler.take([connection((0, 0), (0, 0), backup=True)], 0.0)
    rates = sampler.take([connection((1_000_000, 0), (3_000_000, 0), backup=True)], 1.0)
    console = Console(width=200, record=True, file=None)
    with console.capture() as captured:
        console.print(view(rates))
        console.print(view([]))
    text = captured.get()
    for words in ("10.1.1.2:1001 - 10.1.1.1:4420", "10.1.2.2:1002", "25%", "75%", "backup", "cubic", "3.00 MB"):
        assert words in text
    assert "no MPTCP connection" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paths", "add", "nowhere"], "is not an IP address"),
        (["paths", "add", "192.0.2.77"], "no interface of this machine has the address 192.0.2.77"),
        (["paths", "limits", "9,9"], "limits of MPTCP are 0 to 8"),
        (["paths", "limits", "many"], "are no limits"),
        (["paths", "backup", "192.0.2.77"], "is no MPTCP endpoint here"),
        (["paths", "remove", "192.0.2.77"], "is no MPTCP endpoint here"),
        (["paths", "schedulers", "--set", "fastest"], "there is no packet scheduler 'fastest'"),
        (["paths", "managers", "--set", "me"], "there is no path manager 'me'"),
        (
            ["bench", "-t", "tcp", "-a", "192.0.2.1", "-n", "nqn.2026-01.io.nvmeof:target", "--mptcp-subflow", "auto"],
            "extra paths need the transport mptcp",
        ),
    ],
)
def test_bad_input_gets_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not netlink.available():
        pytest.skip("pip install 'nvmeof-mptcp[mptcp]'")
    code = main(arguments)
    said = capsys.readouterr().err.strip()
    assert code in (1, 2)
    assert words in said
    assert len(said.splitlines()) == 1


def test_the_benchs_report_has_a_line_per_subflow() -> None:
    info = connection((1000, 2_000_000), (500, 6_000_000), backup=True).as_dict()
    first, second = _subflow_rows(info["subflows"])
    assert first[:5] == ("  10.1.1.2:1001 - 10.1.1.1:4420", "established backup", "2.00 MB", "1.00 kB", "25%")
    assert second[4] == "75%"
    assert _subflow_rows([]) == []
