"""The words of a command line that make a namespace zoned, and valid geometries."""

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry, parse_zoned
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import Target


@pytest.mark.parametrize(
    ("text", "rest", "geometry"),
    [
        ("1G", "1G", None),
        ("a,b", "a,b", None),
        ("zoned", "zoned", None),
        ("x,zoned", "x", ZoneGeometry()),
        ("/a,b/c,zone-size=1M", "/a,b/c", ZoneGeometry(zone_bytes=1 << 20)),
        (
            "1G,zoned,zone-size=4M,zone-capacity=3M,max-open=2,max-active=3,zdes=64,read-across=no",
            "1G",
            ZoneGeometry(zone_bytes=4 << 20, capacity_bytes=3 << 20, max_open=2, max_active=3, extension_bytes=64,
                         read_across=False),
        ),
        ("1G,max-open=0,zdes=0", "1G", ZoneGeometry()),
    ],
)  # fmt: skip
def test_words(text, rest, geometry):
    assert parse_zoned(text) == (rest, geometry)


@pytest.mark.parametrize(
    "words",
    [
        "zoned,zoned", "zoned=1", "zone-size", "zone-size=0", "zone-size=x", "max-open=-1", "max-open=x", "max-open",
        "read-across=maybe", "zdes=65", "zdes=16384", "zone-size=1M,zone-capacity=2M", "max-open=3,max-active=2",
        "zoned,bla=3", "zoned,bla,zdes=64",
    ],
)  # fmt: skip
def test_wrong_words(words):
    with pytest.raises(ConfigurationError):
        parse_zoned(f"1G,{words}")


@pytest.mark.parametrize(
    "geometry",
    [{"zone_bytes": 2 << 20}, {"zone_bytes": 1000}, {"zone_bytes": 1024, "capacity_bytes": 100}],
)
def test_geometries_that_do_not_match_the_size(geometry):
    with pytest.raises(ConfigurationError):
        Target().subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), zoned=ZoneGeometry(**geometry)))


def test_too_many_zones():
    with pytest.raises(ConfigurationError):
        ZoneGeometry(zone_bytes=512).check(512, 1 << 40)


@pytest.mark.parametrize("fields", [{"zone_bytes": 0}, {"max_open": -1}, {"capacity_bytes": 0}])
def test_invalid_geometries(fields):
    with pytest.raises(ConfigurationError):
        ZoneGeometry(**fields)
