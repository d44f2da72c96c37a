"""Targets as URLs: reading, refusing, and writing what is read again."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof import Ramdisk, Target, connect, connect_multipath, discover
from nvmeof.address import Address
from nvmeof.errors import ConfigurationError
from nvmeof.host.options import ConnectKeywords, RecoveryKeywords
from nvmeof.host.url import TargetUrl, Value, is_url, option_kinds

NQN = "nqn.2026-01.org.example:disk"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"nvme+mptcp://192.0.2.1:4420/{NQN}?nsid=1", TargetUrl("mptcp", (Address("192.0.2.1", 4420),), NQN, 1)),
        (f"nvme+tcp://host/{NQN}", TargetUrl("tcp", (Address("host", 0),), NQN)),
        ("nvme+tcp://host", TargetUrl("tcp", (Address("host", 0),))),
        ("nvme+tcp://host/?nsid=0x10", TargetUrl("tcp", (Address("host", 0),), None, 16)),
        (f"nvme+tcp://[2001:DB8:0::7]:1/{NQN}", TargetUrl("tcp", (Address("2001:db8::7", 1),), NQN)),
        ("nvme+tcp://[fe80::1%25eth0]/a", TargetUrl("tcp", (Address("fe80::1%eth0", 0),), "a")),
        ("nvme+tcp://[fe80::1%eth0]:9/a", TargetUrl("tcp", (Address("fe80::1%eth0", 9),), "a")),
        ("nvme+tcp://[fe80::1%25a%2Fb]/a", TargetUrl("tcp", (Address("fe80::1%a/b", 0),), "a")),
        ("nvme+tcp://h/a%2Fb%3Fc%23d%25e", TargetUrl("tcp", (Address("h", 0),), "a/b?c#d%e")),
        ("nvme+tcp://h/a/b", TargetUrl("tcp", (Address("h", 0),), "a/b")),
        ("nvme+tcp://h/%C3%A4+b", TargetUrl("tcp", (Address("h", 0),), "ä+b")),
        (
            "nvme+tcp://h/a?path=10.0.0.2:4421&path=[::1]&hdr-digest&ctrl_loss_tmo=-1&queue_size=0x40",
            TargetUrl(
                "tcp",
                (Address("h", 0), Address("10.0.0.2", 4421), Address("::1", 0)),
                "a",
                None,
                {"hdr_digest": True, "ctrl_loss_tmo": -1.0, "queue_size": 64},
            ),
        ),
        ("nvme+tcp://h/a?mptcp_subflow=10.0.0.1,backup", TargetUrl(
            "tcp", (Address("h", 0),), "a", None, {"mptcp_subflow": ("10.0.0.1,backup",)})),
    ],
)  # fmt: skip
def test_a_url_is_read(text: str, expected: TargetUrl) -> None:
    assert TargetUrl.parse(text) == expected
    assert TargetUrl.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("192.0.2.1", "is not a target's URL"),
        ("nvme://host/a", "begins with nvme\\+mptcp:// or nvme\\+tcp://"),
        ("NVME+TCP://host/a", "lower case"),
        ("nvme+tcp:///a", "names no host"),
        ("nvme+tcp://h:/a", "no port after the colon"),
        ("nvme+tcp://h:0/a", "port 0"),
        ("nvme+tcp://h:65536/a", "not a port"),
        ("nvme+tcp://u@h/a", "no user"),
        ("nvme+tcp://fe80::1/a", "without brackets"),
        ("nvme+tcp://[fe80::1/a", "no complete"),
        ("nvme+tcp://[host]/a", "no IPv6 address"),
        ("nvme+tcp://[2001:db8::1%25eth0]/a", "not link-local"),
        ("nvme+tcp://1.2.3/a", "not an IPv4 address"),
        ("nvme+tcp://h/a%", "without two hexadecimal digits"),
        ("nvme+tcp://h/a%zz", "without two hexadecimal digits"),
        ("nvme+tcp://h/%ff", "not UTF-8"),
        ("nvme+tcp://h/a%0a", "control characters"),
        ("nvme+tcp://h/a#b", "write it as %23"),
        ("nvme+tcp://h/a?nsid=0", "is not a namespace"),
        ("nvme+tcp://h/a?nsid=4294967295", "is not a namespace"),
        ("nvme+tcp://h/a?nsid=1&nsid=1", "gives nsid twice"),
        ("nvme+tcp://h/a?tos=1&tos=1", "gives tos twice"),
        ("nvme+tcp://h/a?nsd=1", "unknown option 'nsd'"),
        ("nvme+tcp://h/a?queue_size=many", "not a whole number"),
        ("nvme+tcp://h/a?hdr_digest=maybe", "not 1 or 0"),
        ("nvme+tcp://h/a?io_timeout=nan", "not a number"),
        ("nvme+tcp://h/a?path=4420", "without an address"),
        ("nvme+tcp://h/a?path=i&path=j&host_iface=e&host_iface=f", "once for all, or for each"),
        (f"nvme+tcp://h/{'a' * 224}", "longer than 223 bytes"),
    ],
)
def test_an_invalid_url_is_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        TargetUrl.parse(text)
    assert "\n" not in str(caught.value)


names = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,9})?", fullmatch=True)
ODD = "aZ0 ä€𝄞%/?#&=+@:;,'\"()[]{}<>|\\^`~$!*._-"
interfaces = st.text([each for each in ODD if each not in " %/:[]"], min_size=1, max_size=15)
link_local = st.builds(
    lambda number, scope: f"{ipaddress.IPv6Address((0xFE80 << 112) | number)}%{scope}",
    st.integers(0, (1 << 64) - 1),
    interfaces,
)
hosts = st.one_of(
    names,
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda each: each.ipv4_mapped is None).map(str),
    link_local,
)
nqns = st.text(ODD, min_size=1, max_size=50)
places = st.builds(Address, hosts, st.integers(0, 65535))
texts = st.text(ODD, max_size=20)
VALUES = {
    bool: st.booleans(),
    int: st.integers(-(1 << 40), 1 << 40),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: texts,
}


@st.composite
def urls(draw: st.DrawFn) -> TargetUrl:
    paths = tuple(draw(st.lists(places, min_size=1, max_size=3)))
    options: dict[str, Value] = {}
    for name in draw(st.lists(st.sampled_from(sorted(option_kinds())), unique=True, max_size=4)):
        if name == "mptcp_subflow":
            options[name] = tuple(draw(st.lists(texts, min_size=1, max_size=3)))
        elif name in ("host_traddr", "host_iface"):
            count = draw(st.sampled_from([1, len(paths)]))
            options[name] = tuple(draw(st.lists(texts, min_size=count, max_size=count)))
        else:
            options[name] = draw(VALUES[option_kinds()[name]])
    transport = draw(st.sampled_from(["tcp", "mptcp", "memory"]))
    nsid = draw(st.none() | st.integers(1, 0xFFFFFFFE))
    return TargetUrl(transport, paths, draw(st.none() | nqns), nsid, options)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@given(urls())
def test_a_written_url_is_read_unchanged(url: TargetUrl) -> None:
    text = str(url)
    assert is_url(text) and text.isascii() and " " not in text
    assert TargetUrl.parse(text) == url


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (text, f"nvme+tcp://{text}", f"nvme+tcp://h/a?{text}", f"nvme+tcp://h/{text}"):
        try:
            url = TargetUrl.parse(candidate)
        except ConfigurationError:
            continue
        assert TargetUrl.parse(str(url)) == url


async def test_connect_discover_and_connect_multipath_take_a_url() -> None:
    async with Target(namespaces=[Ramdisk("1M"), Ramdisk("1M")], trtype="tcp", listen="127.0.0.1:0") as target:
        place = f"nvme+tcp://127.0.0.1:{target.address.port}"
        async with await connect(f"{place}/{target.subnqn}?nsid=2&queue_size=32&hdr_digest") as controller:
            assert (controller.options.queue_size, controller.options.hdr_digest) == (32, True)
        async with await connect(f"{place}/nqn.2026-01.org.example:other", subnqn=target.subnqn) as controller:
            assert controller.options.subnqn == target.subnqn  # an argument has precedence over the URL
        assert {entry.subnqn for entry in await discover(place)} >= {target.subnqn}
        url = f"{place}/{target.subnqn}?path=localhost:{target.address.port}&iopolicy=round-robin&reconnect_delay=1"
        async with await connect_multipath(url) as subsystem:
            assert (len(subsystem.paths), subsystem.iopolicy) == (2, "round-robin")
            assert subsystem.recovery.reconnect_delay == 1
        with pytest.raises(ConfigurationError, match="give one URL"):
            await connect_multipath(url, "127.0.0.1")


def test_options_are_those_of_connecting_and_of_recovery() -> None:
    kinds = option_kinds()
    assert all(kind in (bool, int, float, str) for kind in kinds.values())
    objects = {"dhchap"}
    assert {*ConnectKeywords.__annotations__, *RecoveryKeywords.__annotations__} - objects <= kinds.keys()


def test_a_url_of_one_path_gives_the_arguments_of_connect() -> None:
    url = TargetUrl.parse(f"nvme+tcp://h/{NQN}?nsid=2&host_iface=eth0&queue_size=32")
    assert url.keywords() == {
        "traddr": "h", "trsvcid": None, "transport": "tcp", "subnqn": NQN, "host_iface": "eth0", "queue_size": 32,
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="give dhchap= in a program"):
        TargetUrl.parse(f"nvme+tcp://h/{NQN}?dhchap_secret=x").keywords()
    for more in ("path=i", "iopolicy=numa", "ctrl_loss_tmo=5"):
        with pytest.raises(ConfigurationError, match="connect_multipath"):
            TargetUrl.parse(f"nvme+tcp://h/{NQN}?{more}").keywords()
