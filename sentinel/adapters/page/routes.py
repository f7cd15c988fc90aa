"""Routes of the page, and what stands between its visitors and the reactor."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from typing import Any, cast, get_args
from urllib.parse import quote, unquote, urlencode

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from sentinel import __version__
from sentinel.adapters.page.charts import HEIGHT, WIDTH, Chart, draw
from sentinel.adapters.page.views import (
    MOST_QUERY,
    Alerts,
    Course,
    Detail,
    Fleet,
    Key,
    Question,
    Sort,
    Values,
    Which,
    ask,
    row_of,
)
from sentinel.records import Alert, Command, CommandFate, CommandVerb, Floats

MOST_STREAMS = 24  # at a time; more are told to come again later
STREAM_SECONDS = 15.0  # then the browser asks anew: a connection ends before the server cuts it
EVERY = 1.0  # seconds between events
SHARE = 0.2  # of the HTTP thread's time that all streams together may take
LOOKED_FOR = 5.0  # seconds that a device stays looked at
MOST_LOOKED = 32  # devices
FIRST_LOOK = 0.4  # seconds that the first page of a device waits for its detail
COMMAND_SECONDS = 5.0  # that the reactor has to take a command
MOST_HISTORY = 50  # alerts of a device
SHELVES = ((3600.0, "1 h"), (8 * 3600.0, "8 h"), (86400.0, "1 day"), (7 * 86400.0, "7 days"))
VERBS: tuple[CommandVerb, ...] = ("acknowledge", "shelve", "normal")
DONE = {
    "acknowledge": "Acknowledged.",
    "shelve": "Shelved.",
    "unshelve": "No longer shelved: what is still wrong fires.",
    "normal": "Accepted as normal.",
}
NOTHING = {"acknowledge": "There is nothing to acknowledge any more.", "normal": "There is nothing to accept any more."}
REFUSED: dict[str, tuple[int, str]] = {
    "rate_limited": (429, "Too many commands at once. Try again in a second."),
    "unknown_device": (404, "This device is not known any more."),
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "vary": "accept",
}
_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_DOTS = "!"  # before a device named "." or "..", which is no directory; elsewhere a path has %21 for it
_EVENTS = "text/event-stream"
_STATIC_FILES = files(__package__).joinpath("static")


@dataclass(frozen=True, slots=True)
class Ask:
    """A command from the page, and where its asker waits to be told what became of it."""

    command: Command
    fate: Future[CommandFate] = field(default_factory=Future)


class Page:
    """What visitors see and say.

    The reactor's side (`show`, `tell`, `detail`, `looked`, `asks`, `answer`) never blocks.

    Args:
        ready: whether all is well with the daemon, and if not, why.
        wake: makes the reactor turn over soon. From any thread.
        commands: whether visitors may command; who they are is for the server to ask.
        words: filters of the templates: `quantity` and `duration`.
    """

    def __init__(
        self,
        ready: Callable[[], tuple[bool, list[str]]],
        wake: Callable[[], None],
        *,
        commands: bool,
        words: Mapping[str, Callable[..., str]],
    ) -> None:
        self._ready, self._wake, self._commands = ready, wake, commands
        self._fleet, self._alerts = Fleet(), Alerts()
        self._details: Mapping[Key, Detail] = {}
        self._looked: dict[Key, float] = {}
        self._asks: deque[Ask] = deque()
        self._awaited: deque[Future[None]] = deque()
        self._answered: list[tuple[Ask, CommandFate]] = []
        self._streams = 0
        self._closed = False
        self._templates = Environment(
            loader=PackageLoader(__package__),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= dict(words) | {"moment": _moment, "iso": _iso, "place": _place, "course": _course}
        self._templates.globals |= {"version": __version__, "width": WIDTH, "height": HEIGHT, "shelves": SHELVES}

    @property
    def routes(self) -> list[Route]:
        """What a server must serve. The only route of method POST is that of commands."""
        path = "/devices/{profile}/{device:path}"
        return [
            Route("/", self._overview),
            Route(path, self._device),
            Route(path, self._command, methods=["POST"]),
            *(Route(f"/static/{name}", _static(name, kind)) for name, kind in _STATIC.items()),
        ]

    # --- the reactor's side ---

    @property
    def hurried(self) -> bool:
        """Whether somebody waits for the next `tell`."""
        return bool(self._awaited)

    def show(self, fleet: Fleet) -> None:
        """Show every device, as of now."""
        self._fleet = fleet

    def tell(self, alerts: Alerts, details: Mapping[Key, Detail]) -> None:
        """Show alerts and the devices that are looked at, as of now; then answer those who commanded."""
        self._alerts, self._details = alerts, details
        while self._awaited:
            waiting = self._awaited.popleft()
            if waiting.set_running_or_notify_cancel():
                waiting.set_result(None)
        answered, self._answered = self._answered, []
        for asked, fate in answered:
            asked.fate.set_result(fate)

    def looked(self) -> list[Key]:
        """Devices that somebody looks at."""
        now = time.monotonic()
        return [key for key, until in list(self._looked.items()) if until > now]

    def asks(self) -> list[Ask]:
        """Commands that came and whose askers still wait; each is to be answered."""
        taken = []
        while self._asks:
            asked = self._asks.popleft()
            if asked.fate.set_running_or_notify_cancel():
                taken.append(asked)
        return taken

    def answer(self, asked: Ask, fate: CommandFate) -> None:
        """Say what became of a command, once it can be seen: with the next `tell`."""
        self._answered.append((asked, fate))

    def close(self) -> None:
        """End all streams within a moment. From any thread."""
        self._closed = True

    # --- the fleet ---

    async def _overview(self, request: Request) -> Response:
        question = _question(request)
        if _wants_events(request):
            return self._stream(lambda: self._render("_fleet.html", self._fleet_view(question, "")))
        return self._html("fleet.html", self._fleet_view(question, ""))

    def _fleet_view(self, question: Question, root: str) -> dict[str, Any]:
        fleet, alerts = self._fleet, self._alerts
        _, reasons = self._ready()
        states = Counter(alert.state for key, alert in alerts.worst.items() if key in fleet.row_of)
        calm = sum(key in fleet.row_of and key not in alerts.worst for key in alerts.shelved)
        states.update({"shelved": calm} if calm else {})
        return {
            "root": root,
            "now": fleet.now,
            "question": question,
            "answer": ask(fleet, alerts, question),
            "firing": states.pop("firing", 0),
            "others": ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
            "counts": fleet.counts,
            "total": len(fleet.device),
            "profiles": fleet.profiles,
            "wide": [alert for alert in alerts.worst.values() if _is_place(alert)],
            "reasons": reasons,
            "link": lambda **changes: _query(replace(question, **changes)),
        }

    # --- a device ---

    async def _device(self, request: Request) -> Response:
        key, root = self._key_of(request)
        self._look(key)
        if key not in self._details and self._known(key):
            waiting: Future[None] = Future()
            self._awaited.append(waiting)
            self._wake()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(waiting), FIRST_LOOK)
        if not self._known(key):
            return self._html("unknown.html", {"root": root, "key": key}, 404)
        if _wants_events(request):
            return self._stream(lambda: self._live(key, root))
        return self._html(
            "device.html", self._device_view(key, root, DONE.get(request.query_params.get("did", ""), ""))
        )

    def _live(self, key: Key, root: str) -> str:
        self._look(key)
        return self._render("_device.html", self._device_view(key, root)) if self._known(key) else ""

    def _known(self, key: Key) -> bool:
        return key in self._fleet.row_of

    def _look(self, key: Key) -> None:
        now = time.monotonic()
        if not self._known(key):
            return
        self._looked = {k: until for k, until in self._looked.items() if until > now}
        if key in self._looked or len(self._looked) < MOST_LOOKED:
            self._looked[key] = now + LOOKED_FOR

    def _device_view(self, key: Key, root: str, told: str = "", error: str = "") -> dict[str, Any]:
        fleet, alerts, detail = self._fleet, self._alerts, self._details.get(key)
        open_: Sequence[Alert] = alerts.open.get(key, ()) if detail is None else detail.alerts
        own = (a for a in reversed(alerts.history) if a.profile == key.profile and a.device == key.device)
        past = list(islice((a for a in own if a.state == "resolved"), MOST_HISTORY))
        courses: Mapping[str, Course] = {} if detail is None else detail.courses
        profile = next(rows for rows in fleet.profiles if rows.name == key.profile)
        _, reasons = self._ready()
        return {
            "root": root,
            "now": fleet.now,
            "key": key,
            "row": row_of(fleet, alerts, fleet.row_of[key]),
            "status": profile.status,
            "open": open_,
            "past": past,
            "courses": {
                alert.id: course
                for alert in (*open_, *past)
                if (course := courses.get(alert.id) or alerts.courses.get(alert.id)) is not None
            },
            "detail": detail,
            "charts": [] if detail is None else _charts(detail),
            "commands": self._commands,
            "told": told,
            "error": error,
            "reasons": reasons,
        }

    def _key_of(self, request: Request) -> tuple[Key, str]:
        """The device that a path names, and the way back up to `/`."""
        raw = cast("bytes", request.scope.get("raw_path") or quote(request.url.path).encode()).decode(
            "ascii", "replace"
        )
        _, _, profile, device = raw.split("?")[0].split("/", 3)
        return Key(_unquoted(profile), _unquoted(device.removeprefix(_DOTS))), "../" * (raw.count("/") - 1)

    # --- commands ---

    async def _command(self, request: Request) -> Response:
        key, root = self._key_of(request)
        verb = request.query_params.get("do", "")
        offered = {"0": 0.0} | {f"{given:.0f}": given for given, _ in SHELVES}
        seconds = offered.get(request.query_params.get("for", ""))
        if verb not in VERBS or (verb == "shelve") != (seconds is not None):
            return Response("no such command\n", 400, HEADERS, "text/plain")
        if not self._known(key):
            return self._html("unknown.html", {"root": root, "key": key}, 404)
        asked = Ask(Command(verb, key.profile, key.device, seconds or 0.0))
        self._look(key)
        self._asks.append(asked)
        self._wake()
        try:
            fate = await asyncio.wait_for(asyncio.wrap_future(asked.fate), COMMAND_SECONDS)
        except TimeoutError:
            status, error = (
                503,
                "The daemon has not confirmed the command: it is busy, or its disk is away. Look again soon.",
            )
        else:
            if fate == "accepted":
                done = "unshelve" if seconds == 0 else verb
                return RedirectResponse(f"?did={done}", 303, HEADERS)  # so that nothing is sent again by a reload
            refused = REFUSED | {"no_alert": (409, NOTHING.get(verb, ""))}
            status, error = refused.get(fate, (409, f"Refused: {fate}."))
        if not self._known(key):
            return self._html("unknown.html", {"root": root, "key": key}, 404)
        return self._html("device.html", self._device_view(key, root, error=error), status)

    # --- answers ---

    def _render(self, template: str, view: dict[str, Any]) -> str:
        return self._templates.get_template(template).render(view)

    def _html(self, template: str, view: dict[str, Any], status: int = 200) -> Response:
        body = self._render(template, view).encode("utf-8", "replace")
        return Response(body, status, HEADERS, "text/html")

    def _stream(self, render: Callable[[], str]) -> Response:
        """What `render` gives, once a second where it changed, until nobody listens or time is up."""
        if self._streams >= MOST_STREAMS:
            return Response("too many listen\n", 503, HEADERS | {"retry-after": "15"}, "text/plain")
        return StreamingResponse(self._events(render), headers=HEADERS, media_type=_EVENTS)

    async def _events(self, render: Callable[[], str]) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            until, said = time.monotonic() + STREAM_SECONDS, ""
            yield b"retry: 500\n\n"
            while not self._closed and time.monotonic() < until:
                began = time.monotonic()
                now = render()
                if now != said:
                    said = now
                    yield f"data: {json.dumps(now)}\n\n".encode()  # ASCII, one line
                wait = max(EVERY, (time.monotonic() - began) * self._streams / SHARE)
                while not self._closed and time.monotonic() < min(began + wait, until):  # noqa: ASYNC110 - another thread closes
                    await asyncio.sleep(0.1)
        finally:
            self._streams -= 1


def _charts(detail: Detail) -> list[dict[str, Any]]:
    """The score's chart, then one a channel."""
    ticks, f = detail.ticks, len(detail.channels)
    time_, score = (np.array([getattr(tick, name) for tick in ticks]) for name in ("time", "score"))
    values, low, high = (
        np.array([_padded(getattr(tick, name), f) for tick in ticks]).reshape(len(ticks), f)
        for name in ("values", "low", "high")
    )
    none = np.full(len(ticks), np.nan)
    out: list[dict[str, Any]] = [
        {
            "name": "score",
            "unit": "",
            "last": _number(score[-1]) if len(ticks) else None,
            "low": None,
            "high": None,
            "half": math.nan,
            "chart": draw(time_, score, none, none, score >= 1.0, level=1.0),
        }
    ]
    for at, (name, unit) in enumerate(detail.channels):
        x, below, above = values[:, at], low[:, at], high[:, at]
        out.append(
            {
                "name": name,
                "unit": unit,
                "last": _number(detail.last[at]),
                "low": _number(below[-1]) if len(ticks) else None,
                "high": _number(above[-1]) if len(ticks) else None,
                "half": float(above[-1] - below[-1]) / 2 if len(ticks) else math.nan,
                "chart": draw(time_, x, below, above, (x < below) | (x > above)),
            }
        )
    for one in out:
        one["from"], one["to"] = (float(time_[0]), float(time_[-1])) if len(ticks) else (None, None)
    return out


