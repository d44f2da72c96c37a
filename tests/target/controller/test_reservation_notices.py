"""The queue behind log page 80h."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.reservations import NotificationType
from nvmeof.target.controller.reservation_events import NOTICES_MAX, ReservationNotices

KINDS = [kind for kind in NotificationType if kind is not NotificationType.EMPTY]


def take(notices: ReservationNotices) -> tuple[int, int, int, int]:
    page = notices.page(0)
    assert len(page) == 64
    return struct.unpack("<QBBxxI48x", page)


def test_a_full_queue_counts_lost_notices():
    notices = ReservationNotices()
    for number in range(NOTICES_MAX + 10):
        notices.add(NotificationType.RESERVATION_RELEASED, number)
    assert len(notices) == NOTICES_MAX == 256
    pages = [take(notices) for _ in range(NOTICES_MAX)]
    assert [nsid for _, _, _, nsid in pages] == list(range(NOTICES_MAX))
    assert [count for count, _, _, _ in pages] == [*range(1, NOTICES_MAX), NOTICES_MAX + 10]
    assert [more for _, _, more, _ in pages] == [min(NOTICES_MAX - 1 - i, 255) for i in range(NOTICES_MAX)]
    assert take(notices) == (0, 0, 0, 0)
    notices.add(NotificationType.REGISTRATION_PREEMPTED, 7)
    assert take(notices) == (NOTICES_MAX + 11, 1, 0, 7)


def test_the_count_wraps_to_one():
    notices = ReservationNotices()
    notices._count = (1 << 64) - 2
    for _ in range(2):
        notices.add(NotificationType.RESERVATION_PREEMPTED, 1)
    assert [take(notices)[0] for _ in range(2)] == [(1 << 64) - 1, 1]


@given(st.lists(st.one_of(st.none(), st.sampled_from(KINDS)), max_size=40))
def test_first_in_first_out(steps):
    """The queue against a plain list: None takes one."""
    notices, model, count = ReservationNotices(), [], 0
    for kind in steps:
        if kind is None:
            oldest = model.pop(0) if model else None
            assert take(notices) == ((0, 0, 0, 0) if oldest is None else (*oldest, len(model), 9))
            assert notices.page(16) == notices.page(32)
        else:
            count += 1
            model.append((count, int(kind)))
            notices.add(kind, 9)
        assert len(notices) == len(model)
    notices.reset()
    assert take(notices) == (0, 0, 0, 0)
    notices.add(KINDS[0], 2)
    assert take(notices) == (1, 1, 0, 2)
