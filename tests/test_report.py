"""report.html: what it says, that it is harmless, and that its plots work in a browser."""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sentinel.backtest import Result
from sentinel.commands import _report, backtest
from sentinel.commands._report import write_report
from sentinel.errors import DataError
from sentinel.records import Alert, ChannelView
from tests.brokers import wait_until
from tests.browsers import Browser

NASTY = "</script><script>document.title='hacked'</script>\"'&<b>\u2028"
START = 1_583_750_000.0


def made_up(
    devices: tuple[str, ...] = ("pump-1",),
    channels: tuple[str, ...] = ("pressure", "flow"),
    rows: int = 600,
    start: float = START,
) -> Result:
    """`rows` a device, the first 100 learned from; an alert and a labelled event each at rows 300 to 340."""
    total, f = rows * len(devices), len(channels)
    random = np.random.default_rng(0)
    row = np.tile(np.arange(rows), len(devices))
    values = np.sin(row / 20)[:, None] + 0.1 * random.standard_normal((total, f))
    values[row == 320] = 8.0
    learned = row < 100
    flagged = (row >= 300) & (row < 340)
    score = np.where(learned, np.nan, 0.5 + flagged)
    expected = np.where(learned[:, None], np.nan, np.sin(row / 20)[:, None] + np.zeros((1, f)))
    result = Result(
        channels=channels,
        device=np.repeat(np.arange(len(devices)), rows),
        devices=list(devices),
        time=start + row.astype(np.float64),
        values=values,
        label=((row >= 295) & (row < 350)).astype(np.int8),
        learned=learned,
        score=score,
        p_value=np.exp(-score),
        anomaly=flagged,
        expected=expected,
        low=expected - 0.3,
        high=expected + 0.3,
        budget=1 / 604800,
    )
    for device in devices:
        view = ChannelView(channels[0], "bar", 8.0, 0.5, 0.2, 0.8, 0.8)
        alert = Alert(
            id=f"id of {device}",
            seq=1,
            state="resolved",
            device=device,
            profile="pump",
            kind="prediction",
            severity="warning",
            started=start + 300,
            updated=start + 340,
            ended=start + 340,
            score=1.5,
            p_value=1e-6,
            ticks=40,
            channels=(view,),
            message=f"{device}: {channels[0]} 8 bar, expected 0.5 ± 0.3 for 40 s; resolved",
            model=None,
            fired=start + 310,
        )
        result.alerts.append(alert)
    return result


def written(folder: Path, result: Result, **more: Any) -> Path:
    path = folder / "report.html"
    write_report(path, result, result.summary() | {"notes": []} | more)
    return path


