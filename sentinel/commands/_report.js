// Plots of one device at a time. All plots share one view, [from, to] in seconds.
(() => {
  const plots = $("plots");
  if (!page.devices.length) return;
  const GUTTER = 66, RIGHT = 12, TOP = 8, BOTTOM = 22, FLAGGED = 1, LABELLED = 2, LEARNED = 4;
  const SECOND = 1, MINUTE = 60, HOUR = 3600, DAY = 86400;

  const number = (x) => Number.isFinite(x) ? String(Number(x.toPrecision(5))) : "–";

  // --- time as people write it ---
  const iso = (t) => new Date(t * 1000).toISOString();
  const moment = (t) => page.dated ? iso(t).slice(0, 19).replace("T", " ") : `${number(t)} s`;
  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
    DAY, 2 * DAY, 7 * DAY, 14 * DAY, 28 * DAY, 91 * DAY, 182 * DAY, 365 * DAY];
  const decimal = (rough) => {
    const power = 10 ** Math.floor(Math.log10(rough));
    return power * ([1, 2, 5, 10].find((k) => k * power >= rough) || 10);
  };
  const timeStep = (rough) => (page.dated && rough > 0.5 && STEPS.find((s) => s >= rough)) || decimal(rough);
  const tick = (t, step) => {
    if (!page.dated) return String(Number(t.toPrecision(9)));
    const text = iso(t);
    if (step >= DAY) return text.slice(0, 10);
    if (step >= MINUTE) return t % DAY ? text.slice(11, 16) : text.slice(5, 10);
    return step >= SECOND ? text.slice(11, 19) : text.slice(11, 23);
  };
  const lasting = (s) => s >= 2 * DAY ? `${number(Math.round(s / DAY * 10) / 10)} d` : s >= 2 * HOUR ?
    `${Math.round(s / HOUR * 10) / 10} h` : s >= 2 * MINUTE ? `${Math.round(s / MINUTE)} min` : `${number(s)} s`;

  // --- the device shown, and the part of it ---
  let device, all, view, shown = [], colours, asked = false;
  const first = (t) => { // row of the first time >= t
    let low = 0, high = device.time.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (device.time[middle] < t) low = middle + 1; else high = middle;
    }
    return low;
  };
  const runs = (bit) => {
    const out = [];
    for (let i = 0; i < device.flags.length; i++) {
      if (!(device.flags[i] & bit)) continue;
      const begin = i;
      while (i + 1 < device.flags.length && device.flags[i + 1] & bit) i++;
      out.push([device.time[begin], device.time[i]]);
    }
    return out;
  };
  const open = (index) => {
    const raw = page.devices[index];
    device = { ...raw, time: new Float64Array(bytes(raw.time).buffer), flags: bytes(raw.flags), score: floats(raw.score),
      series: raw.series.map((four) => four.map(floats)) };
    device.labelled = runs(LABELLED);
    device.learned = runs(LEARNED);
    const last = device.time[device.time.length - 1];
    all = [device.time[0], last > device.time[0] ? last : device.time[0] + 1];
    view = all;
    for (const plot of shown) watcher.unobserve(plot.box);
    plots.textContent = "";
    shown = [new Plot("Score", null), ...page.channels.map((channel, at) => new Plot(channel.name, at, channel.unit))];
    for (const plot of shown) watcher.observe(plot.box);
    $("thinned").textContent = raw.every > 1 ? `Thinned: two points stand for the least and greatest of ${raw.every} rows.` : "";
    $("device").value = String(index);
    redraw();
  };
  const look = (from, to) => {
    const least = Math.max((all[1] - all[0]) / 1e6, 1e-3);
    const span = clamp(to - from, least, all[1] - all[0]);
    const begin = clamp(from, all[0], all[1] - span);
    view = [begin, begin + span];
    hover(null);
    redraw();
  };
  const zoom = (factor, at = (view[0] + view[1]) / 2) => look(at - (at - view[0]) * factor, at + (view[1] - at) * factor);
  const pan = (share) => look(view[0] + share * (view[1] - view[0]), view[1] + share * (view[1] - view[0]));
  const reset = () => look(...all);
  const toAlert = (alert) => {
    const span = Math.max((alert.to - alert.from) * 1.5, 120 * page.interval);
    const middle = (alert.from + alert.to) / 2;
    look(middle - span / 2, middle + span / 2);
  };
  const step = (direction) => {
    const middle = (view[0] + view[1]) / 2, slack = (view[1] - view[0]) * 1e-3;
    const sorted = device.alerts.map((a) => [(a.from + a.to) / 2, a]).sort((a, b) => a[0] - b[0]);
    const whole = view[1] - view[0] >= all[1] - all[0];
    const next = direction > 0 ? sorted.find(([t]) => whole || t > middle + slack)
      : sorted.reverse().find(([t]) => whole || t < middle - slack);
    if (next) toAlert(next[1]);
  };
  const redraw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const style = getComputedStyle(document.documentElement);
      colours = (name) => style.getPropertyValue(`--${name}`).trim();
      for (const plot of shown) if (plot.visible) plot.draw();
      $("span").textContent = `${moment(view[0])} – ${moment(view[1])} (${lasting(view[1] - view[0])})`;
      plots.dataset.from = view[0];
      plots.dataset.to = view[1];
    });
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.target.plot.visible = entry.isIntersecting;
    redraw();
  }, { rootMargin: "300px" });

  // --- one plot ---
  class Plot {
    constructor(name, at, unit) {
      this.at = at; // channel; null: the score
      this.box = make("section", plots, "plot");
      this.box.plot = this;
      const head = make("h3", this.box);
      make("b", head, "", unit ? `${name}, ${unit}` : name);
      this.output = make("output", head);
      this.canvas = make("canvas", this.box);
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-label", at === null ? "score over time, threshold at 1" : `${name} over time`);
      this.cursor = make("div", this.box, "cursor");
      this.picked = make("div", this.box, "picked");
      this.canvas.addEventListener("dblclick", reset);
      this.canvas.addEventListener("pointerdown", (event) => grab(event, this));
      this.canvas.addEventListener("pointermove", (event) => hover(this.time(event.offsetX)));
      this.canvas.addEventListener("pointerleave", () => hover(null));
      this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    }
    x(t) { return GUTTER + (t - view[0]) / (view[1] - view[0]) * this.width; }
    time(x) { return view[0] + clamp((x - GUTTER) / this.width, 0, 1) * (view[1] - view[0]); }

    wheel(event) {
      if (!event.ctrlKey && !event.shiftKey && !plots.contains(document.activeElement)) return; // the page scrolls
      event.preventDefault();
      const way = event.deltaY || event.deltaX;
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY) && !event.shiftKey) pan(event.deltaX / 1000);
      else zoom(1.0015 ** clamp(way * (event.deltaMode ? 30 : 1), -400, 400), this.time(event.offsetX));
    }

    // Least and greatest value of each pixel column, or each row where there are fewer rows than pixels: [x, low, high].
    reduce(values, bit = 0) {
      const out = [], { time, flags } = device, apart = 64 * page.interval * device.every;
      const begin = Math.max(first(view[0]) - 1, 0), end = Math.min(first(view[1]) + 1, time.length);
      const dense = end - begin > 2 * this.width;
      let column = NaN, low = NaN, high = NaN, before = -Infinity;
      const flush = () => { if (column === column) out.push([column, low, high]); column = NaN; };
      for (let i = begin; i < end; i++) {
        const value = bit && !(flags[i] & bit) ? NaN : values[i];
        const x = dense ? Math.floor(this.x(time[i])) : this.x(time[i]);
        if (value !== value || time[i] - before > apart) {
          if (!dense || x !== column || value === value) { flush(); out.push(null); }
        }
        before = time[i];
        if (value !== value) continue;
        if (x !== column || !dense) { flush(); column = x; low = high = value; }
        else if (value < low) low = value;
        else if (value > high) high = value;
      }
      flush();
      return out;
    }

    range(traces) { // of what came and, within reason, of what was expected
      let low = Infinity, high = -Infinity;
      for (const point of traces[0]) if (point) { low = Math.min(low, point[1]); high = Math.max(high, point[2]); }
      if (this.at === null) return [0, Math.max(high, 1.25) * 1.05];
      const known = low <= high, room = known && high > low ? (high - low) * 0.75 : Infinity;
      const floor = known ? low - room : -Infinity, ceiling = known ? high + room : Infinity;
      for (const trace of traces.slice(1)) {
        for (const point of trace) {
          if (point) { low = Math.min(low, Math.max(point[1], floor)); high = Math.max(high, Math.min(point[2], ceiling)); }
        }
      }
      if (!(low <= high)) return [0, 1];
      const margin = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
      return [low - margin, high + margin];
    }

    draw() {
      const { canvas } = this, ratio = window.devicePixelRatio || 1, height = canvas.clientHeight;
      const width = this.width = canvas.clientWidth - GUTTER - RIGHT; // asked for once: it costs a layout
      canvas.width = Math.round(canvas.clientWidth * ratio);
      canvas.height = Math.round(height * ratio);
      const pen = canvas.getContext("2d"), floor = height - BOTTOM;
      pen.scale(ratio, ratio);
      const [value, expected, low, high] = this.at === null ? [device.score] : device.series[this.at];
      const traces = [value, expected, low, high].filter(Boolean).map((values) => this.reduce(values));
      const [least, most] = this.range(traces);
      const y = (v) => TOP + (most - clamp(v, least - (most - least), most + (most - least))) / (most - least) * (floor - TOP);

      // axes
      pen.font = "11px system-ui, sans-serif";
      pen.textBaseline = "middle";
      pen.textAlign = "right";
      const rise = decimal((most - least) / 3.2);
      for (let v = Math.ceil(least / rise) * rise; v <= most; v += rise) {
        this.rule(pen, GUTTER, y(v), GUTTER + width, y(v), colours("grid"));
        pen.fillStyle = colours("dim");
        pen.fillText(String(Number(v.toPrecision(6))), GUTTER - 6, y(v));
      }
      pen.textAlign = "center";
      const lapse = timeStep((view[1] - view[0]) / (width / 110));
      for (let t = Math.ceil(view[0] / lapse) * lapse; t <= view[1]; t += lapse) {
        const x = this.x(t);
        this.rule(pen, x, TOP, x, floor, colours("grid"));
        pen.fillStyle = colours("dim");
        if (x > GUTTER + 24 && x < GUTTER + width - 24) pen.fillText(tick(t, lapse), x, height - BOTTOM / 2);
      }

      pen.save();
      pen.beginPath();
      pen.rect(GUTTER, 0, width, floor);
      pen.clip();
      this.spans(pen, device.learned, colours("learned"), TOP, floor);
      this.spans(pen, device.labelled, colours("label-fill"), TOP, floor);
      this.spans(pen, device.alerts.map((a) => [a.from, a.to]), colours("alert"), TOP, floor);
      this.spans(pen, device.labelled, colours("label"), floor - 4, floor);
      pen.setLineDash([3, 3]);
      for (const { from, fired } of device.alerts) {
        if (fired > from) this.rule(pen, this.x(fired), TOP, this.x(fired), floor, colours("flag"));
      }
      pen.setLineDash([]);
      if (this.at === null) {
        pen.setLineDash([6, 4]);
        this.rule(pen, GUTTER, y(1), GUTTER + width, y(1), colours("flag"));
        pen.setLineDash([]);
      } else {
        this.band(pen, traces[2], traces[3], y);
        this.line(pen, traces[1], y, colours("expected"), 1);
      }
      this.line(pen, traces[0], y, colours(this.at === null ? "score" : "value"), 1.3);
      const flagged = this.reduce(value, FLAGGED).filter(Boolean);
      pen.fillStyle = colours("flag");
      for (const [x, , top] of flagged) {
        pen.fillRect(x - 1, TOP, 2, 4); // a rail of all, and dots where they are few
        if (flagged.length < width / 8) pen.fillRect(x - 2, y(top) - 2, 4, 4);
      }
      pen.restore();
      this.rule(pen, GUTTER, floor, GUTTER + width, floor, colours("rule"));
    }
    rule(pen, x1, y1, x2, y2, colour) {
      pen.strokeStyle = colour;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.lineTo(x2, y2);
      pen.stroke();
    }
    spans(pen, spans, colour, top, bottom) {
      pen.fillStyle = colour;
      for (const [from, to] of spans) {
        if (to >= view[0] && from <= view[1]) pen.fillRect(this.x(from), top, Math.max(this.x(to) - this.x(from), 2), bottom - top);
      }
    }
    line(pen, trace, y, colour, thick) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick;
      pen.lineJoin = "round";
      pen.beginPath();
      let begun = false;
      for (const point of trace) {
        if (!point) { begun = false; continue; }
        if (begun) pen.lineTo(point[0], y(point[1])); else pen.moveTo(point[0], y(point[1]));
        if (point[2] > point[1]) pen.lineTo(point[0], y(point[2]));
        else if (!begun) pen.lineTo(point[0] + 0.5, y(point[1])); // a point alone is seen too
        begun = true;
      }
      pen.stroke();
    }
    band(pen, lows, highs, y) {
      pen.fillStyle = colours("band");
      let part = [];
      const close = () => {
        pen.beginPath();
        for (const [low, high] of part) pen.lineTo(high[0], y(high[2]));
        for (const [low] of part.reverse()) pen.lineTo(low[0], y(low[1]));
        pen.fill();
        part = [];
      };
      for (let i = 0; i < Math.min(lows.length, highs.length); i++) {
        if (lows[i] && highs[i]) part.push([lows[i], highs[i]]); else close();
      }
      close();
    }

    say(row) {
      if (row === null) { this.output.textContent = ""; return; }
      const flag = device.flags[row] & FLAGGED ? ", flagged" : "";
      const [value, expected, low, high] = this.at === null ? [device.score] : device.series[this.at];
      const band = expected && Number.isFinite(expected[row]) ?
        `, expected ${number(expected[row])} (${number(low[row])} to ${number(high[row])})` : "";
      const none = this.at === null && !Number.isFinite(value[row]);
      this.output.textContent = `${moment(device.time[row])}: ${none ? "no score" : number(value[row])}${band}${flag}`;
    }
  }

  // --- pointer and keys ---
  const hover = (t) => {
    let row = t === null ? null : clamp(first(t), 0, device.time.length - 1);
    if (row > 0 && t - device.time[row - 1] < device.time[row] - t) row -= 1;
    for (const plot of shown) {
      plot.cursor.style.visibility = t === null ? "hidden" : "visible";
      if (t !== null) plot.cursor.style.transform = `translateX(${plot.x(device.time[row])}px)`;
      plot.say(row);
    }
  };
  const grab = (event, plot) => {
    if (event.button > 1) return;
    plots.focus({ preventScroll: true });
    event.preventDefault();
    const begin = event.offsetX, before = view, panning = event.shiftKey || event.button === 1;
    plot.canvas.setPointerCapture(event.pointerId);
    const move = (to) => {
      if (panning) {
        const by = (begin - to.offsetX) / plot.width * (before[1] - before[0]);
        look(before[0] + by, before[1] + by);
        return;
      }
      for (const each of shown) {
        const [left, right] = [begin, to.offsetX].map((x) => clamp(x, GUTTER, GUTTER + plot.width)).sort((a, b) => a - b);
        Object.assign(each.picked.style, { visibility: "visible", transform: `translateX(${left}px)`, width: `${right - left}px` });
      }
    };
    const held = new AbortController();
    const drop = (at) => {
      held.abort();
      for (const each of shown) each.picked.style.visibility = "hidden";
      const ends = [plot.time(begin), plot.time(at.offsetX)].sort((a, b) => a - b);
      if (at.type === "pointerup" && !panning && Math.abs(at.offsetX - begin) > 4) look(...ends);
    };
    for (const [type, act] of [["pointermove", move], ["pointerup", drop], ["pointercancel", drop]]) {
      plot.canvas.addEventListener(type, act, { signal: held.signal });
    }
  };
  const KEYS = { ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), "+": () => zoom(0.6), "=": () => zoom(0.6),
    "-": () => zoom(1 / 0.6), "0": reset, Home: reset, n: () => step(1), p: () => step(-1), Escape: () => plots.blur() };
  plots.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  for (const [id, act] of Object.entries({ left: () => pan(-0.4), right: () => pan(0.4), in: () => zoom(0.5),
    out: () => zoom(2), reset, previous: () => step(-1), next: () => step(1) })) $(id).addEventListener("click", act);
  page.devices.forEach((each, index) => {
    const option = make("option", $("device"), "", `${each.id} (${each.alerts.length} alert${each.alerts.length === 1 ? "" : "s"})`);
    option.value = index;
  });
  $("device").addEventListener("change", (event) => open(Number(event.target.value)));
  for (const button of document.querySelectorAll("button[data-device]")) {
    button.addEventListener("click", () => {
      const index = Number(button.dataset.device);
      if (page.devices[index].id !== device.id) open(index);
      toAlert({ from: Number(button.dataset.from), to: Number(button.dataset.to) });
      $("plots-title").scrollIntoView({ behavior: "auto" });
      plots.focus({ preventScroll: true });
    });
  }
  new ResizeObserver(redraw).observe(plots);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  open(0);
})();
