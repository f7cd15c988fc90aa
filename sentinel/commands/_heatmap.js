// One canvas a part of the network, a row a unit, a column a tick; lines of score and values above.
(() => {
  const number = (x) => Number.isFinite(x) ? String(Number(x.toPrecision(4))) : "–";
  const time = new Float64Array(bytes(page.time).buffer), ticks = time.length, dated = time[ticks - 1] > 1e8;
  const moment = (t) => dated ? new Date(t * 1000).toISOString().slice(0, 19).replace("T", " ") : `${number(t)} s`;
  const layers = page.layers.map((layer) => Object.fromEntries(Object.entries(layer).map(([k, v]) => [k, floats(v)])));
  const lines = [{ name: "score", unit: "", values: floats(page.score), threshold: 1 },
    ...page.values.map((v) => ({ ...v, values: floats(v.values) }))];
  const state = page.cell === "lstm" ? "cell" : "hidden"; // what units are sorted by
  const { closed, open, cell: limit } = page.limits;
  const isGate = (part) => !["candidate", "cell", "hidden"].includes(part);

  // Ramps that every kind of colour vision can tell (blue to yellow; blue, grey, orange). What is saturated leaves the
  // ramp: a closed gate is black, an open one white; a saturated cell is black below and yellow above.
  const RAMP = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
  const TWO = [[0, 90, 181], [99, 160, 220], [226, 228, 230], [240, 170, 95], [196, 88, 0]];
  const CLOSED = [0, 0, 0], OPEN = [255, 255, 255], NEGATIVE = [0, 0, 0], POSITIVE = [255, 238, 0];
  const along = (ramp, share) => {
    const at = clamp(share, 0, 1) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2), rest = at - low;
    return ramp[low].map((c, k) => Math.round(c + rest * (ramp[low + 1][k] - c)));
  };
  const css = (colour) => `rgb(${colour.join(",")})`;

  let layer = 0, units = 0, order = [], place = [], wide = 3, tall = 8, cursor = null;
  const maps = $("maps"), tip = make("div", document.body);
  tip.id = "tip";

  const sorted = () => {
    const values = layers[layer][state], how = $("order").value, key = new Float64Array(units);
    for (let u = 0; u < units; u++) {
      let sum = 0, low = Infinity, high = -Infinity, over = 0;
      for (let t = 0; t < ticks; t++) {
        const v = values[t * units + u];
        sum += v; low = Math.min(low, v); high = Math.max(high, v);
        over = Math.max(over, Math.abs(v));
      }
      key[u] = how === "mean" ? sum / ticks : how === "swing" ? high - low : how === "saturation" ? over : -u;
    }
    order = [...key.keys()].sort((a, b) => key[b] - key[a]);
  };

  const scaleOf = (part, values) => {
    if (isGate(part)) {
      return { low: 0, high: 1, colour: (v) => v < closed ? CLOSED : v > open ? OPEN : along(RAMP, v) };
    }
    let most = 1e-6;
    for (const v of values) most = Math.max(most, Math.abs(v));
    if (part === "cell") most = Math.min(most, limit); else most = Math.min(most, 1);
    return { low: -most, high: most, colour: (v) => part === "cell" && Math.abs(v) > limit ?
      (v < 0 ? NEGATIVE : POSITIVE) : along(TWO, (v + most) / (2 * most)) };
  };

  const key = (head, part, scale) => {
    const box = make("span", head, "key");
    const block = (colour, text) => { make("i", box).style.background = css(colour); make("span", box, "", text); };
    if (isGate(part)) block(CLOSED, `closed < ${closed}`);
    if (part === "cell") block(NEGATIVE, `saturated < −${limit}`);
    make("span", box, "", number(scale.low));
    const ramp = isGate(part) ? RAMP : TWO;
    make("i", box, "ramp").style.background = `linear-gradient(to right, ${ramp.map(css).join(", ")})`;
    make("span", box, "", number(scale.high));
    if (isGate(part)) block(OPEN, `open > ${open}`);
    if (part === "cell") block(POSITIVE, `saturated > ${limit}`);
  };

  const sized = (canvas, width, height) => {
    const ratio = window.devicePixelRatio || 1;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    return pen;
  };
  const box = (name, means) => {
    const node = make("section", maps, "map"), head = make("h3", node, "", name);
    if (means) make("small", head, "", means);
    return [node, head];
  };

  const drawMap = ({ part, name, means }) => {
    const [node, head] = box(name, means), values = layers[layer][part], scale = scaleOf(part, values);
    key(head, part, scale);
    const canvas = make("canvas", node);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name} of ${units} units over ${ticks} ticks`);
    const pen = sized(canvas, ticks * wide, units * tall);
    const image = new ImageData(ticks, units);
    for (let row = 0; row < units; row++) {
      for (let t = 0; t < ticks; t++) {
        const [r, g, b] = scale.colour(values[t * units + order[row]]);
        image.data.set([r, g, b, 255], 4 * (row * ticks + t));
      }
    }
    const small = new OffscreenCanvas(ticks, units);
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, ticks * wide, units * tall);
    const side = make("div", node, "units");
    side.style.height = `${units * tall}px`;
    side.style.lineHeight = `${tall}px`;
    const every = Math.ceil(12 / tall);
    for (let row = 0; row < units; row++) {
      const label = make("div", side, "", row % every ? "\u00a0" : `unit ${order[row]}`);
      label.style.height = `${tall}px`;
    }
    listen(node, canvas, (y) => clamp(Math.floor(y / tall), 0, units - 1), part);
  };

  const drawLine = ({ name, unit, values, threshold }) => {
    const [node] = box(unit ? `${name}, ${unit}` : name), canvas = make("canvas", node), height = 56;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name} over time`);
    const pen = sized(canvas, ticks * wide, height), style = getComputedStyle(document.documentElement);
    const colour = (c) => style.getPropertyValue(`--${c}`).trim();
    let low = threshold ? 0 : Infinity, high = threshold ? 1.2 : -Infinity;
    for (const v of values) if (Number.isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
    const span = high > low ? high - low : 1, y = (v) => 3 + (high - v) / span * (height - 6);
    pen.fillStyle = colour("expected");
    for (const t of page.models) pen.fillRect(t * wide, 0, 1.5, height);
    if (threshold) {
      pen.strokeStyle = colour("flag");
      pen.setLineDash([6, 4]);
      pen.beginPath();
      pen.moveTo(0, y(threshold));
      pen.lineTo(ticks * wide, y(threshold));
      pen.stroke();
      pen.setLineDash([]);
    }
    pen.strokeStyle = colour(threshold ? "score" : "value");
    pen.lineWidth = 1.3;
    pen.beginPath();
    let begun = false;
    values.forEach((v, t) => {
      if (!Number.isFinite(v)) { begun = false; return; }
      if (begun) pen.lineTo((t + 0.5) * wide, y(v)); else pen.moveTo((t + 0.5) * wide, y(v));
      begun = true;
    });
    pen.stroke();
    const side = make("div", node, "units");
    side.style.height = `${height}px`;
    make("div", side, "", Number.isFinite(high) ? number(high) : "–").style.height = `${height - 16}px`;
    make("div", side, "", Number.isFinite(low) ? number(low) : "");
    listen(node, canvas, () => null, null);
  };

  const drawAxis = () => {
    const node = make("section", maps, "map"), pen = sized(make("canvas", node), ticks * wide, 20);
    const style = getComputedStyle(document.documentElement), step = Math.max(Math.round(130 / wide), 1);
    const short = dated && time[ticks - 1] - time[0] < 72000;
    pen.fillStyle = style.getPropertyValue("--dim").trim();
    pen.font = "11px system-ui, sans-serif";
    for (let t = 0; t < ticks; t += step) {
      const text = short ? moment(time[t]).slice(11) : moment(time[t]).slice(0, 16);
      pen.fillRect(t * wide, 0, 1, 5);
      if ((t + step * 0.6) * wide < ticks * wide || !t) pen.fillText(text, t * wide + 3, 14);
    }
  };

  const listen = (node, canvas, rowAt, part) => {
    const line = make("div", node, "cursor");
    line.style.height = canvas.style.height;
    place.push(line);
    canvas.addEventListener("pointermove", (event) => {
      const row = rowAt(event.offsetY);
      point({ t: clamp(Math.floor(event.offsetX / wide), 0, ticks - 1), row: row ?? cursor?.row ?? 0, part });
      showTip(event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => point(null));
  };
  const word = (part, v) => isGate(part) ? (v < closed ? "  closed" : v > open ? "  open" : "")
    : part === "cell" && Math.abs(v) > limit ? "  saturated" : "";
  const point = (at) => {
    cursor = at;
    for (const line of place) {
      line.style.visibility = at ? "visible" : "hidden";
      if (at) line.style.left = `${66 + (at.t + 0.5) * wide}px`;
    }
    if (!at) { tip.style.visibility = "hidden"; $("said").textContent = ""; return; }
    const unit = order[at.row];
    tip.textContent = [`${moment(time[at.t])}   unit ${unit}`, ...lines.map((l) => `${l.name}  ${number(l.values[at.t])} ${l.unit}`),
      ...page.maps.map((m) => { const v = layers[layer][m.part][at.t * units + unit]; return `${m.name}  ${number(v)}${word(m.part, v)}`; }),
    ].join("\n");
    const part = at.part || state, v = layers[layer][part][at.t * units + unit];
    $("said").textContent = `${moment(time[at.t])}, unit ${unit}: ${part} ${number(v)}${word(part, v)}`;
  };
  const showTip = (x, y) => {
    tip.style.visibility = "visible";
    tip.style.left = `${Math.min(x + 16, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 16, innerHeight - tip.offsetHeight - 8)}px`;
  };

  const draw = () => {
    units = layers[layer][state].length / ticks;
    wide = Math.max((maps.clientWidth - 66 - 14) / ticks, 2);
    tall = clamp(Math.round(260 / units), 3, 16);
    sorted();
    const left = maps.scrollLeft;
    maps.textContent = "";
    place = [];
    lines.slice(0, 9).forEach(drawLine);
    drawAxis();
    page.maps.forEach(drawMap);
    drawAxis();
    maps.scrollLeft = left;
    maps.dataset.drawn = units;
  };
  maps.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") point(null);
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const from = cursor || { t: ticks - 1, row: 0, part: null };
    point({ t: clamp(from.t + by[0], 0, ticks - 1), row: clamp(from.row + by[1], 0, units - 1), part: from.part });
    const box = maps.getBoundingClientRect();
    showTip(clamp(box.left + 66 + cursor.t * wide - maps.scrollLeft, box.left, box.right), Math.max(box.top, 60) + 40);
  });
  $("order").addEventListener("change", draw);
  if ($("layer")) {
    layers.forEach((_, k) => { make("option", $("layer"), "", `${k + 1} of ${layers.length}`).value = k; });
    $("layer").addEventListener("change", (event) => { layer = Number(event.target.value); draw(); });
  }
  let width = 0;
  new ResizeObserver(() => { if (maps.clientWidth !== width) { width = maps.clientWidth; draw(); } }).observe(maps);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  width = maps.clientWidth;
  maps.scrollLeft = maps.scrollWidth;
})();
