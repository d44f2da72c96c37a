from pathlib import Path

from nvmeof.spec.enums import AdminOpcode, NvmOpcode
from nvmeof.target import supported
from tests.target.harness import ADMIN, FABRICS_ADMIN, FABRICS_IO, FEATURES, LOG_PAGES, NVM, TABLES

PAGE = Path(__file__).parents[2] / "docs" / "supported.md"


def test_the_page_agrees_with_the_tables():
    assert PAGE.read_text() == supported.render(TABLES), "run: python -m nvmeof.target.supported > docs/supported.md"


def test_reasons_are_for_absent_parts():
    for why, table in (
        (supported._WHY_ADMIN, ADMIN),
        (supported._WHY_NVM, NVM),
        (supported._WHY_FABRICS, {**FABRICS_ADMIN, **FABRICS_IO}),
        (supported._WHY_FEATURE, FEATURES),
        (supported._WHY_LOG, LOG_PAGES),
    ):
        assert not set(why) & set(table)


def test_opcodes_agree_with_their_data_direction():
    for table in (ADMIN, NVM, FABRICS_ADMIN, FABRICS_IO):
        for opcode, spec in table.items():
            assert spec.opcode == opcode
            moves = spec.direction.value
            assert moves in (0, opcode & 3) if table in (ADMIN, NVM) else moves in (0, opcode & 3, 1)
    assert ADMIN[AdminOpcode.GET_FEATURES].direction.value == 2 and NVM[NvmOpcode.WRITE].direction.value == 1