class Page(HTMLParser):
    """Text a reader sees, elements, and what the scripts hold."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.tags, self.scripts = "", [], []
        self.attributes: list[tuple[str, str | None]] = []
        self._in: list[str] = []
        self.feed(path.read_text("utf-8"))

    tags: list[str]
    scripts: list[str]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._in = [tag] if tag in {"script", "style"} else []
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = []

    def handle_data(self, data: str) -> None:
        if self._in == ["script"]:
            self.scripts[-1] += data
        elif not self._in:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


class TestWords:
    def test_the_summary_is_said_in_a_sentence(self, tmp_path: Path) -> None:
        page = Page(written(tmp_path, made_up()))
        assert (
            "1 alert (1 prediction) on device pump-1 in 8 device-minutes of watching; 1 of 1 labelled events found"
            in page.text
        )
        assert "typically after 5 s" in page.text

    def test_a_plant_engineer_reads_how_often_what_was_found_how_fast_and_where(self, tmp_path: Path) -> None:
        result = made_up(("pump-1", "pump-2", "pump-3"))
        result.alerts = [result.alerts[0], replace(result.alerts[0], id="again"), result.alerts[1]]
        summary = result.summary() | {"device_weeks": 4.0, "alert_budget_per_device_week": 1.0}
        text = Page(written(tmp_path, result, **summary)).text
        for said in (
            "3 alarms from forecasts in 4.0 device-weeks: a device alarms once in 1.33 weeks;",
            "the budget allows a healthy one once a week.",
            "3 of 3 labelled episodes detected, half of them within 5 s, the slowest after 5 s; 0 alarms outside of them.",
            "1 of 3 devices never alarmed; most often, 2 times, did pump-1.",
            "An alarm lasted 40 s in the median, 40 s at most.",
        ):
            assert said in text
        assert "pump-18 min22–8.00%" in text

    def test_alarms_stand_beside_their_budget(self, tmp_path: Path) -> None:
        summary = {"device_weeks": 4.0, "alerts_per_device_week": 0.25, "alert_budget_per_device_week": 1.0}
        page = Page(written(tmp_path, made_up(), **summary))
        assert "budget 1; 1 in 4.0 device-weeks, 0 of them outside labelled events, 4 allowed" in page.text
        assert "too short to tell" not in page.text
        assert "too short to tell" in Page(written(tmp_path, made_up())).text

    def test_each_alert_is_told_with_its_time_and_words(self, tmp_path: Path) -> None:
        text = Page(written(tmp_path, made_up())).text
        assert "2020-03-09 10:38:20" in text
        assert "pump-1: pressure 8 bar, expected 0.5 ± 0.3 for 40 s" in text

    def test_each_alert_is_told_with_its_delay_length_and_channels(self, tmp_path: Path) -> None:
        result = made_up()
        (alert,) = result.alerts
        tick = replace(alert, id="other", kind="gap", ended=alert.started, fired=alert.started, channels=())
        pending = replace(alert, id="third", fired=None)
        result.alerts += [tick, pending]
        text = re.sub(r"\s+", " ", Page(written(tmp_path, result)).text.replace("\n", " "))
        assert "10 s2020-03-09 10:38:30" in text
        assert "pressure 80%" in text
        assert "at onceone reading" in text
        assert "never fired" in text

    def test_rows_flagged_are_a_share_of_those_not_learned_from(self, tmp_path: Path) -> None:
        assert "40 (8.00%) flagged" in Page(written(tmp_path, made_up())).text

    def test_other_budgets_stand_beside_what_they_allow(self, tmp_path: Path) -> None:
        other = {"1/month": 1, "1/week": 3, "1/day": 40}
        text = Page(written(tmp_path, made_up(), device_weeks=4.0, would_have_fired=other)).text
        assert "What would have fired" in text
        assert "1/month10.250.933" in text
        assert "1/week (this run)30.754" in text
        assert "1/day401028" in text
        assert "What would have fired" not in Page(written(tmp_path, made_up())).text

    def test_labels_are_said_as_recall_and_rates(self, tmp_path: Path) -> None:
        text = Page(written(tmp_path, made_up())).text
        assert "recall 100%, 0 missed; median delay 5 s" in text
        assert "0.0% of normal rows flagged (FAR); 27.3% of labelled rows not flagged (MAR)" in text

    @pytest.mark.parametrize(
        ("fired", "told"), [(290, "open already"), (310, "after 15 s"), (400, "none"), (None, "none")]
    )
    def test_a_labelled_event_says_when_its_alert_fired(self, tmp_path: Path, fired: float | None, told: str) -> None:
        result = made_up()
        (alert,) = result.alerts
        result.alerts[0] = replace(alert, fired=fired and START + fired, ended=START + max(fired or 0, 340))
        assert f"found after 5 s{told}" in Page(written(tmp_path, result)).text

    def test_missed_events_are_said(self, tmp_path: Path) -> None:
        result = made_up()
        result.anomaly[:] = False
        text = Page(written(tmp_path, result)).text
        assert "0 of 1" in text
        assert "missed" in text

    def test_row_numbers_are_no_dates(self, tmp_path: Path) -> None:
        page = Page(written(tmp_path, made_up(start=0.0)))
        assert "300 s" in page.text
        assert "1970" not in page.text
        assert page.data["dated"] is False

    def test_an_open_alert_lasts_to_the_end_and_has_its_highest_score(self, tmp_path: Path) -> None:
        result = made_up()
        result.score[330] = 7.25
        (alert,) = result.alerts
        object.__setattr__(alert, "ended", None)
        page = Page(written(tmp_path, result))
        assert "5 min, still open at the end" in page.text
        assert "7.25" in page.text
        assert page.data["devices"][0]["alerts"][0]["to"] == START + 599

    def test_nothing_found_and_no_labels_is_said_too(self, tmp_path: Path) -> None:
        result = made_up()
        result.label, result.alerts = None, []
        text = Page(written(tmp_path, result)).text
        assert "0 alerts on device pump-1" in text
        assert "Labelled events" not in text


class TestSafety:
    def test_names_stay_text(self, tmp_path: Path) -> None:
        page = Page(written(tmp_path, made_up((NASTY,), (NASTY, "flow")), notes=[NASTY]))
        assert page.tags.count("script") == 2
        assert "b" not in page.tags[page.tags.index("header") : page.tags.index("table")]
        assert page.data["devices"][0]["id"] == NASTY
        assert page.data["channels"][0]["name"] == NASTY
        assert page.text.count(NASTY) >= 3

    def test_it_loads_nothing_and_runs_its_own_script_alone(self, tmp_path: Path) -> None:
        path = written(tmp_path, made_up())
        page = Page(path)
        assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "onclick", "onload"}
        policy = dict(page.attributes)["content"]
        assert "default-src 'none'" in re.sub("&#x27;", "'", path.read_text("utf-8"))
        assert policy is not None

    def test_a_path_that_cannot_be_written_is_an_error_of_the_data(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be written"):
            write_report(tmp_path / "nowhere" / "report.html", made_up(), made_up().summary())


def decoded(text: str, dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    return np.frombuffer(base64.b64decode(text), dtype)


class TestData:
    def test_plots_hold_what_was_scored(self, tmp_path: Path) -> None:
        result = made_up()
        (device,) = Page(written(tmp_path, result)).data["devices"]
        np.testing.assert_array_equal(decoded(device["time"], "<f8"), result.time)
        np.testing.assert_allclose(decoded(device["score"], "<f4"), result.score, rtol=1e-6)
        np.testing.assert_allclose(decoded(device["series"][1][0], "<f4"), result.values[:, 1], rtol=1e-6)
        flags = decoded(device["flags"], "u1")
        assert [int((flags & bit > 0).sum()) for bit in (1, 2, 4)] == [40, 55, 100]

    def test_rows_come_in_time_order(self, tmp_path: Path) -> None:
        result = made_up()
        result.time[[10, 11]] = result.time[[11, 10]]
        (device,) = Page(written(tmp_path, result)).data["devices"]
        assert (np.diff(decoded(device["time"], "<f8")) > 0).all()

    def test_the_devices_with_most_alerts_are_plotted_and_the_others_named_as_left_out(self, tmp_path: Path) -> None:
        result = made_up(tuple(f"d{n}" for n in range(60)), rows=150)
        result.anomaly[result.device == 59] = True
        page = Page(written(tmp_path, result))
        assert len(page.data["devices"]) == _report.MOST_DEVICES
        assert page.data["devices"][0]["id"] == "d59"
        assert "Plots of 50 of the 60 devices" in page.text

    def test_too_many_rows_are_thinned_to_extremes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_report, "MOST_NUMBERS", 1000)
        result = made_up()
        (device,) = Page(written(tmp_path, result)).data["devices"]
        values = decoded(device["series"][0][0], "<f4")
        assert len(values) * 11 <= 1100
        assert device["every"] > 1
        assert values.max() == 8.0
        assert values.min() == pytest.approx(result.values[:, 0].min())
        assert decoded(device["flags"], "u1").any()


class TestTerminal:
    def test_it_shows_the_budget_its_others_the_labels_and_the_episodes(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = made_up()
        summary = result.summary() | {"device_weeks": 4.0, "alerts_per_device_week": 0.25}
        backtest._show(summary | {"would_have_fired": {"1/month": 1, "1/day": 5}}, result, None)
        text = re.sub(r"\s+", " ", capsys.readouterr().out)
        for said in (
            "flagged rows 40 (8.00%)",
            "alarms per device-week 0.25, budget 1.00: 1 in 4.0 device-weeks, 0 of them outside labelled events, 4 allowed",
            "at 1/month 1 would have fired, 0.933 allowed",
            "at 1/day 5 would have fired, 28 allowed",
            "labelled events 1 of 1 found (recall 100%), median delay 5 s",
            "rows against labels F1 0.842, FAR 0.0%, MAR 27.3%",
            "began told after lasted kind channels",
            "2020-03-09 10:38:20 10 s 40 s prediction pressure 80%",
            "pump-1: pressure 8 bar, expected 0.5 ± 0.3 for 40 s; resolved",
        ):
            assert said in text
        assert "too short" not in text

    def test_a_device_name_cannot_style_the_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        result = made_up(("[red]p[/]",))
        backtest._show(result.summary(), result, None)
        assert "    [red]p[/]: pressure 8 bar" in capsys.readouterr().out

    def test_many_alerts_are_not_all_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        result = made_up()
        result.alerts = [replace(result.alerts[0], id=str(n)) for n in range(14)]
        backtest._show(result.summary(), result, None)
        assert "… and 4 more" in capsys.readouterr().out


class TestInABrowser:
    @pytest.fixture(autouse=True)
    def _opened(self, browser: Browser, tmp_path: Path) -> None:
        browser.open(written(tmp_path, made_up(("pump-1", NASTY), ("pressure", NASTY))))
        browser.run("document.getElementById('plots').scrollIntoView()")

    def test_every_plot_is_drawn_without_complaint(self, browser: Browser) -> None:
        names = browser.run("return [...document.querySelectorAll('.plot h3 b')].map((b) => b.textContent)")
        assert names == ["Score", "pressure, bar", NASTY]
        browser.run("document.querySelector('footer').scrollIntoView()")
        browser.run("return 0")
        drawn = browser.run(
            "return [...document.querySelectorAll('canvas')].map((c) => {"
            "const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "const seen = new Set(); for (let i = 0; i < p.length; i += 4) seen.add(p[i] << 16 | p[i + 1] << 8 | p[i + 2]);"
            "return seen.size; })"
        )
        assert min(drawn) > 10
        assert browser.run("return document.title").startswith("Backtest: ")
        assert browser.problems() == []
        assert browser.view() == (START, START + 599)

    def test_dragging_zooms_and_a_double_click_shows_all(self, browser: Browser) -> None:
        browser.drag(-100, 100)
        wait_until(lambda: browser.view() != (START, START + 599), 5)
        begin, end = browser.view()
        assert START < begin < START + 299 < end < START + 599
        assert end - begin < 250
        browser.run("document.querySelector('canvas').dispatchEvent(new MouseEvent('dblclick'))")
        assert browser.view() == (START, START + 599)

    def test_the_wheel_zooms_about_the_pointer(self, browser: Browser) -> None:
        turn = (
            "document.querySelector('canvas').dispatchEvent(new WheelEvent('wheel', {deltaY: -300, cancelable: true,"
            "clientX: document.querySelector('canvas').getBoundingClientRect().left + 300, ctrlKey: %s}))"
        )
        browser.run("document.activeElement.blur();" + turn % "false")
        assert browser.view() == (START, START + 599)
        browser.run(turn % "true")
        begin, end = browser.view()
        assert START < begin < end < START + 599
        browser.run("document.getElementById('plots').focus();" + turn % "false")
        assert browser.view()[1] - browser.view()[0] < end - begin

    def test_keys_pan_zoom_and_find_alerts(self, browser: Browser) -> None:
        browser.run("document.getElementById('plots').focus()")
        browser.press("n")
        browser.run("return 0")
        begin, end = browser.view()
        assert begin < START + 300 < START + 340 < end
        browser.press("\ue014")  # right arrow
        browser.run("return 0")
        assert browser.view()[0] > begin
        browser.press("+")
        browser.run("return 0")
        assert browser.view()[1] - browser.view()[0] < end - begin
        browser.press("0")
        browser.run("return 0")
        assert browser.view() == (START, START + 599)

    def test_a_line_of_the_tables_leads_to_its_device_and_time(self, browser: Browser) -> None:
        browser.run("[...document.querySelectorAll('button[data-device=\"1\"]')][0].click()")
        assert browser.run("return document.getElementById('device').selectedOptions[0].textContent").startswith(NASTY)
        begin, end = browser.view()
        assert START < begin < START + 300 < START + 340 < end < START + 599

    def test_the_pointer_reads_values_off_every_plot(self, browser: Browser) -> None:
        browser.run(
            "const c = document.querySelector('canvas'), r = c.getBoundingClientRect();"
            "c.dispatchEvent(new PointerEvent('pointermove', {clientX: r.left + r.width * 0.55, clientY: r.top + 40}))"
        )
        score, pressure, _ = browser.run(
            "return [...document.querySelectorAll('.plot output')].map((o) => o.textContent)"
        )
        assert re.fullmatch(r"2020-03-09 10:\d\d:\d\d: 1.5, flagged", score)
        assert re.search(r": -?[\d.]+, expected -?[\d.]+ \(-?[\d.]+ to -?[\d.]+\), flagged$", pressure)

    def test_a_hundred_thousand_rows_are_drawn_quickly(self, browser: Browser, tmp_path: Path) -> None:
        path = written(tmp_path, made_up(channels=tuple(f"c{n}" for n in range(8)), rows=100_000))
        began = time.monotonic()
        browser.open(path)
        browser.run("return 0")
        assert time.monotonic() - began < 10
        slowest = browser.post(
            "/execute/async",
            {
                "script": "const done = arguments[0]; const zoom = document.getElementById('in'); let worst = 0, left = 6;"
                "const again = () => { const began = performance.now(); (left % 2 ? document.getElementById('reset') : zoom).click();"
                "requestAnimationFrame(() => setTimeout(() => { worst = Math.max(worst, performance.now() - began);"
                "if (--left) again(); else done(worst); })); }; again();",
                "args": [],
            },
        )
        assert slowest < 2000
        assert browser.problems() == []
