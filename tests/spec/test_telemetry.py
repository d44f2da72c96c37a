from nvmeof.spec.endurance import ENDURANCE_GROUP
from nvmeof.spec.telemetry import HEADER, Scope, build_telemetry
from nvmeof.wire import layout


def test_sizes_and_offsets():
    assert HEADER.sizeof() == 512
    assert layout(HEADER) == {
        "lid": (0, 1),
        "ieee": (5, 3),
        "da1lb": (8, 2),
        "da2lb": (10, 2),
        "da3lb": (12, 2),
        "da4lb": (16, 4),
        "ths": (380, 1),
        "thdgn": (381, 1),
        "tcda": (382, 1),
        "tcdgn": (383, 1),
        "rid": (384, 128),
    }
    assert ENDURANCE_GROUP.sizeof() == 512
    assert layout(ENDURANCE_GROUP) == {
        "egcw": (0, 1),
        "egfeat": (1, 1),
        "avsp": (3, 1),
        "avspt": (4, 1),
        "pused": (5, 1),
        "did": (6, 2),
        "ee": (32, 16),
        "dur": (48, 16),
        "duw": (64, 16),
        "muw": (80, 16),
        "hrc": (96, 16),
        "hwc": (112, 16),
        "mdie": (128, 16),
        "neile": (144, 16),
        "tegcap": (160, 16),
        "uegcap": (176, 16),
    }


def test_areas_end_where_the_header_says():
    blocks = [bytes([n]) * 512 * n for n in (1, 2, 3, 4)]
    common = {"generation": 9, "controller_available": True, "controller_generation": 5, "reason": b"why"}
    page = build_telemetry(7, blocks, scope=Scope.CONTROLLER, host=True, **common)
    assert len(page) == 512 * 11 and page[512:] == b"".join(blocks)
    assert page[:1] == b"\7" and page[8:20] == b"\1\0\3\0\6\0\0\0\x0a\0\0\0"
    assert page[380:388] == b"\1\x09\1\5why\0"
    page = build_telemetry(8, blocks[:2], scope=Scope.NVM_SUBSYSTEM, host=False, **common)
    assert page[8:20] == b"\1\0\3\0\3\0\0\0\0\0\0\0" and page[380:384] == b"\0\2\1\5"
    assert build_telemetry(8, [], scope=Scope.NVM_SUBSYSTEM, host=False, **common)[8:20] == bytes(12)
