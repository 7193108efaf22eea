// Everything that the server says is put in as text, never as HTML.
"use strict";

const by = (id) => document.getElementById(id);
const NAMES = ["champion", "challenger"];
const places = { champion: new Map(), challenger: new Map() };  // of the slates on show: video -> place
let shown = null;  // the user on show

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers["X-API-Key"] = key;
  const options = body === undefined ? { headers } : { headers, method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  by("key-form").hidden = answer.status !== 401;
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.message);
  return told;
}

function element(kind, text, name) {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

function time(seconds) {
  const whole = Math.round(seconds);
  const hours = Math.floor(whole / 3600);
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function age(instant) {
  if (!instant) return "";
  const hours = (Date.now() - Date.parse(instant)) / 3.6e6;
  return hours < 48 ? `${Math.max(0, Math.round(hours))} h` : `${Math.round(hours / 24)} d`;
}

function moved(before, place, compared) {
  if (!compared) return ["", "quiet"];
  if (before === undefined) return ["new", "new"];
  if (before === place) return ["=", "quiet"];
  return before > place ? [`▲${before - place}`, "up"] : [`▼${place - before}`, "down"];
}

function showSlate(name, slate, whyNot, compared) {
  const section = by(name);
  section.replaceChildren(by("slate-template").content.cloneNode(true));
  const title = name[0].toUpperCase() + name.slice(1);
  section.querySelector("h2").textContent = slate ? `${title}, version ${slate.model.version}` : title;
  const before = places[name];
  places[name] = new Map();
  const note = section.querySelector(".note");
  if (!slate) {
    note.textContent = whyNot;
    return;
  }
  note.textContent = [
    slate.personal ? "from the user's own past" : "nothing to go by: what is popular or new",
    slate.degraded,
  ].filter(Boolean).join("; ");
  section.querySelector("table").hidden = false;
  const rows = slate.videos.map((video) => {
    const row = document.createElement("tr");
    row.dataset.video = video.video_id;
    const [mark, kind] = moved(before.get(video.video_id), video.position, compared);
    places[name].set(video.video_id, video.position);
    const sources = Object.entries(video.sources).map(([source, score]) => `${source} ${Number(score.toPrecision(3))}`);
    const watch = element("button", "watch");
    watch.type = "button";
    watch.setAttribute("aria-label", `watch video ${video.video_id}`);
    watch.addEventListener("click", () => tellWatch(video));
    const last = document.createElement("td");
    last.append(watch);
    row.append(
      element("td", video.position + 1),
      element("td", mark, kind),
      element("td", video.video_id),
      element("td", time(video.expected_watch_time_s)),
      element("td", age(video.uploaded_at)),
      element("td", sources.join(", ")),
      last,
    );
    return row;
  });
  section.querySelector("tbody").replaceChildren(...rows);
}

async function refresh(compared) {
  const user = encodeURIComponent(shown);
  const [told, history] = await Promise.all([
    ask("v1/compare", { user_id: shown, how_many: Number(by("how-many").value) }),
    ask(`v1/users/${user}/history?at_most=20`),
  ]);
  showSlate("champion", told.champion, "", compared);
  showSlate("challenger", told.challenger, told.why_not, compared);
  by("history-note").textContent = history.watches
    ? `${history.watches} watches, ${history.impressions} impressions, ${history.searches} searches; the last ones first:`
    : `${history.impressions} impressions, ${history.searches} searches, no watches yet.`;
  by("history").replaceChildren(...history.last.map((event) => element(
    "li",
    event.query === null
      ? `video ${event.video_id}, ${event.watch_time_s === null ? "?" : time(event.watch_time_s)}`
        + (event.completed ? ", completed" : "")
      : `searched “${event.query}”`,
  )));
}

async function saying(work) {
  by("problem").textContent = "";
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    by("problem").textContent = error.message;
  } finally {
    document.body.setAttribute("aria-busy", "false");
  }
}

function tellWatch(video) {
  return saying(async () => {
    await ask("v1/events", { events: [{
      type: "watch",
      id: `page:${crypto.randomUUID()}`,
      user_id: shown,
      video_id: video.video_id,
      watch_time_s: video.expected_watch_time_s,
      completed: true,
      origin: "page",
    }] });
    await refresh(true);
  });
}

async function greet() {
  const [models, users] = await Promise.all([ask("v1/models"), ask("v1/users?at_most=50")]);
  const { champion, shadow } = models;
  by("models").textContent = champion
    ? `${champion.name}: champion is version ${champion.version}, trained until ${champion.trained_until_at.slice(0, 10)}`
      + (shadow.version ? `; challenger is version ${shadow.version}` : "; no challenger")
    : "no champion is served yet";
  by("users").replaceChildren(...users.user_ids.map((user) => {
    const option = document.createElement("option");
    option.value = user;
    return option;
  }));
}

by("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const same = shown === by("user").value;
  shown = by("user").value;
  saying(() => refresh(same));
});
by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", by("key").value);
  saying(greet);
});
saying(greet);
