"""Real servers for tests, each on a free port and stopped by its own pid, and what the shipped files ask of them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

DEPLOY = Path(__file__).parent.parent / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = DEPLOY / "prometheus" / "sentinel.rules.yml"


def binary(name: str) -> str:
    """Path of a program; skips the test where it is missing."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"needs {name}")
    return path


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Query(NamedTuple):
    """A PromQL expression and the place it stands in."""

    where: str
    expr: str


class Prometheus:
    """A Prometheus server that scrapes `targets` (host:port) every second as job `sentinel`.

    Use it as a context manager. Its data lies in a temporary folder that goes with it.
    """

    def __init__(self, targets: Iterable[str], rules: Iterable[Path] = ()) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._program = binary("prometheus")
        self._config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path.resolve()) for path in rules],
            "scrape_configs": [{"job_name": "sentinel", "static_configs": [{"targets": list(targets)}]}],
        }

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        config = self._folder / "prometheus.yml"
        config.write_text(json.dumps(self._config), encoding="utf-8")
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The result of an instant query: a list of `{"metric": labels, "value": [time, text]}`."""
        result: list[dict[str, Any]] = self._get("query?" + urllib.parse.urlencode({"query": expr}))["result"]
        return result

    def targets(self) -> list[dict[str, Any]]:
        """The scrape targets, with `health` and `lastError`."""
        result: list[dict[str, Any]] = self._get("targets?state=active")["activeTargets"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """The loaded rules, with `name`, `query`, `health` and `lastError`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def without_data(self, queries: Iterable[Query], timeout: float = 20.0) -> list[Query]:
        """Those of `queries` that return no number within `timeout` seconds (NaN is no number)."""
        missing = list(queries)
        deadline = time.monotonic() + timeout
        while True:
            missing = [query for query in missing if not self._has_number(query.expr)]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.5)

    def _has_number(self, expr: str) -> bool:
        return any(sample["value"][1] != "NaN" for sample in self.query(expr))

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=10) as response:
                data: dict[str, Any] = json.load(response)["data"]
                return data
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from error

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"prometheus did not start:\n{(self._folder / 'log').read_text()}")


def dashboard_queries(variables: Mapping[str, str] | None = None) -> list[Query]:
    """Every query of the dashboards' panels and variables, with `$variables` replaced.

    Args:
        variables: values by name, over the defaults: any value for a dashboard's own, short windows for Grafana's.
    """
    return [query for path in DASHBOARDS for query in _queries(path, variables or {})]


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All panels, those in rows too; the rows themselves left out."""
    return [panel for panel in _panels(dashboard["panels"]) if panel["type"] != "row"]


def rule_queries(prometheus: Prometheus) -> list[Query]:
    """The operands of every rule that a server has loaded.

    A rule in good order returns nothing, so what must return data is what it compares: each expression is cut at its
    outermost comparisons and set operators.
    """
    rules = prometheus.rules()
    return [Query(f"rule {rule['name']}", operand) for rule in rules for operand in operands(rule["query"])]


def operands(expr: str) -> list[str]:
    """What an expression compares or joins, down to where data must be there; numbers are left out.

    >>> operands('rate(a[5m]) / b > 0.1 and on (job) (c == 0 or absent(d))')
    ['rate(a[5m]) / b', 'c', 'd']
    """
    expr = expr.strip()
    inner = _unwrap(expr)
    if inner != expr:
        return operands(inner)
    parts = _split(expr)
    if len(parts) > 1:
        return [operand for part in parts for operand in operands(part)]
    try:
        float(expr)
    except ValueError:
        return [expr]
    return []


_CUT = re.compile(r"(?:\b(?:and|or|unless)\b|[=!<>]=|<|>)\s*(?:bool\b)?\s*(?:\b(?:on|ignoring)\s*\([^)]*\))?")


def _split(expr: str) -> list[str]:
    parts, start, position, depth = [], 0, 0, 0
    while position < len(expr):
        if expr[position] in "\"'":
            position = expr.index(expr[position], position + 1)
        depth += (expr[position] in "([{") - (expr[position] in ")]}")
        cut = _CUT.match(expr, position) if depth == 0 and not expr[position - 1 : position].isalnum() else None
        if cut:
            parts.append(expr[start:position])
            start = position = cut.end()
        else:
            position += 1
    return [*parts, expr[start:]]


def _unwrap(expr: str) -> str:
    body = expr.removeprefix("absent")
    if not body.startswith("("):
        return expr
    depth = 0
    for position, character in enumerate(body):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return body[1:position].strip() if position == len(body) - 1 else expr
    return expr


def _queries(path: Path, variables: Mapping[str, str]) -> list[Query]:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    own = {variable["name"]: ".*" for variable in dashboard["templating"]["list"]}
    values = own | {"__rate_interval": "10s", "__interval": "5s", "__range": "1m"} | dict(variables)
    found = []
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            label_values = re.fullmatch(r"label_values\((.*), *\w+\)", variable["query"]["query"])
            assert label_values, f"variable {variable['name']}: only label_values(series, label) is known"
            found.append(Query(f"{path.stem}: variable {variable['name']}", label_values[1]))
    for panel in panels(dashboard):
        found += [Query(f"{path.stem}: panel {panel['title']}", target["expr"]) for target in panel["targets"]]
    return [Query(query.where, _substitute(query.expr, values)) for query in found]


def _panels(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [panel for outer in panels for panel in [outer, *_panels(outer.get("panels", []))]]


def _substitute(expr: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda match: values[match[1]], expr)
