"""The dashboard in examples/grafana: each of its queries names metrics and labels that a target really shows."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import NvmeofError
from nvmeof.transport.mptcp import why_no_mptcp
from tests.target.metrics.scraping import Scrape, scrape
from tests.target.metrics.test_metrics import make, serving, to

DASHBOARD = json.loads((Path(__file__).parents[3] / "examples/grafana/nvmeof-target.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus adds to what it reads."""
SELECTOR = re.compile(r"\b((?:nvmeof|process)_\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\bby \(([^)]*)\)")
FUNCTIONS = {"sum", "max", "by", "rate", "histogram_quantile", "label_values"}
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}


async def _shown() -> Scrape:
    target = make(trtype="tcp" if why_no_mptcp() else "mptcp")
    async with serving(target) as server, await to(target) as controller:
        await controller.namespace(1).write(0, bytes(4096))
        await controller.namespace(1).read(0, 8)
        with pytest.raises(NvmeofError):
            await controller.namespace(1).read(1 << 40, 8)
        return await scrape(server)


@pytest.fixture(scope="module")
def shown() -> Scrape:
    """The metrics of a target that has read, written and refused something."""
    return asyncio.run(_shown())


def labels_of(shown: Scrape, name: str) -> set[str]:
    return {label for labels, _ in shown.samples(name) for label in labels}


def check(shown: Scrape, query: str) -> set[str]:
    """Check the names in a query; return the labels that its result has."""
    selectors = list(SELECTOR.finditer(query))
    assert selectors, "no metric"
    known: set[str] = set(OF_PROMETHEUS)
    for name, inside in ((match[1], match[2] or "") for match in selectors):
        samples = list(shown.samples(name))
        assert samples, f"there is no metric {name}"
        here = labels_of(shown, name) | OF_PROMETHEUS
        for label, value in LABEL.findall(inside):
            assert label in here, f"{name} has no label {label}"
            for variable in re.findall(r"\$(\w+)", value):
                assert variable in VARIABLES
            if "$" not in value and label not in OF_PROMETHEUS:
                pattern = re.compile(value)
                assert any(pattern.fullmatch(labels[label]) for labels, _ in samples), f'nothing has {label}="{value}"'
        known |= here
    groups = {each.strip() for inside in GROUPING.findall(query) for each in inside.split(",")}
    assert groups <= known, groups - known
    rest = SELECTOR.sub("", GROUPING.sub("", query))
    words = set(re.findall(r"[a-z_]{2,}", re.sub(r"\[[^]]*\]", "", rest)))
    assert words <= FUNCTIONS | {"instance", "subsystem", "host", "job"}, words
    assert query.count("(") == query.count(")")
    return groups - {"le"} if groups else known


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=[f"{title} {t['refId']}" for title, t in QUERIES])
def test_queries(shown: Scrape, title: str, target: dict[str, Any]) -> None:
    if "nvmeof_subflow" in target["expr"] and not [*shown.samples("nvmeof_subflow_rtt_seconds")]:
        pytest.skip("needs a kernel that reports its TCP connections (TCP_INFO)")
    labels = check(shown, target["expr"])
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
    for name in re.findall(r"rate\((\w+)", target["expr"]):
        assert name.endswith(("_total", "_bucket")), f"{name} is no counter"


@pytest.mark.parametrize("name", [name for name, each in VARIABLES.items() if each["type"] == "query"])
def test_variables(shown: Scrape, name: str) -> None:
    query = VARIABLES[name]["query"]["query"]
    check(shown, query)
    wanted = query.rstrip(")").rpartition(",")[2].strip()
    metric = SELECTOR.search(query)
    assert metric is not None
    assert wanted in labels_of(shown, metric[1]) | OF_PROMETHEUS


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        here = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not here & cells, panel["title"]
        cells |= here


def test_a_wrong_name_is_found(shown: Scrape) -> None:
    for query in (
        "rate(nvmeof_comands_total[5m])",
        'rate(nvmeof_commands_total{hosts="x"}[5m])',
        'rate(nvmeof_commands_total{command="raed"}[5m])',
        "sum by (queue) (rate(nvmeof_commands_total[5m]))",
    ):
        with pytest.raises(AssertionError):
            check(shown, query)
