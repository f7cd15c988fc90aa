"""The status page: of a daemon that runs, over HTTP and in a browser; and of a fleet of ten thousand."""

from __future__ import annotations

import base64
import html
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client import CollectorRegistry

from sentinel import trainer
from sentinel.adapters.http import Access, HttpServer
from sentinel.adapters.mqtt.memory import MemoryBroker
from sentinel.adapters.page import Alerts, Detail, Fleet, Key, Page, ProfileRows, Tick
from sentinel.adapters.page.charts import draw
from sentinel.adapters.page.routes import MOST_LOOKED, MOST_STREAMS
from sentinel.adapters.page.views import PAGE, Question, ask
from sentinel.adapters.store import MemoryStore
from sentinel.adapters.store.memory import MemoryDisk
from sentinel.intake import Intake
from sentinel.records import DEVICE_STATES, Alert, ChannelView, Command
from sentinel.service import COMMANDS_A_SECOND, Service
from sentinel.settings import load_settings
from sentinel.stream.alerts import Evidence, duration, quantity
from sentinel.stream.pipeline import Pipeline
from sentinel.stream.recent import KEPT
from sentinel.window import MOST_BEGUN, MOST_TICKS, MOST_WATCHED, Window
from tests import fleets
from tests.brokers import wait_until
from tests.browsers import Browser

NASTY = "</script><script>document.title='hacked'</script>\"'&<b>"
AWKWARD = ["a/b", "..", ".", "%41", "%2E%2E", "é ü?#&;=+", "!.", NASTY]
WORDS: dict[str, Callable[..., str]] = {"quantity": quantity, "duration": duration}
USER, PASSWORD = "op", "s3cret"
CONFIG = """
[http]
port = 0
username = "op"
password_file = "password"
[profiles.pump]
topic = "plant"
device = {{ path = "id" }}
time = {{ path = "ts" }}
channels = [{{ name = "pressure", unit = {unit}, min = 0, max = 16 }}, "flow", {{ name = {nasty}, path = "heat" }}]
model = {{ hidden = 8, horizons = [1, 8] }}
learn = "never"
"""
SICK, WELL = "pump-10", "pump-9"


class Plant:
    """A daemon on twins that turns over in a thread of its own, and its devices."""

    def __init__(self, folder: Path) -> None:
        (folder / "password").write_text(PASSWORD)
        nasty = json.dumps(NASTY)
        (folder / "sentinel.toml").write_text(CONFIG.format(unit=nasty, nasty=nasty))
        settings = load_settings(folder / "sentinel.toml")
        disk = self.disk = MemoryDisk()
        learned = fleets.learned(declared=False)
        stream = fleets.running(fleets.spec(), learned)
        object.__setattr__(learned.detector, "channels", ("pressure", "flow", NASTY))
        try:
            trainer.save(disk.models, stream, learned.detector, 0)
        finally:
            object.__setattr__(learned.detector, "channels", fleets.CHANNELS)
        self.broker = MemoryBroker()
        self.service = Service(settings, broker=self.broker, store=MemoryStore(disk))
        self.at = 0
        self.values = {device: fleets.healthy(4000, n, 5) for n, device in enumerate([SICK, WELL, *AWKWARD])}
        self._thread = Thread(target=self.service.run)
        self._thread.start()
        wait_until(lambda: self.broker.subscribed, 60)

    @property
    def server(self) -> HttpServer:
        return self.service.http

    def tick(self, ticks: int = 1, *, sick: bool = False, who: str = SICK) -> None:
        for _ in range(ticks):
            for device, values in self.values.items():
                row = values[self.at].copy()
                row[1] += 60.0 if sick and device == who else 0.0
                body = {"id": device, "ts": fleets.START + self.at} | dict(
                    zip(fleets.CHANNELS, row.tolist(), strict=True)
                )
                self.broker.publish_from_outside("plant", orjson.dumps(body))
            self.at += 1

    def caught_up(self) -> None:
        stream = self.service.pipeline.profiles["pump"]
        wait_until(lambda: stream.table.last_time.max() >= fleets.START + self.at - 1, 20)

    def count(self, outcome: str) -> float:
        return self.service.registry.get_sample_value("sentinel_commands_total", {"outcome": outcome}) or 0.0

    def stop(self) -> None:
        self.service.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    made = Plant(tmp_path_factory.mktemp("plant"))
    try:
        made.tick(100)
        made.caught_up()
        made.tick(3, sick=True, who=WELL)
        made.tick(97)
        made.caught_up()
        made.tick(5, sick=True)
        made.caught_up()
        wait_until(lambda: SICK in text(made.server, "/?which=alerts"), 10)
        yield made
    finally:
        made.stop()


BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def request(server: HttpServer, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers={"Authorization": BASIC} | named)
    return connection.getresponse()


