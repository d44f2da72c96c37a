import pytest

from nvmeof.target.subsystem import attachments as module
from nvmeof.target.subsystem.attachments import Attachments


def test_hosts_differ_from_the_default():
    attachments = Attachments()
    attachments.set_default(1, True)
    assert attachments.attached("a", 1) and not attachments.attached("a", 2)
    attachments.remember("a", 1, False)
    attachments.remember("a", 2, True)
    assert not attachments.attached("a", 1) and attachments.attached("a", 2)
    assert attachments.attached("b", 1) and not attachments.attached("b", 2)
    attachments.remember("a", 1, True)
    attachments.remember("a", 2, False)
    assert attachments.to_json() == [], "the default need not be stored"


def test_a_copy_is_independent():
    attachments = Attachments()
    attachments.remember("a", 1, True)
    copy = attachments.copy()
    copy.remember("a", 1, False)
    copy.remember("b", 2, True)
    copy.set_default(3, True)
    assert attachments.attached("a", 1) and not attachments.attached("b", 2) and not attachments.attached("a", 3)


def test_stored_attachments_are_loaded():
    attachments = Attachments()
    attachments.set_default(1, True)
    for host, nsid, attached in (("b", 3, True), ("a", 2, True), ("a", 1, False), ("b", 1, False)):
        attachments.remember(host, nsid, attached)
    kept = attachments.to_json()
    assert kept == [
        {"host": "a", "attached": [2], "detached": [1]},
        {"host": "b", "attached": [3], "detached": [1]},
    ]
    again = Attachments()
    again.load(kept)
    again.set_default(1, True)
    for host in "abc":
        for nsid in range(1, 5):
            assert again.attached(host, nsid) == attachments.attached(host, nsid)


@pytest.mark.parametrize("value", [5, [{}], [{"host": "a", "attached": ["x"], "detached": []}], [7]])
def test_invalid_attachments(value):
    with pytest.raises((ValueError, TypeError, KeyError)):
        Attachments().load(value)


def test_removed_namespaces_are_dropped():
    attachments = Attachments()
    attachments.set_default(1, True)
    for nsid in (1, 2, 3):
        attachments.remember("a", nsid, nsid != 1)
    attachments.remember("b", 2, True)
    attachments.only("b", 2)
    assert not attachments.attached("a", 2) and attachments.attached("b", 2)
    attachments.forget(1)
    assert not attachments.attached("c", 1), "the default too"
    attachments.prune({2})
    assert attachments.to_json() == [{"host": "b", "attached": [2], "detached": []}]


def test_the_least_recent_hosts_are_dropped(monkeypatch):
    monkeypatch.setattr(module, "HOSTS_MAX", 3)
    attachments = Attachments()
    for host in "abc":
        attachments.remember(host, 1, True)
    attachments.remember("a", 2, True)
    attachments.remember("d", 1, True, connected={"b", "d"})
    assert [entry["host"] for entry in attachments.to_json()] == ["b", "a", "d"]
    attachments.remember("e", 1, True, connected={"a", "b", "d", "e"})
    assert [entry["host"] for entry in attachments.to_json()] == ["b", "a", "d", "e"], "who is there is not forgotten"
