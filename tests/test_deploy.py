from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from sentinel.adapters.http import HttpServer
from sentinel.adapters.metrics import CATALOGUE, STAGES, VALUE_DROPS, DeviceSeries, Metrics
from sentinel.commands import app as cli
from sentinel.records import ALERT_KINDS, FATES
from sentinel.settings import load_settings
from tests.servers import (
    DASHBOARDS,
    DEPLOY,
    RULES,
    Prometheus,
    Query,
    binary,
    dashboard_queries,
    free_port,
    operands,
    panels,
    rule_queries,
)

UNIT = DEPLOY / "systemd" / "sentinel.service"
DOCKER = DEPLOY / "docker"
PROVISIONING = DEPLOY / "grafana" / "provisioning"


def succeeds(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program to its end; its output is the failure's message."""
    result = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert result.returncode == 0, result.stdout
    return result.stdout


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


class TestSystemdUnit:
    def test_verifies_where_its_program_exists(self, tmp_path: Path) -> None:
        text = UNIT.read_text(encoding="utf-8")
        copy = tmp_path / UNIT.name
        copy.write_text(text.replace("ExecStart=/usr/bin/sentinel", f"ExecStart={binary('true')}"), encoding="utf-8")
        assert succeeds(binary("systemd-analyze"), "verify", "--man=no", copy) == ""

    def test_exposure_is_below_2(self) -> None:
        output = succeeds(binary("systemd-analyze"), "security", "--offline=true", "--no-pager", UNIT)
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", output)
        assert exposure is not None, output
        assert float(exposure[1]) < 2

    def test_leaves_out_what_breaks_torch_and_says_so(self) -> None:
        assert "MemoryDenyWriteExecute" not in directives(UNIT)
        assert re.search(r"^# MemoryDenyWriteExecute= .*torch", UNIT.read_text(encoding="utf-8"), re.MULTILINE)

    def test_is_told_ready_watched_reloaded_and_restarted(self) -> None:
        unit = directives(UNIT)
        assert unit["Type"] == ["notify"]
        assert int(unit["WatchdogSec"][0]) > 0
        assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
        assert unit["Restart"] == ["on-failure"]
        assert unit["DynamicUser"] == ["yes"]
        assert unit["StateDirectory"] == ["sentinel"]
        credentials = [value.split(":")[0] for value in unit["LoadCredential"]]
        assert credentials == ["mqtt_password", "http_token", "http_password"]
        assert unit["RestartPreventExitStatus"] == ["2"]

    def test_the_daemon_does_what_the_unit_relies_on(self, tmp_path: Path) -> None:
        """Ready, fed by turns, reloaded, stopped, with a credential: told over the socket that systemd would open."""
        (tmp_path / "sentinel.toml").write_text(
            f'[http]\nport = {(port := free_port())}\n[profiles.a]\ntopic = "a/{{b}}"\n'
        )
        credentials, state, said = tmp_path / "credentials", tmp_path / "state", bytearray()
        credentials.mkdir()
        (credentials / "http_token").write_text("open-sesame")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(240)  # the arithmetic may have to be compiled

            def told(what: bytes, times: int = 1) -> bool:
                while said.count(what) < times:
                    said.extend(manager.recv(4096) + b"\n")
                return True

            daemon = subprocess.Popen(
                [sys.executable, "-m", "sentinel", "run", "--config", tmp_path / "sentinel.toml"],
                env=os.environ
                | {
                    "NOTIFY_SOCKET": str(tmp_path / "notify"),
                    "WATCHDOG_USEC": "1000000",
                    "CREDENTIALS_DIRECTORY": str(credentials),
                    "SENTINEL_STORE__PATH": str(state),
                    "SENTINEL_MQTT__PORT": str(free_port()),
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                assert told(b"READY=1")
                assert said.startswith(b"EXTEND_TIMEOUT_USEC=")
                assert told(b"WATCHDOG=1", times=3)
                url = f"http://127.0.0.1:{port}/metrics"
                with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                    urllib.request.urlopen(url, timeout=5)
                refused.value.close()
                request = urllib.request.Request(url, headers={"Authorization": "Bearer open-sesame"})
                with urllib.request.urlopen(request, timeout=5) as answer:
                    assert answer.status == 200
                daemon.send_signal(signal.SIGHUP)
                assert told(b"RELOADING=1")
                assert told(b"READY=1", times=2)
                daemon.terminate()
                assert told(b"STOPPING=1")
                assert daemon.wait(20) == 0
            finally:
                daemon.kill()
                daemon.wait()
        assert {path.parent for path in tmp_path.rglob("*.sqlite")} == {state}


class TestPrometheusFiles:
    def test_config_is_valid(self) -> None:
        succeeds(binary("promtool"), "check", "config", DEPLOY / "prometheus" / "prometheus.yml")

    def test_config_of_the_containers_is_valid(self, tmp_path: Path) -> None:
        for file in (DOCKER / "prometheus.yml", RULES):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        succeeds(binary("promtool"), "check", "config", tmp_path / "prometheus.yml")

    def test_rules_are_valid(self) -> None:
        succeeds(binary("promtool"), "check", "rules", RULES)

    def test_rules_fire_when_they_should_and_not_else(self) -> None:
        succeeds(binary("promtool"), "test", "rules", "sentinel.rules.test.yml", cwd=RULES.parent)

    def test_every_rule_is_unit_tested(self) -> None:
        tests = RULES.with_name("sentinel.rules.test.yml").read_text(encoding="utf-8")
        for name in re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")):
            assert re.search(rf"\b{name}\b|SentinelBroker\.\*", tests), name


UNITS = {"none", "short", "percentunit", "bytes", "cps", "s", "dtdurations", "dateTimeFromNow"}
"""Of Grafana's names of units, those in use."""


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return loaded


class TestDashboards:
    """Each by itself. The rules are those of Grafana's dashboard-linter."""

    def test_the_data_source_is_the_users_to_choose(self, dashboard: dict[str, Any]) -> None:
        (source,) = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
        assert (source["name"], source["label"], source["query"]) == ("datasource", "Data source", "prometheus")
        queried = [*dashboard["templating"]["list"], *panels(dashboard)]
        queried += [target for panel in panels(dashboard) for target in panel["targets"]]
        assert {q["datasource"]["uid"] for q in queried if q is not source} == {"${datasource}"}

    def test_variables_offer_what_is_there_in_the_time_shown(self, dashboard: dict[str, Any]) -> None:
        queries = {v["name"]: v for v in dashboard["templating"]["list"] if v["type"] == "query"}
        assert list(queries)[:2] == ["job", "instance"]
        for name, variable in queries.items():
            assert variable["multi"], name
            assert variable["refresh"] == 2, name
            assert variable["label"] == name.title()
            assert not variable["includeAll"] or variable["allValue"] == ".+", name

    def test_every_selector_keeps_to_the_chosen_job_and_instance(self, dashboard: dict[str, Any]) -> None:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                selectors = re.findall(r"\b(?:sentinel_\w+|process_\w+|up)\b(\{[^}]*\})?", target["expr"])
                assert selectors, target["expr"]
                for selector in selectors:
                    assert selector.startswith('{job=~"$job", instance=~"$instance"'), target["expr"]

    def test_rates_are_over_grafanas_interval_and_counters_never_bare(self, dashboard: dict[str, Any]) -> None:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                rates = re.findall(r"\bi?rate\([^\[]*\[([^\]]*)\]", target["expr"])
                assert set(rates) <= {"$__rate_interval"}, target["expr"]
                counters = re.findall(r"(\w*)\(?\b\w+_(?:total|bucket|sum|count)\{[^}]*\}(\[?)", target["expr"])
                assert all(call in ("rate", "increase") and window for call, window in counters), target["expr"]

    def test_every_panel_has_title_unit_and_description(self, dashboard: dict[str, Any]) -> None:
        titles = [(panel["title"], panel["type"]) for panel in panels(dashboard)]
        assert len(set(titles)) == len(titles)
        for panel in panels(dashboard):
            assert panel["title"], panel
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
            assert panel["description"].endswith("."), panel["title"]

    def test_every_curve_has_a_legend(self, dashboard: dict[str, Any]) -> None:
        for panel in panels(dashboard):
            if panel["type"] in ("timeseries", "bargauge", "state-timeline"):
                legends = [target["legendFormat"] for target in panel["targets"]]
                assert all(legends), panel["title"]
                assert len(set(legends)) == len(legends), panel["title"]

    def test_panels_do_not_overlap_nor_share_an_id(self, dashboard: dict[str, Any]) -> None:
        cells = [
            (x, y)
            for grid in (panel["gridPos"] for panel in dashboard["panels"])
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])

    def test_it_leads_to_the_others_and_is_not_edited_in_place(self, dashboard: dict[str, Any]) -> None:
        (link,) = dashboard["links"]
        assert (link["type"], link["tags"], link["includeVars"]) == ("dashboards", dashboard["tags"], True)
        assert dashboard["editable"] is False


class TestDashboardsAndRules:
    def test_there_is_one_for_the_fleet_one_for_a_device_and_one_for_the_daemon(self) -> None:
        uids = {path.stem: json.loads(path.read_text(encoding="utf-8"))["uid"] for path in DASHBOARDS}
        assert uids == {name: f"sentinel-{name}" for name in ("daemon", "device", "fleet")}
        links = re.findall(r"/d/(sentinel-\w+)\?", DASHBOARDS[2].read_text(encoding="utf-8"))
        assert links == ["sentinel-device"]

    def test_every_metric_of_ours_in_dashboards_and_rules_is_in_the_catalogue(self) -> None:
        known = {metric.name for metric in CATALOGUE}
        known |= {f"{metric.name}_{part}" for metric in CATALOGUE for part in ("bucket", "sum", "count")}
        for file in (*DASHBOARDS, RULES):
            used = set(re.findall(r"\bsentinel_[a-z_]+\b", file.read_text(encoding="utf-8")))
            assert used <= known, file
            assert len(used) > 5

    def test_every_metric_of_the_catalogue_is_drawn(self) -> None:
        text = "".join(path.read_text(encoding="utf-8") for path in DASHBOARDS)
        assert [metric.name for metric in CATALOGUE if metric.name not in text] == []

    def test_every_rule_has_its_section_in_the_runbook(self) -> None:
        text = RULES.read_text(encoding="utf-8")
        names = re.findall(r"- alert: (\w+)", text)
        assert re.findall(r"runbook_url: deploy/prometheus/runbook\.md#(\w+)", text) == [name.lower() for name in names]
        runbook = (RULES.parent / "runbook.md").read_text(encoding="utf-8")
        assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == names


def feed(metrics: Metrics, registry_time: float) -> None:
    """One busy second of a plausible daemon with every kind of trouble."""
    metrics.broker_connected(True)
    metrics.broker_reconnected()
    metrics.publishes_dropped(1)
    metrics.dead_letters(sent=1, suppressed=2)
    metrics.ingest_lag(0.4)
    metrics.journal(size=1 << 20, committed=registry_time)
    metrics.snapshot(completed=registry_time - 20)
    metrics.snapshot_failed()
    metrics.turn(0.01, readings=40)
    metrics.publish_to_alert([0.002, 0.004])
    for stage in STAGES:
        metrics.observe(stage, 0.002)
    for profile in ("pump", "room"):
        metrics.messages(profile, dict.fromkeys(FATES, 3))
        metrics.readings(profile, dict.fromkeys(FATES, 2))
        metrics.values_dropped(profile, dict.fromkeys(VALUE_DROPS, 1))
        metrics.unknown_channels(profile, 1)
        metrics.sparkplug_gaps(profile, 1)
        metrics.sparkplug_rebirth(profile)
        metrics.ticks(profile, 40)
        metrics.heard(profile, 400.0)
        metrics.alert_budget(profile, 1 / 604800)
        metrics.devices(profile, {"scoring": 30, "learning": 5, "silent": 2, "offline": 1})
        metrics.learning(profile, 0.6)
        metrics.model(profile, "3f2a", "lstm", trained=registry_time - 3600)
        metrics.state_saturation(profile, 0.01)
        metrics.alerts_firing(profile, {"prediction": 2, "range": 1})
        for kind in ALERT_KINDS:
            metrics.anomalies(profile, kind, 2)
            metrics.alerts_started(profile, kind)
    last_seen = np.full(3, registry_time)
    pumps = DeviceSeries(["north/p1", "north/p2", "p3"], np.array([0.4, 1.7, np.nan]), np.arange(3) == 1, last_seen)
    metrics.set_devices({"pump": pumps})


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    registry = CollectorRegistry()
    metrics = Metrics(registry, ["pump", "room"], max_device_series=100)
    server = HttpServer("127.0.0.1", 0, registry, lambda: (True, []), lambda: (True, []))
    server.start()
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.2):
            feed(metrics, time.time())

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with Prometheus([f"127.0.0.1:{server.port}"], rules=[RULES]) as prometheus:
            yield prometheus
    finally:
        done.set()
        worker.join()
        server.stop()


class TestRealPrometheus:
    def test_scrapes_without_complaint(self, prometheus: Prometheus) -> None:
        assert prometheus.without_data([Query("", "up")]) == []
        assert [(target["health"], target["lastError"]) for target in prometheus.targets()] == [("up", "")]

    def test_every_query_of_the_dashboards_returns_data(self, prometheus: Prometheus) -> None:
        queries = dashboard_queries()
        assert len(queries) > 60
        assert prometheus.without_data(queries) == []

    def test_every_operand_of_the_rules_returns_data(self, prometheus: Prometheus) -> None:
        queries = rule_queries(prometheus)
        assert len(queries) > 15
        assert prometheus.without_data(queries) == []
        assert [rule["lastError"] for rule in prometheus.rules() if rule["health"] == "err"] == []

    def test_a_query_without_data_is_found(self, prometheus: Prometheus) -> None:
        missing = [query for query in dashboard_queries({"device": "nobody"}) if "nobody" in query.expr]
        assert len(missing) == 9
        assert prometheus.without_data(missing, timeout=1) == missing


class TestQueries:
    @pytest.mark.parametrize(
        ("expr", "expected"),
        [
            ("a > 1", ["a"]),
            ('up{job="x"} == 0 or absent(up{job="x"})', ['up{job="x"}', 'up{job="x"}']),
            ('rate(a{b!~"c > d"}[5m]) / (sum(b) > 0) >= 0.5', ['rate(a{b!~"c > d"}[5m]) / (sum(b) > 0)']),
            ("a unless on (job) b == 1e3 and ignoring (x, y) (c < d)", ["a", "b", "c", "d"]),
            ("android_orders > bool 0", ["android_orders"]),
        ],
    )
    def test_rules_are_cut_into_what_they_compare(self, expr: str, expected: list[str]) -> None:
        assert operands(expr) == expected


class TestContainers:
    def test_the_simulated_fleet_is_what_the_config_describes(self) -> None:
        simulate = pytest.importorskip("sentinel.simulate")
        with (DOCKER / "sentinel.toml").open("rb") as file:
            profile = tomllib.load(file)["profiles"]["pump"]
        assert profile["topic"] == simulate.PUMP.template
        assert [(channel["name"], channel["unit"]) for channel in profile["channels"]] == [
            (quantity.name, quantity.unit) for quantity in simulate.PUMP.quantities
        ]

    def test_the_broker_takes_its_config_and_keeps_what_waits(self, tmp_path: Path) -> None:
        text = (DOCKER / "mosquitto.conf").read_text(encoding="utf-8")
        assert re.search(r"^max_queued_messages 0$", text, re.MULTILINE)
        assert re.search(r"^persistence true$", text, re.MULTILINE)
        port = free_port()
        text = text.replace("listener 1883", f"listener {port} 127.0.0.1").replace("/mosquitto/data/", f"{tmp_path}/")
        config = tmp_path / "mosquitto.conf"
        config.write_text(text, encoding="utf-8")
        tmp_path.chmod(0o777)
        with subprocess.Popen(
            [binary("mosquitto"), "-c", config], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as broker:
            try:
                version = [binary("mosquitto_sub"), "-p", str(port), "-t", "$SYS/broker/version", "-C", "1", "-W", "2"]
                deadline = time.monotonic() + 10
                while subprocess.run(version, capture_output=True, check=False).returncode != 0:
                    assert broker.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            finally:
                broker.terminate()

    def test_every_file_that_compose_mounts_exists(self) -> None:
        mounts = re.findall(r"- (\.\.?/[^:]+):", (DOCKER / "compose.yaml").read_text(encoding="utf-8"))
        assert len(mounts) >= 5
        assert [mount for mount in mounts if not (DOCKER / mount).exists()] == []

    def test_images_are_pinned_to_a_version(self) -> None:
        for file in ("compose.yaml", "Dockerfile"):
            text = (DOCKER / file).read_text(encoding="utf-8")
            for image in re.findall(r"(?:image: |FROM )(\S+)", text):
                assert image == "sentinel" or re.search(r":v?\d", image), image

    def test_compose_is_well_formed(self) -> None:
        yaml = pytest.importorskip("yaml", reason="needs PyYAML")
        compose = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
        services = compose["services"]
        assert {"mosquitto", "sentinel", "simulate", "prometheus", "grafana"} == set(services)
        for name, service in services.items():
            assert set(service.get("depends_on", {})) <= set(services), name
            named = [mount.split(":")[0] for mount in service.get("volumes", []) if mount[0] not in "./"]
            assert set(named) <= set(compose["volumes"]), name
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert services["sentinel"]["read_only"] is True

    def test_names_and_ports_agree_and_the_settings_are_accepted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        yaml = pytest.importorskip("yaml", reason="needs PyYAML")
        dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
        services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
        for name in [name for name in os.environ if name.startswith("SENTINEL_")]:
            monkeypatch.delenv(name)
        given = dict(re.findall(r"(SENTINEL_\w+)=(\S+)", dockerfile)) | services["sentinel"].get("environment", {})
        assert len(given) >= 3
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        settings = load_settings(DOCKER / "sentinel.toml")
        inside = {
            name: {int(port.split(":")[2]) for port in service.get("ports", [])} for name, service in services.items()
        }

        (listener,) = re.findall(r"^listener (\d+)", (DOCKER / "mosquitto.conf").read_text(), re.MULTILINE)
        assert inside[settings.mqtt.host] == {settings.mqtt.port} == {int(listener)}
        assert (
            inside["sentinel"]
            == {settings.http.port}
            == {int(port) for port in re.findall(r"EXPOSE (\d+)", dockerfile)}
        )
        scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
        assert scraped[0]["static_configs"][0]["targets"] == [f"sentinel:{settings.http.port}"]
        (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
        assert source["url"] == f"http://prometheus:{inside['prometheus'].pop()}"
        mounted = [volume.split(":")[1] for volume in services["sentinel"]["volumes"]]
        assert str(settings.store.path) in mounted
        assert set(re.findall(r'"(/etc/sentinel/[^"]+)"', dockerfile)) == {mounted[0]}

    def test_the_command_lines_of_the_containers_are_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        yaml = pytest.importorskip("yaml", reason="needs PyYAML")
        dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
        services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
        (run,) = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
        (asked,) = re.findall(r"^ +CMD (\[.*\])$", dockerfile, re.MULTILINE)
        called: list[str] = []
        monkeypatch.setattr(cli, "call", lambda command, **options: called.append(command))
        program, *health = json.loads(asked)
        assert program == "sentinel"
        for arguments in (json.loads(run), health, services["simulate"]["command"]):
            done = CliRunner().invoke(cli.app, arguments)
            assert done.exit_code == 0, done.output
        assert called == ["run", "health", "simulate"]

    def test_provisioned_files_are_well_formed_and_meet(self) -> None:
        yaml = pytest.importorskip("yaml", reason="needs PyYAML")
        (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
        (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "sentinel.yaml").read_text())["providers"]
        assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
        compose = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
        grafana = compose["services"]["grafana"]
        mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"] if mount[0] == ".")
        inside = {target: DOCKER / source for source, target in mounts.items()}
        assert inside["/etc/grafana/provisioning"].resolve() == PROVISIONING
        assert inside[provider["options"]["path"]].resolve() == DASHBOARDS[0].parent
        home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        assert (inside[str(home.parent)] / home.name).resolve() in DASHBOARDS
