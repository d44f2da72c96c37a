import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.persistent_events import (
    CHANGE_NAMESPACE,
    EVENT_HEADER,
    FORMAT_COMPLETION,
    FORMAT_START,
    HARDWARE_ERROR,
    HEADER,
    RESET_INFORMATION,
    SANITIZE_COMPLETION,
    SANITIZE_START,
    TIMESTAMP_CHANGE,
    EventType,
    PersistentEvent,
    parse_events,
    supported_events,
)
from nvmeof.wire import build, layout


def test_sizes_and_offsets():
    assert HEADER.sizeof() == 512
    assert layout(HEADER) == {
        "lid": (0, 1),
        "tnev": (4, 4),
        "tll": (8, 8),
        "lrev": (16, 1),
        "lhl": (18, 2),
        "tstmp": (20, 8),
        "poh": (28, 16),
        "pwrcc": (44, 8),
        "vid": (52, 2),
        "ssvid": (54, 2),
        "sn": (56, 20),
        "mn": (76, 40),
        "subnqn": (116, 256),
        "gnum": (372, 2),
        "rci": (374, 4),
        "seb": (480, 32),
    }
    assert layout(EVENT_HEADER) == {
        "etype": (0, 1),
        "etrev": (1, 1),
        "ehl": (2, 1),
        "ehai": (3, 1),
        "cntlid": (4, 2),
        "ets": (6, 8),
        "pelpid": (14, 2),
        "vsil": (20, 2),
        "el": (22, 2),
    }
    sizes = {
        24: EVENT_HEADER,
        36: RESET_INFORMATION,
        16: TIMESTAMP_CHANGE,
        4: HARDWARE_ERROR,
        48: CHANGE_NAMESPACE,
        8: SANITIZE_COMPLETION,
    }
    assert all(size == struct.sizeof() for size, struct in sizes.items())
    assert FORMAT_START.sizeof() == FORMAT_COMPLETION.sizeof() == SANITIZE_START.sizeof() == 12
    assert layout(CHANGE_NAMESPACE)["endgid"] == (42, 2) and layout(CHANGE_NAMESPACE)["nsid"] == (44, 4)
    assert layout(RESET_INFORMATION)["cpwrc"] == (16, 4) and layout(RESET_INFORMATION)["poms"] == (20, 8)


def test_an_event_as_bytes():
    event = PersistentEvent(EventType.CHANGE_NAMESPACE, bytes(range(8)), 7, 3, b"data")
    assert event.encode() == (
        b"\x06\x02\x15\x01\x07\x00" + bytes(range(8)) + b"\x03\x00" + bytes(4) + b"\0\0" + b"\x04\x00" + b"data"
    )
    assert event.length_bytes == 28
    assert PersistentEvent(4, bytes(8), 0xFFFF, None, b"").encode()[3] == 3


def test_the_bitmap_of_supported_events():
    assert supported_events((EventType.SMART_SNAPSHOT, EventType.FORMAT_START)) == b"\x82" + bytes(31)


EVENTS = st.lists(
    st.builds(
        PersistentEvent,
        st.integers(1, 0xDE),
        st.binary(min_size=8, max_size=8),
        st.integers(0, 0xFFFF),
        st.none() | st.integers(0, 0xFFFF),
        st.binary(max_size=40),
    ),
    max_size=8,
)


def page(events):
    body = b"".join(event.encode() for event in events)
    return build(HEADER, lid=0x0D, tnev=len(events), tll=512 + len(body), lhl=492) + body


@given(EVENTS)
def test_a_built_page_is_parsed(events):
    assert list(parse_events(page(events))) == events


@given(EVENTS.filter(bool), st.data())
def test_a_cut_page_is_an_error(events, data):
    whole = page(events)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError):
        list(parse_events(whole[:cut]))
