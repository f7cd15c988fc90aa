"use strict";

// The page works without this. With it: live values by server-sent events, local times, a search that follows the keys.

const live = document.getElementById("live");
const connection = document.getElementById("connection");

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    time.title = at.toLocaleString();
    if (time.dataset.ago !== undefined) continue;
    const today = at.toDateString() === new Date().toDateString();
    const clock = time.dataset.brief === undefined ? {} : { timeStyle: "short" };
    time.textContent = today ? at.toLocaleTimeString(undefined, clock) : at.toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
  }
}

// Makes `old` like `fresh` with as few changes as can be: what has the focus keeps it, and readers hear what changed.
function morph(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.nodeName === "INPUT" && old !== document.activeElement) old.value = fresh.value;
  const keyed = new Map([...old.children].filter((e) => e.dataset.key).map((e) => [e.dataset.key, e]));
  const alike = (a, b) => a && a.nodeName === b.nodeName && a.dataset?.key === b.dataset?.key;
  let at = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    const same = node.dataset?.key ? keyed.get(node.dataset.key) : at;
    if (!alike(same, node)) {
      old.insertBefore(node, at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    morph(same, node);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

let source = null;
let lost = 0;

function say(state, words) {
  if (connection.textContent !== words) connection.textContent = words;
  connection.className = `pill ${state}`;
}

function follow() {
  if (source) source.close();
  source = new EventSource(location.pathname + location.search);
  source.onopen = () => {
    clearTimeout(lost);
    lost = 0;
    say("live", "live");
  };
  source.onmessage = (event) => {
    const fresh = document.createElement("div");
    fresh.id = "live";
    fresh.append(...new DOMParser().parseFromString(JSON.parse(event.data), "text/html").body.childNodes);
    localise(fresh);
    morph(live, fresh);
  };
  source.onerror = () => {
    // Each stream ends after some seconds and is asked for anew; only what lasts is told.
    lost ||= setTimeout(() => say("lost", "not live: Sentinel does not answer"), 4000);
    if (source.readyState === EventSource.CLOSED) setTimeout(() => document.hidden || follow(), 5000);
  };
}

function go(search) {
  history.replaceState(null, "", location.pathname + search);
  follow();
}

let typing = 0;
if (live) {
  document.documentElement.classList.add("live");
  document.getElementById("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
  localise(live);
  const here = new URLSearchParams(location.search);
  if (here.has("did") || here.has("do")) history.replaceState(null, "", location.pathname); // a reload says nothing again
  live.addEventListener("input", (event) => {
    if (event.target.id !== "q") return;
    clearTimeout(typing);
    typing = setTimeout(() => {
      const asked = new URLSearchParams(location.search);
      asked.delete("page");
      asked.set("q", event.target.value);
      go(`?${asked}`);
    }, 200);
  });
  live.addEventListener("submit", (event) => {
    if (event.target.method === "get") event.preventDefault();
  });
  live.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-stay]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    follow();
    if (link.rel) scrollTo(0, 0);
  });
  addEventListener("popstate", follow);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close();
    else follow();
  });
  follow();
}