@lru_cache(maxsize=256)
def _course(course: Course) -> Chart:
    """An alert's chart; of one that is resolved it stays the same."""
    values, low, high = (part.astype(np.float64) for part in (course.values, course.low, course.high))
    return draw(course.time, values, low, high, (values < low) | (values > high), since=course.since)


def _padded(row: Values, width: int) -> Floats:
    """A tick from before the profile had learned its newest channels is shorter."""
    return np.concatenate([row, np.full(width - len(row), np.nan)])


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _is_place(alert: Alert) -> bool:
    """Whether it is about a fleet or Sentinel itself, not a device."""
    return alert.kind in ("storm", "system")


def _question(request: Request) -> Question:
    """What a query asks for; what it gets wrong is as if it were left out."""
    given, usual = request.query_params, Question()
    which, sort, page = given.get("which", ""), given.get("sort", ""), given.get("page", "")
    return Question(
        q=given.get("q", "")[:MOST_QUERY].strip(),
        which=cast("Which", which) if which in get_args(Which) else usual.which,
        sort=cast("Sort", sort) if sort in get_args(Sort) else usual.sort,
        down=given.get("down", "1") != "0",
        page=int(page) if page.isascii() and page.isdecimal() and len(page) < 9 else usual.page,
    )


def _query(question: Question) -> str:
    usual = asdict(Question())
    told = {name: value for name, value in asdict(question).items() if value != usual[name]}
    if "down" in told:
        told["down"] = "0"
    return f"?{urlencode(told, errors='replace')}"


def _wants_events(request: Request) -> bool:
    return request.method == "GET" and request.headers.get("accept", "").startswith(_EVENTS)


def _static(name: str, kind: str) -> Callable[[Request], Any]:
    body = _STATIC_FILES.joinpath(name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(body, 200, HEADERS | {"cache-control": "no-cache"}, kind)

    return answer


def _place(key: Key) -> str:
    """Path of a device's page."""
    profile, device = (quote(part, safe="", errors="surrogatepass") for part in key)
    return f"devices/{profile}/{_DOTS if device in {'.', '..'} else ''}{device}"


def _unquoted(text: str) -> str:
    """A part of a path. Lone surrogates, which a device's id may have, come as they went."""
    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:
        return unquote(text)


def _iso(seconds: float) -> str:
    """A time for machines; "": none that a clock shows."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return ""


def _moment(seconds: float, now: float, *, brief: bool = False) -> str:
    """A time for people, in UTC; the date only where it is another than that of `now`; `brief`: to the minute."""
    try:
        then, today = (datetime.fromtimestamp(each, UTC) for each in (seconds, now))
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"
    return f"{then:{'%H:%M' if brief else '%H:%M:%S'}}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"