def text(server: HttpServer, path: str, status: int = 200) -> str:
    with closing(request(server, path)) as response:
        assert response.status == status
        return response.read().decode()


def links(page: str) -> dict[str, str]:
    """Paths of the devices that an overview lists, by what is to be read there."""
    found = re.findall(r'<th scope="row"><a href="([^"]*)">(.*?)</a>', page)
    return {html.unescape(name): html.unescape(path) for path, name in found}


class TestFleetPage:
    def test_lists_every_device_with_the_one_that_fires_first(self, plant: Plant) -> None:
        page = text(plant.server, "/")
        listed = links(page)
        assert set(listed) == {SICK, WELL, *AWKWARD}
        assert next(iter(listed)) == SICK
        assert "1 of 10 devices firing" in page
        assert "flow" in page
        assert f"{SICK}: flow" not in page, "the row has the device's name already"

    def test_what_devices_and_channels_are_called_is_text(self, plant: Plant) -> None:
        for path in ("/", "/" + links(text(plant.server, "/"))[NASTY], f"/devices/pump/{SICK}"):
            page = text(plant.server, path)
            assert "<script>document" not in page
            assert html.escape(NASTY, quote=False).split("<")[0][:20] in page

    def test_every_awkward_name_has_a_page_that_its_row_leads_to(self, plant: Plant) -> None:
        for name, path in links(text(plant.server, "/")).items():
            normal = urljoin(f"http://h/{path}")
            page = text(plant.server, normal)
            assert html.unescape(re.findall(r"<h1>(.*?)</h1>", page)[0]) == name

    def test_is_searched_filtered_sorted_and_told_what_it_cannot(self, plant: Plant) -> None:
        assert list(links(text(plant.server, "/?q=PUMP&sort=device&down=0"))) == [WELL, SICK]
        assert list(links(text(plant.server, "/?q=pump&sort=device"))) == [SICK, WELL]
        assert list(links(text(plant.server, "/?which=alerts"))) == [SICK]
        assert "No device matches" in text(plant.server, "/?which=silent")
        assert "No device matches" in text(plant.server, "/?q=%3Cscript%3E%00%F0")
        text(plant.server, "/?page=-1&sort=nonsense&which=&down=%FF&page=99999999999999")

    def test_nothing_is_loaded_from_elsewhere_or_run_inline(self, plant: Plant) -> None:
        for path in ("/", f"/devices/pump/{SICK}", "/devices/pump/nobody"):
            with closing(request(plant.server, path)) as response:
                page = response.read().decode()
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert not re.search(r"<script(?! src=)|<style|\son\w+=|style=|https?://", page)

    def test_needs_the_secret_that_metrics_need(self, plant: Plant) -> None:
        for path in ("/", f"/devices/pump/{SICK}", "/static/page.js"):
            with closing(request(plant.server, path, Authorization="Basic x")) as response:
                assert response.status == 401

    def test_says_what_is_missed(self, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plant.service.page, "_ready", lambda: (False, ["journal: disk <full>"]))
        assert "journal: disk &lt;full&gt;" in text(plant.server, "/")

    def test_says_what_is_refused_though_the_daemon_is_ready(
        self, plant: Plant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert 'role="alert"' not in text(plant.server, "/")
        monkeypatch.setattr(plant.service.intake, "reasons", (f"profile pump: {NASTY}", "profile room: nothing"))
        with closing(request(plant.server, "/readyz")) as response:
            assert response.status == 200
        for page in (text(plant.server, "/"), text(plant.server, f"/devices/pump/{SICK}")):
            (banner,) = re.findall(r'<div class="note bad" role="alert">(.*?)</div>', page, re.DOTALL)
            assert banner.count("<p>") == 2
            assert "profile pump: &lt;/script&gt;&lt;script&gt;" in banner


def urljoin(url: str) -> str:
    """The path that a browser asks for: dot segments are resolved, coded ones too."""
    out: list[str] = []
    for part in url.removeprefix("http://h/").split("/"):
        if part.replace("%2e", ".").replace("%2E", ".") == "..":
            out = out[:-1]
        elif part not in {".", "%2e", "%2E"}:
            out.append(part)
    return "/" + "/".join(out)


def points(line: str) -> list[tuple[float, float]]:
    """Where a path of lines goes."""
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", line)]


class TestDevicePage:
    def test_shows_values_band_score_and_why(self, plant: Plant) -> None:
        path = f"/devices/pump/{SICK}"
        text(plant.server, path)
        plant.tick(3, sick=True)
        plant.caught_up()
        wait_until(lambda: '<path class="line"' in text(plant.server, path), 10)
        page = text(plant.server, path)
        message = re.findall(r'<p class="message">(.*?)</p>', page)[0]
        assert message.startswith("flow ")
        assert "explains" in message
        shares = [int(share) for share in re.findall(r"(\d+) %</td>", page)]
        assert len(shares) == 3
        assert 98 <= sum(shares) <= 102
        values = page.partition('id="values"')[2]
        assert values.count('<path class="line"') == 4, "score and three channels"
        assert values.count('<path class="band"') == 3
        assert '<path class="level"' in values

    def test_an_alert_is_seen_from_before_it_began_though_nobody_looked_then(self, plant: Plant) -> None:
        page = text(plant.server, f"/devices/pump/{SICK}")
        card = page.partition('<article class="card alert')[2].partition("</article>")[0]
        since = float(re.findall(r'<path class="since" d="M([\d.]+) ', card)[0])
        line = points(re.findall(r'<path class="line" d="(.*?)"', card)[0])
        assert len([x for x, _ in line if x < since]) >= 50
        assert len([x for x, _ in line if x >= since]) >= 5
        before = max(y for x, y in line if x < since), min(y for x, y in line if x < since)
        assert min(y for x, y in line if x >= since) < before[1], "60 above all that was before"
        assert "flow about this alert" in card
        values = re.findall(r'<path class="line" d="(.*?)"', page.partition('id="values"')[2])
        assert all(len(points(line)) >= 64 for line in values)

    def test_the_first_look_has_the_last_values_at_once(self, plant: Plant) -> None:
        wait_until(lambda: Key("pump", WELL) not in plant.service.page._details, 10)
        began = time.monotonic()
        page = text(plant.server, f"/devices/pump/{WELL}")
        assert time.monotonic() - began < 5
        last = plant.values[WELL][plant.at - 1]
        assert f'<span class="last">{quantity(float(last[1]))}</span>' in page
        assert "Nothing." in page

    def test_an_unknown_device_is_404_in_words(self, plant: Plant) -> None:
        for path in ("/devices/pump/nobody", "/devices/none/pump-9", "/devices/pump/", "/devices/%ff/%ff"):
            assert "No such device" in text(plant.server, path, 404)

    def test_a_resolved_alert_stays_in_the_history(self, tmp_path: Path) -> None:
        plant = Plant(tmp_path)
        try:
            plant.tick(150)
            plant.tick(5, sick=True)
            plant.tick(60)
            plant.caught_up()
            wait_until(lambda: "resolved" in text(plant.server, f"/devices/pump/{SICK}"), 5)
            past = text(plant.server, f"/devices/pump/{SICK}").partition('id="past"')[2]
            row = past.partition("<tbody>")[2].partition("</tr>")[0]
            line = points(re.findall(r'<path class="line" d="(.*?)"', row)[0])
            since = float(re.findall(r'<path class="since" d="M([\d.]+) ', row)[0])
            assert len([x for x, _ in line if x < since]) >= 50
            assert len([x for x, _ in line if x >= since]) >= 15
            assert '<path class="flags"' in row
        finally:
            plant.stop()


class TestEvents:
    def test_what_changes_is_told_while_somebody_listens(self, plant: Plant) -> None:
        with closing(request(plant.server, f"/devices/pump/{WELL}", Accept="text/event-stream")) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.readline() == b"retry: 500\n"
            first = event(stream)
            plant.tick(2)
            until = time.monotonic() + 10
            last = f'<span class="last">{quantity(float(plant.values[WELL][plant.at - 1][1]))}</span>'
            while last not in (now := event(stream)) and time.monotonic() < until:
                pass
        assert "<h1>pump-9</h1>" in first
        assert last not in first
        assert last in now
        assert '<path class="line"' in now

    def test_too_many_listeners_are_told_to_come_later_and_make_room(self, plant: Plant) -> None:
        with ExitStack() as held:
            for _ in range(MOST_STREAMS):
                one = held.enter_context(closing(request(plant.server, "/", Accept="text/event-stream")))
                assert one.status == 200
                one.readline()
            with closing(request(plant.server, "/", Accept="text/event-stream")) as response:
                assert (response.status, response.headers["retry-after"]) == (503, "15")
            assert text(plant.server, "/")

        def room() -> bool:
            with closing(request(plant.server, "/", Accept="text/event-stream")) as response:
                return response.status == 200

        wait_until(room, 10)

    def test_a_stream_ends_before_the_server_cuts_it(self, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sentinel.adapters.page.routes.STREAM_SECONDS", 0.5)
        with closing(request(plant.server, "/", Accept="text/event-stream")) as stream:
            assert stream.read().startswith(b"retry: 500\n\ndata: ")

    def test_streams_end_with_the_daemon(self, tmp_path: Path) -> None:
        plant = Plant(tmp_path)
        stream = request(plant.server, "/", Accept="text/event-stream")
        stream.readline()
        began = time.monotonic()
        plant.stop()
        assert stream.read() is not None
        assert time.monotonic() - began < 5
        stream.close()


def event(stream: http.client.HTTPResponse) -> str:
    while True:
        line = stream.readline()
        assert line, "the stream is over"
        if line.startswith(b"data: "):
            said: str = json.loads(line[6:])
            return said


def commands_of(plant: Plant) -> list[Command]:
    """What the journal has of them."""
    entries = [entry for turn in plant.disk.turns for entry in turn.entries]
    return [entry for entry in entries if isinstance(entry, Command)]


OWN = {"Sec_Fetch_Site": "same-origin"}


class TestCommands:
    def test_go_the_way_of_all_commands(self, plant: Plant) -> None:
        path, before = f"/devices/pump/{SICK}", plant.count("accepted")
        assert ">Acknowledge</button>" in text(plant.server, path)
        with closing(request(plant.server, f"{path}?do=acknowledge", "POST", **OWN)) as response:
            assert (response.status, response.headers["location"]) == (303, "?did=acknowledge")
        page = text(plant.server, f"{path}?did=acknowledge")
        assert "Acknowledged." in page
        assert '<span class="badge acknowledged">' in page
        assert ">Acknowledge</button>" not in page
        assert plant.count("accepted") == before + 1
        with closing(request(plant.server, f"{path}?do=shelve&for=3600", "POST", **OWN)) as response:
            assert response.status == 303
        assert '<span class="badge shelved">' in text(plant.server, path)
        assert commands_of(plant) == [
            Command("acknowledge", "pump", SICK),
            Command("shelve", "pump", SICK, 3600.0),
        ]

    def test_a_device_without_an_alert_is_shelved_and_unshelved_and_said_to_be(self, plant: Plant) -> None:
        path = f"/devices/pump/{WELL}"
        assert "Unshelve" not in text(plant.server, path)
        with closing(request(plant.server, f"{path}?do=shelve&for=28800", "POST", **OWN)) as response:
            assert response.headers["location"] == "?did=shelve"
        until = f"{datetime.fromtimestamp(plant.service.pipeline.profiles['pump'].book.shelved[WELL], UTC):%H:%M}"
        page = text(plant.server, path)
        assert re.search(rf"shelved until <time [^>]*data-brief>[-0-9 ]*{until}</time>", page)
        overview = text(plant.server, "/?which=alerts")
        assert WELL in links(overview), "what is shelved can be found"
        assert re.search(rf"shelved until <time [^>]*data-brief>[-0-9 ]*{until}</time>", overview)
        with closing(request(plant.server, f"{path}?do=shelve&for=0", "POST", **OWN)) as response:
            assert response.headers["location"] == "?did=unshelve"
        page = text(plant.server, f"{path}?did=unshelve")
        assert "No longer shelved" in page
        assert "shelved until" not in page
        assert WELL not in links(text(plant.server, "/?which=alerts"))

    @pytest.mark.parametrize(
        ("verb", "said"),
        [
            ("acknowledge", "There is nothing to acknowledge any more."),
            ("normal", "There is nothing to accept any more."),
        ],
    )
    def test_a_button_for_an_alert_that_is_gone_says_so(self, plant: Plant, verb: str, said: str) -> None:
        with closing(request(plant.server, f"/devices/pump/{WELL}?do={verb}", "POST", **OWN)) as response:
            assert response.status == 409
            assert said in response.read().decode()
        assert Command(verb, "pump", WELL) not in commands_of(plant)  # type: ignore[arg-type]

    @pytest.mark.parametrize("query", ["", "?do=forget", "?do=shelve", "?do=shelve&for=1e9", "?do=normal&for=3600"])
    def test_what_no_button_says_is_400(self, plant: Plant, query: str) -> None:
        with closing(request(plant.server, f"/devices/pump/{SICK}{query}", "POST", **OWN)) as response:
            assert response.status == 400

    def test_another_site_cannot_command(self, plant: Plant) -> None:
        before = plant.count("accepted")
        for headers in ({}, {"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            with closing(request(plant.server, f"/devices/pump/{SICK}?do=normal", "POST", **headers)) as response:
                assert response.status == 403
        assert plant.count("accepted") == before

    def test_a_device_that_is_gone_meanwhile_is_told(self, plant: Plant) -> None:
        page = plant.service.page
        asked: list[Any] = []
        told = Thread(target=lambda: asked.append(request(plant.server, "/devices/pump/x?do=normal", "POST", **OWN)))
        fleet = page._fleet
        page._fleet = Fleet([ProfileRows("pump", ["x"], np.zeros(1, np.int8), np.zeros(1), np.zeros(1), STATUS)], 0.0)
        told.start()
        told.join(10)
        page._fleet = fleet
        assert asked[0].status == 404
        assert plant.count("unknown_device") == 1

    def test_a_command_is_confirmed_once_it_is_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sentinel.adapters.page.routes.COMMAND_SECONDS", 1.0)
        plant = Plant(tmp_path)
        plant.tick(1)
        plant.caught_up()
        wait_until(lambda: SICK in text(plant.server, "/"), 5)
        plant.disk.full = True
        with closing(request(plant.server, f"/devices/pump/{SICK}?do=shelve&for=3600", "POST", **OWN)) as response:
            assert response.status == 503
            assert "disk" in response.read().decode()
        plant.disk.full = False
        plant.stop()
        assert commands_of(plant) == [Command("shelve", "pump", SICK, 3600.0)]

    def test_a_flood_is_limited_with_those_of_the_broker(self, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sentinel.service.COMMANDS_A_SECOND", 0)
        wait_until(lambda: plant.service._commands_left <= 0, 5)
        with closing(request(plant.server, f"/devices/pump/{SICK}?do=normal", "POST", **OWN)) as response:
            assert response.status == 429
            assert "Try again" in response.read().decode()
        assert plant.count("rate_limited") >= 1
        monkeypatch.undo()
        wait_until(lambda: plant.service._commands_left == COMMANDS_A_SECOND, 5)

    def test_a_reactor_that_does_not_answer_is_told_and_does_nothing_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sentinel.adapters.page.routes.COMMAND_SECONDS", 0.2)
        page, server = shown(1)
        with closing(request(server, "/devices/pump/pump-0?do=normal", "POST", **OWN)) as response:
            assert response.status == 503
            assert "busy" in response.read().decode()
        assert page.asks() == []
        server.stop()

    def test_without_a_password_there_are_no_buttons(self, tmp_path: Path) -> None:
        page = Page(lambda: (True, []), lambda: None, commands=False, words=WORDS)
        server = HttpServer("127.0.0.1", 0, CollectorRegistry(), *[lambda: (True, [])] * 2, pages=page.routes)
        server.start()
        page.show(fleet_of(1))
        page.tell(Alerts({Key("pump", "pump-0"): (alert("pump-0"),)}), {})
        said = text(server, "/devices/pump/pump-0")
        assert "<button" not in said
        assert "password_file" in said
        with closing(request(server, "/devices/pump/pump-0?do=normal", "POST", **OWN)) as response:
            assert response.status == 405
        server.stop()


STATUS: dict[str, Any] = {
    "model": None,
    "training": False,
    "stage": "collecting",
    "progress": 0.4,
    "failure": "",
    "apart": [],
    "unread": [],
}


def alert(device: str, score: float = 2.0, state: Any = "firing") -> Alert:
    return Alert(
        device,
        0,
        state,
        device,
        "pump",
        "prediction",
        "warning",
        1.7e9,
        1.7e9,
        None,
        score,
        1e-9,
        3,
        (),
        f"{device}: bad",
        None,
    )


def fleet_of(devices: int) -> Fleet:
    rng = np.random.default_rng(3)
    names = [f"pump-{n}" for n in range(devices)]
    states = rng.integers(0, len(DEVICE_STATES), devices).astype(np.int8)
    seen = 1.7e9 - rng.uniform(0, 1e4, devices)
    return Fleet([ProfileRows("pump", names, states, rng.uniform(0, 0.9, devices), seen, STATUS)], 1.7e9)


def test_who_is_offline_is_found_beside_who_is_silent() -> None:
    states = np.arange(len(DEVICE_STATES), dtype=np.int8)
    rows = ProfileRows("plc", DEVICE_STATES, states, np.zeros(len(states)), np.zeros(len(states)), STATUS)
    found = ask(Fleet([rows], 1.0), Alerts(), Question(which="silent"))
    assert {row.state for row in found.rows} == {"silent", "offline"}


def shown(devices: int) -> tuple[Page, HttpServer]:
    page = Page(lambda: (True, []), lambda: None, commands=True, words=WORDS)
    access = Access(None, USER, PASSWORD)
    server = HttpServer(
        "127.0.0.1", 0, CollectorRegistry(), *[lambda: (True, [])] * 2, pages=page.routes, access=access
    )
    server.start()
    page.show(fleet_of(devices))
    page.tell(Alerts(), {})
    return page, server


class TestTenThousandDevices:
    def test_are_answered_within_half_a_second_in_a_bounded_page(self) -> None:
        page, server = shown(10_000)
        open_ = {Key("pump", f"pump-{n}"): (alert(f"pump-{n}", n),) for n in range(0, 10_000, 2)}
        page.tell(Alerts(open_), {})
        for path in ("/", "/?sort=device&down=0&page=200", "/?q=99&sort=score", "/?which=alerts&sort=seen"):
            took = []
            for _ in range(3):  # the machine may be busy with other things
                page.show(fleet_of(10_000))
                began = time.monotonic()
                said = text(server, path)
                took.append(time.monotonic() - began)
            assert min(took) < 0.5
            assert len(said) < 60_000
            assert len(links(said)) == PAGE
        server.stop()

    def test_what_stood_apart_while_learning_is_said_of_its_profile(self) -> None:
        page, server = shown(3)
        fleet = fleet_of(3)
        said = "pump-1: flow 9 <m3/h> (usually 2 m3/h) was unlike all else"
        page.show(Fleet([replace(fleet.profiles[0], status=STATUS | {"apart": [said]})], fleet.now))
        assert "Stood apart while it learned: pump-1: flow 9 &lt;m3/h&gt;" in text(server, "/")
        server.stop()

    def test_devices_that_are_not_understood_are_said_of_their_profile(self) -> None:
        page, server = shown(3)
        fleet = fleet_of(3)
        status = STATUS | {"unread": ["pump-9: text ('<b>') at channel path 'v', expected a number"]}
        page.show(Fleet([replace(fleet.profiles[0], status=status)], fleet.now))
        assert "Not understood: pump-9: text (&#39;&lt;b&gt;&#39;)" in text(server, "/")
        server.stop()

    def test_what_holds_an_alert_back_is_said_beside_the_score(self) -> None:
        page, server = shown(3)
        key = Key("pump", "pump-1")
        tick = Tick(1.7e9, 1.2, np.array([1.0]), np.array([0.0]), np.array([2.0]))
        for raised, rest, said in ((0.35, 0, "an alert takes some 1.35"), (0.0, 20, "no new alert for 20 readings")):
            page.tell(Alerts(), {key: Detail([("heat", "")], np.array([1.0]), (tick,), (), {}, raised, rest)})
            assert said in text(server, "/devices/pump/pump-1")
        server.stop()

    def test_pages_cut_the_sorted_whole(self) -> None:
        fleet = fleet_of(120)
        asked = [ask(fleet, Alerts(), Question(sort="score", page=page)) for page in (1, 2, 3, 99)]
        scores = [row.score for answer in asked[:3] for row in answer.rows]
        assert scores == sorted(fleet.score, reverse=True)
        assert (asked[3].page, asked[3].pages, asked[3].total) == (3, 3, 120)

    def test_the_worst_come_first_and_the_well_ones_keep_their_places(self) -> None:
        fleet = fleet_of(20)
        alerts = Alerts({Key("pump", d): (alert(d, s, t),) for d, s, t in SOME})
        order = [row.key.device for row in ask(fleet, alerts, Question()).rows]
        assert order[:4] == ["pump-7", "pump-3", "pump-11", "pump-5"]
        assert order[4:] == [f"pump-{n}" for n in range(20) if n not in {7, 3, 11, 5}][:16]


SOME = [
    ("pump-3", 2.0, "firing"),
    ("pump-5", 9.0, "shelved"),
    ("pump-7", 3.0, "firing"),
    ("pump-11", 8.0, "acknowledged"),
]


class TestWindow:
    def test_nobody_is_watched_where_nobody_looks_and_nothing_is_wrong(self) -> None:
        bench = watched(3)
        assert not bench.table.watched.any()

    def test_ticks_and_devices_that_are_kept_are_bounded(self) -> None:
        pipeline, page, window = parts(MOST_WATCHED + MOST_LOOKED + 20)
        stream = pipeline.profiles["pump"]
        for device in stream.table.slot_of:
            window.took_alerts(stream.book.start(device, "silence", 1.7e9, 1.7e9))
        show(window, stream)
        assert int(stream.table.watched.sum()) == MOST_WATCHED
        late = f"d{MOST_WATCHED + MOST_LOOKED + 10}"
        page._look(Key("pump", late))
        window.tell()
        assert stream.table.watched[stream.table.slot_of[late]], "who is looked at comes first"
        assert int(stream.table.watched.sum()) == MOST_WATCHED
        values = fleets.healthy(MOST_TICKS + 20, 0)
        for at in range(len(values)):
            outcome, _ = stream.absorb(fleets.readings([late], np.array([1.7e9 + at]), values[at : at + 1]), 1.7e9 + at)
            window.took_looks("pump", outcome.looks)
        window.tell()
        ticks = page._details[Key("pump", late)].ticks
        assert len(ticks) == MOST_TICKS
        assert ticks[-1].values.tolist() == values[-1].tolist()

    def test_what_is_kept_of_alerts_is_bounded_and_goes_with_the_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sentinel.window.MOST_HISTORY", 100)
        devices = MOST_BEGUN + 10
        pipeline, page, window = parts(devices)
        stream = pipeline.profiles["pump"]
        ids, values = list(stream.table.slot_of), fleets.healthy(2 * MOST_TICKS, 0)

        def tick(at: int) -> None:
            time = 1.7e9 + at
            block = np.repeat(values[at : at + 1], devices, axis=0)
            outcome, _ = stream.absorb(fleets.readings(ids, np.full(devices, time), block), time)
            window.took_looks("pump", outcome.looks)

        def alarm(at: int, seen: dict[Any, Any]) -> None:
            for device in ids:
                window.took_alerts(stream.book.tick(device, 1.7e9 + at, 1.7e9 + at, seen, 0)[0])

        for at in range(KEPT + 20):
            tick(at)
        flow = ChannelView("flow", "m3/h", 20.0, None, None, None, 1.0)
        alarm(KEPT + 19, {"rate": lambda: Evidence(None, None, (flow,))})
        for at in range(KEPT + 20, 2 * MOST_TICKS):
            tick(at)
        for at in range(stream.spec.quiet_ticks):
            alarm(2 * MOST_TICKS - 1 + at, {})
        window.tell()
        history, courses = page._alerts.history, page._alerts.courses
        assert len(courses) == len(history) == 100
        seen = {alert.device: courses[alert.id] for alert in history}
        before, last = ([1.7e9 + first + at for at in range(KEPT)] for first in (20, 2 * MOST_TICKS - KEPT))
        watched = seen[ids[MOST_WATCHED - 1]]
        assert watched.time.tolist() == [1.7e9 + 20 + at for at in range(MOST_TICKS)]
        np.testing.assert_allclose(watched.values, values[20 : 20 + MOST_TICKS, 1], rtol=1e-6)
        assert seen[ids[MOST_BEGUN - 1]].time.tolist() == before + last
        assert seen[ids[-1]].time.tolist() == last
        assert sum(part.nbytes for c in courses.values() for part in (c.time, c.values, c.low, c.high)) <= 100 * 4800
        assert not window._begun

    def test_a_forgotten_device_is_let_go(self) -> None:
        pipeline, page, window = parts(2)
        stream = pipeline.profiles["pump"]
        show(window, stream)
        page._look(Key("pump", "d1"))
        window.tell()
        assert stream.table.watched.sum() == 1
        stream.command(Command("forget", "pump", "d1"), 1.7e9)
        window.tell()
        assert Key("pump", "d1") not in page._details
        assert not stream.table.watched.any()


def parts(devices: int) -> tuple[Any, Page, Any]:
    pipeline = Pipeline([fleets.spec()])
    page = Page(lambda: (True, []), lambda: None, commands=True, words=WORDS)
    for n in range(devices):
        pipeline.profiles["pump"].announce(f"d{n}", 1.7e9)
    return pipeline, page, Window(pipeline, page)


def show(window: Any, stream: Any) -> None:
    slots = np.flatnonzero(stream.table.used)
    ids = [stream.table.ids[slot] for slot in slots]
    rows = ProfileRows(
        "pump", ids, stream.state_codes()[slots], stream.scores()[slots], stream.table.last_seen[slots], STATUS
    )
    window.show([rows], 1.7e9)


def watched(devices: int) -> Any:
    pipeline, _, window = parts(devices)
    show(window, pipeline.profiles["pump"])
    return pipeline.profiles["pump"]


class TestCharts:
    def test_a_line_breaks_where_nothing_came_and_one_reading_is_a_point(self) -> None:
        values = np.array([1.0, 2.0, np.nan, 3.0, np.nan])
        none = np.full(5, np.nan)
        chart = draw(np.arange(5.0), values, none, none, values > 2.5)
        assert chart.line.count("M") == 2
        assert chart.line.endswith("h0")
        assert chart.flags.count("M") == 1
        assert chart.band == ""

    @pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
    def test_nothing_is_drawn_of_nothing(self, values: list[float]) -> None:
        part = np.array(values)
        assert draw(part, part, part, part, part > 0, level=1.0).line == ""

    def test_a_band_gone_wild_does_not_flatten_the_values(self) -> None:
        values = np.sin(np.arange(50.0))
        high = values + 1.0
        high[3] = 1e9
        chart = draw(np.arange(50.0), values, values - 1.0, high, values > 9)
        assert chart.high < 20


AXE = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
CHECK = AXE + (
    ";const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then((found) =>"
    " done(found.violations.map((v) => v.id + ' ' + v.nodes.map((n) => n.html.slice(0, 200)).join(' '))));"
)


class TestInABrowser:
    @pytest.fixture(autouse=True)
    def _quiet(self, browser: Browser, plant: Plant) -> Iterator[None]:
        self.browser, self.plant = browser, plant
        browser.problems()
        yield
        assert browser.problems() == []

    def open(self, path: str, *, width: int = 1280, scheme: str = "light") -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        base = self.plant.server.url.replace("://", f"://{USER}:{PASSWORD}@")
        self.browser.post("/url", {"url": f"{base}{path}"})
        wait_until(lambda: self.browser.run("return document.getElementById('connection').textContent") == "live", 10)

    def cdp(self, command: str, **params: Any) -> Any:
        return self.browser.post("/goog/cdp/execute", {"cmd": command, "params": params})

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1280, 360])
    def test_everybody_can_use_it(self, width: int, scheme: str) -> None:
        assert '<figure class="course">' in text(self.plant.server, f"/devices/pump/{SICK}").partition('id="past"')[0]
        assert '<figure class="course">' in text(self.plant.server, f"/devices/pump/{WELL}").partition('id="past"')[2]
        with closing(request(self.plant.server, f"/devices/pump/{WELL}?do=shelve&for=3600", "POST", **OWN)):
            pass
        for path in ("/", f"/devices/pump/{SICK}", f"/devices/pump/{WELL}"):
            self.open(path, width=width, scheme=scheme)
            assert self.browser.post("/execute/async", {"script": CHECK, "args": []}) == []
            assert self.browser.run("return document.documentElement.scrollWidth") <= width
            ground = self.browser.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")

    def test_values_move_and_the_focus_stays(self) -> None:
        self.open(f"/devices/pump/{SICK}")
        self.browser.run("document.querySelector('.actions button').focus()")
        focused = self.browser.run("return document.activeElement.textContent")
        before = self.browser.run("return document.querySelectorAll('.last')[2].textContent")
        self.plant.tick(2, sick=True)
        wait_until(lambda: self.browser.run("return document.querySelectorAll('.last')[2].textContent") != before, 10)
        assert self.browser.run("return document.activeElement.textContent") == focused != ""
        assert "hacked" not in self.browser.run("return document.title")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_messages_that_do_not_fit_are_told_while_somebody_looks(self, scheme: str) -> None:
        service = self.plant.service
        service.intake = Intake(service.pipeline.profiles, "sentinel")
        self.open("/", scheme=scheme)
        banner = "return document.querySelector('[role=alert]')?.textContent ?? ''"
        assert self.browser.run(banner) == ""
        unlike = orjson.dumps({NASTY: {"id": "x"}, "ts": fleets.START})
        for _ in range(100):
            self.plant.broker.publish_from_outside("plant", unlike)
        wait_until(lambda: "nothing at device path 'id'; the payload has: </script>" in self.browser.run(banner), 10)
        assert "look at profiles.pump.device.path" in self.browser.run(banner)
        assert self.browser.post("/execute/async", {"script": CHECK, "args": []}) == []
        assert "hacked" not in self.browser.run("return document.title")
        service.intake = Intake(service.pipeline.profiles, "sentinel")
        wait_until(lambda: self.browser.run(banner) == "", 10)

    def test_search_follows_the_keys_and_sorting_needs_no_reload(self) -> None:
        self.open("/")
        rows = "return [...document.querySelectorAll('.fleet tbody th')].map((e) => e.textContent)"
        self.browser.run("window.same = true; document.getElementById('q').focus()")
        for key in "pump":
            self.browser.press(key)
        wait_until(lambda: self.browser.run(rows) == [SICK, WELL], 10)
        self.browser.run("document.querySelector('.fleet thead a').click()")
        wait_until(lambda: self.browser.run(rows) == [WELL, SICK], 10)
        assert self.browser.run("return [window.same, document.getElementById('q').value]") == [True, "pump"]
        assert self.browser.run("return location.search") == "?q=pump&sort=device&down=0"

    def test_a_time_to_the_minute_is_told_by_the_clock_of_who_reads(self) -> None:
        with closing(request(self.plant.server, f"/devices/pump/{WELL}?do=shelve&for=604800", "POST", **OWN)):
            pass
        self.cdp("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")
        self.cdp("Emulation.setLocaleOverride", locale="de-DE")
        self.open(f"/devices/pump/{WELL}")
        told = self.browser.run("return document.querySelector('time[data-brief]').textContent")
        until = datetime.fromtimestamp(self.plant.service.pipeline.profiles["pump"].book.shelved[WELL], UTC)
        assert told == f"{until + timedelta(hours=9):%d.%m.%y, %H:%M}"
        self.cdp("Emulation.setTimezoneOverride", timezoneId="")
        self.cdp("Emulation.setLocaleOverride")

    def test_a_button_does_what_it_says(self) -> None:
        self.open(f"/devices/pump/{SICK}")
        button = self.browser.post("/element", {"using": "css selector", "value": "[formaction*='86400']"})
        before = self.plant.count("accepted")
        self.browser.post(f"/element/{next(iter(button.values()))}/click", {})
        wait_until(lambda: "Shelved." in self.browser.run("return document.body.textContent"), 10)
        assert self.plant.count("accepted") == before + 1
        wait_until(lambda: self.browser.run("return location.search") == "", 5)
