// The live page: server-sent events -> plots and tables.
//
// Whatever comes from outside (names, details, addresses) is set as text, never as markup. Nothing
// is asked while the page is hidden.

"use strict";

const SPAN = 120; // seconds that a plot shows
const WINDOW = 10; // seconds over which a quantile is taken
const QUIET = 5; // seconds without an event after which touch is lost
const AGAIN = 2; // seconds until the next try where the browser itself gives up
const MOST_ROWS = 100;
const LONG = 28; // signs: a word that is longer may be broken anywhere

const byId = (id) => document.getElementById(id);
const seconds = () => performance.now() / 1000;

// --- words for numbers

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const two = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

function count(value) {
  return whole.format(value);
}

function plural(value, word) {
  return `${count(value)} ${word}${value === 1 ? "" : "s"}`;
}

function perSecond(value) {
  return `${(value < 10 ? tenths : whole).format(value)}/s`;
}

function bytes(value) {
  if (value < 999.5) return `${whole.format(Math.round(value))} B`;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    value /= 1000;
    if (value < 999.5 || unit === "TB") return `${three.format(value)} ${unit}`;
  }
}

function bytesPerSecond(value) {
  return `${bytes(value)}/s`;
}

// How long ago something was, or for how long it is so: as much of it as a person says.
function span(value) {
  const sizes = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const found = sizes.findIndex(([size]) => value >= size);
  const [size, word] = sizes.at(found);
  const first = Math.floor(value / size);
  const [less, lesser] = sizes[found + 1] ?? [];
  const rest = found >= 0 && found < 2 ? Math.floor((value % size) / less) : 0;
  return rest ? `${first} ${word} ${rest} ${lesser}` : `${first} ${word}`;
}

function duration(value) {
  return value >= 0.995 ? `${two.format(value)} s` : `${two.format(value * 1000)} ms`;
}

// --- elements

// What others wrote: a sign that cannot be seen, or that turns others round, is shown by its number.
function plain(words) {
  const number = (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`;
  return String(words).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, number);
}

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = plain(text);
  if (className) element.className = className;
  return element;
}

function setText(element, text) {
  const words = plain(text);
  if (element.textContent !== words) element.textContent = words;
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function mark(state, words, className) {
  const element = make("span", undefined, className);
  element.dataset.state = state;
  const sign = make("span", undefined, "mark");
  sign.setAttribute("aria-hidden", "true");
  element.append(sign, make("span", words, "said"));
  return element;
}

// --- plots

const points = []; // oldest first: {at, ...a value, or null, for each plot}

// Each: how its number is shown, its value, and a line of words beside; where it has a second,
// dashed curve, those are of that.
const PLOTS = [
  { id: "active", title: "Connections", show: count, value: (p) => p.active,
    beside: () => `limit ${count(shown.limit)}` },
  { id: "new", title: "New connections", show: perSecond, value: (p) => p.accepted,
    inAll: () => count(shown.accepted),
    more: (p) => p.refused,
    beside: (more) => `refused ${more === null ? "\u2013" : perSecond(more)}` },
  { id: "down", title: "Down, to clients", show: bytesPerSecond, value: (p) => p.down,
    beside: () => `${bytes(shown.down)} in all` },
  { id: "up", title: "Up, to backends", show: bytesPerSecond, value: (p) => p.up,
    beside: () => `${bytes(shown.up)} in all` },
  ...[["hello", "Time to hello", "hello_seconds"],
    ["first", "Time to first byte", "first_byte_seconds"]].map(([id, title, name]) => ({
    id, title, unit: "median", show: duration, value: (p) => p[name]?.[0],
    more: (p) => p[name]?.[1],
    beside: (more) => (more === null ? `none in the last ${WINDOW} s` : `95 % within ${duration(more)}`),
  })),
];

for (const plot of PLOTS) {
  const figure = make("figure");
  figure.id = `plot-${plot.id}`;
  plot.number = make("span", "\u2013");
  const value = make("p", undefined, "value");
  value.append(plot.number);
  if (plot.unit) value.append(" ", make("small", plot.unit));
  plot.drawing = svg("svg", { viewBox: `0 0 ${SPAN} 40`, preserveAspectRatio: "none", role: "img" });
  plot.area = svg("path", { class: "area" });
  plot.curve = svg("path", { class: "curve" });
  plot.moreCurve = svg("path", { class: "more" });
  plot.drawing.append(
    svg("line", { class: "base", x1: 0, x2: SPAN, y1: 39.5, y2: 39.5 }),
    plot.area, plot.moreCurve, plot.curve,
  );
  plot.most = make("span", "No figures yet.");
  plot.second = make("span", "\u00a0");
  const caption = make("figcaption");
  caption.append(plot.most, plot.second);
  figure.append(make("h3", plot.title), value, plot.drawing, caption);
  byId("plots").append(figure);
}

// Runs of neighbouring points that have a value: where some were missed, there is no line.
function runs(value, top) {
  const now = points.at(-1).at;
  const found = [[]];
  let last = null;
  for (const point of points) {
    const height = value(point);
    const isNext = last !== null && point.at - last <= 2 * QUIET;
    if (height == null || !isNext) found.push([]);
    if (height != null) {
      const x = SPAN - (now - point.at);
      found.at(-1).push([x.toFixed(2), (39 - (top ? (height / top) * 37 : 0)).toFixed(2)]);
    }
    last = height == null ? null : point.at;
  }
  return found.filter((run) => run.length);
}

function line(run) {
  // A lone point shows as a short dash.
  const [x, y] = run[0];
  return `M${run.map((each) => each.join(" ")).join("L")}${run.length > 1 ? "" : `L${x - 1} ${y}`}`;
}

function draw(plot) {
  const values = points.map(plot.value).filter((each) => each != null);
  const mores = plot.more ? points.map(plot.more).filter((each) => each != null) : [];
  const highest = Math.max(...values, ...mores, 0);
  const curves = runs(plot.value, highest);
  plot.curve.setAttribute("d", curves.map(line).join(""));
  plot.area.setAttribute("d", curves.filter((run) => run.length > 1).map(
    (run) => `${line(run)}L${run.at(-1)[0]} 39L${run[0][0]} 39Z`).join(""));
  if (plot.more) plot.moreCurve.setAttribute("d", runs(plot.more, highest).map(line).join(""));

  const now = plot.value(points.at(-1)) ?? null;
  setText(plot.number, now === null ? "\u2013" : plot.show(now));
  plot.number.dataset.value = now;
  const most = values.length ? `most ${plot.show(Math.max(...values))}` : "nothing yet";
  setText(plot.most, plot.inAll ? `${most}; ${plot.inAll()} in all` : most);
  const more = plot.more?.(points.at(-1)) ?? null;
  setText(plot.second, plot.beside(more));
  plot.second.classList.toggle("dashed", more !== null);
  plot.drawing.setAttribute("aria-label", values.length
    ? `${plot.title}, the last two minutes: least ${plot.show(Math.min(...values))}, ${most}`
    : `${plot.title}: nothing yet`);
}

// The value below which a share of what a histogram counted lies, as Prometheus reckons it.
function quantile(share, row, bounds) {
  const counts = row.slice(0, -1);
  const wanted = share * counts.reduce((sum, each) => sum + each, 0);
  let below = 0;
  for (let place = 0; place < counts.length; place++) {
    if (counts[place] && below + counts[place] >= wanted) {
      if (place >= bounds.length) return bounds.at(-1);
      const low = place ? bounds[place - 1] : 0;
      return low + (bounds[place] - low) * ((wanted - below) / counts[place]);
    }
    below += counts[place];
  }
  return null;
}

function quantiles(event, name) {
  const then = points.find(
    (each) => each.instance === event.instance && each.at >= seconds() - WINDOW);
  if (!then) return null;
  const since = event[name].map((each, place) => each - then.rows[name][place]);
  if (since.slice(0, -1).some((each) => each < 0)) return null;
  const median = quantile(0.5, since, event.bounds);
  return median == null ? null : [median, quantile(0.95, since, event.bounds)];
}

// --- what has moved since the event before

let shown = null; // the newest event

// Growth a second. Null where it was counted anew, so that nothing spikes; and after a while in which
// nobody looked, of which the mean is not what is now.
function rate(now, before, name) {
  if (!before) return null;
  const grown = now[name] - before[name];
  const passed = now.time - before.time;
  return grown >= 0 && passed > 0 && passed < patience(2 * QUIET) ? grown / passed : null;
}

function take(event) {
  event.refusals = event.refused.reduce((sum, each) => sum + each.count, 0);
  const before = event.instance === shown?.instance ? shown : null;
  shown = event;
  const at = seconds();
  points.push({
    at,
    instance: event.instance,
    active: event.active,
    accepted: rate(event, before, "accepted"),
    refused: rate(event, before, "refusals"),
    down: rate(event, before, "down"),
    up: rate(event, before, "up"),
    hello_seconds: quantiles(event, "hello_seconds"),
    first_byte_seconds: quantiles(event, "first_byte_seconds"),
    rows: { hello_seconds: event.hello_seconds, first_byte_seconds: event.first_byte_seconds },
  });
  while (points[0].at < at - SPAN) points.shift();
}

// Rates of a table's rows, each from what the row said before.
class Rates {
  constructor() {
    this.before = new Map();
    this.instance = null;
  }

  add(rows, key, time, instance) {
    if (instance !== this.instance) this.before.clear();
    this.instance = instance;
    const now = new Map();
    for (const row of rows) {
      const before = this.before.get(row[key]);
      const { down, up } = row;
      now.set(row[key], { time, down, up });
      for (const word of ["down", "up"]) row[`${word}_rate`] = rate({ time, down, up }, before, word);
    }
    this.before = now;
  }
}

// --- tables

class Table {
  constructor(id, { key, columns, sort, descending }) {
    this.table = byId(id);
    this.body = this.table.tBodies[0];
    this.key = key;
    this.columns = columns;
    this.sort = sort;
    this.descending = descending;
    this.rows = [];
    this.shown = new Map();
    this.heads = [...this.table.tHead.rows[0].cells];
    for (const head of this.heads) if (head.dataset.key) this.makeSortable(head);
    this.tellSort();
  }

  makeSortable(head) {
    const button = make("button", head.textContent);
    button.type = "button";
    button.addEventListener("click", () => {
      const isNumber = head.classList.contains("number");
      this.descending = this.sort === head.dataset.key ? !this.descending : isNumber;
      this.sort = head.dataset.key;
      this.tellSort();
      this.render(this.rows);
    });
    head.replaceChildren(button);
  }

  tellSort() {
    for (const head of this.heads) {
      if (head.dataset.key && head.dataset.key === this.sort) {
        head.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      } else head.removeAttribute("aria-sort");
    }
  }

  sorted(rows) {
    if (!this.sort) return rows;
    const sign = this.descending ? -1 : 1;
    const compare = (a, b) => (typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0);
    const value = (row) => {
      const found = row[this.sort];
      return found == null ? -1 : Array.isArray(found) ? found.join(" ") : found;
    };
    return rows.toSorted((a, b) => sign * compare(value(a), value(b))
      || compare(String(a[this.key]), String(b[this.key])));
  }

  render(rows) {
    this.rows = rows;
    const left = new Map(this.shown);
    this.sorted(rows).slice(0, MOST_ROWS).forEach((row, place) => {
      let line = this.shown.get(row[this.key]);
      if (!line) {
        line = this.newLine(row);
        this.shown.set(row[this.key], line);
      }
      left.delete(row[this.key]);
      this.columns.forEach((column, number) => this.fill(line.cells[number], column, row));
      // Only what is elsewhere is moved.
      if (this.body.rows[place] !== line) this.body.insertBefore(line, this.body.rows[place] ?? null);
    });
    for (const [key, line] of left) {
      line.remove();
      this.shown.delete(key);
    }
    this.table.parentElement.hidden = rows.length === 0;
  }

  newLine(row) {
    const line = make("tr");
    line.dataset.row = row[this.key];
    this.columns.forEach((column, place) => {
      const cell = make(place === 0 ? "th" : "td", undefined, this.heads[place].className);
      if (place === 0) cell.scope = "row";
      if (column.className) cell.classList.add(column.className);
      line.append(cell);
    });
    return line;
  }

  fill(cell, column, row) {
    this.write(cell, column, row);
    const parts = cell.children.length ? [...cell.children] : [cell];
    const words = parts.flatMap((part) => part.textContent.split(/\s/));
    cell.classList.toggle("long", words.some((word) => word.length > LONG));
  }

  write(cell, column, row) {
    if (column.fill) {
      const said = JSON.stringify(column.says(row));
      if (cell.dataset.said !== said) {
        cell.replaceChildren(...column.fill(row));
        cell.dataset.said = said;
      }
      return;
    }
    const value = row[column.of];
    setText(cell, value == null ? "\u2013" : column.show(value));
    if (typeof value === "number") cell.dataset.value = value;
    if (column.show === bytes) cell.title = `${count(value)} bytes`;
  }
}

// A route's backends, and which of them are known to be down.
function withHealth(addresses) {
  const down = new Set(shown.backends.rows.filter((x) => x.health === "down").map((x) => x.backend));
  return addresses.map((each) => (down.has(each) ? `${each} (down)` : each)).join(", ");
}

const USED = {
  active: { of: "active", show: count },
  connections: { of: "connections", show: count },
  downRate: { of: "down_rate", show: bytesPerSecond },
  upRate: { of: "up_rate", show: bytesPerSecond },
  down: { of: "down", show: bytes },
  up: { of: "up", show: bytes },
};
const HEALTH = { up: ["good", "up"], down: ["bad", "down"], unknown: ["unknown", "not tried yet"] };

function healthWords(row) {
  const [, word] = HEALTH[row.health];
  return row.words && row.health === "down" ? `${word}: ${row.words}` : word;
}

const routes = new Table("routes-table", {
  key: "pattern", sort: "connections", descending: true,
  columns: [
    { says: (row) => [row.pattern, withHealth(row.backend)],
      fill: (row) => [make("span", row.pattern), make("span", withHealth(row.backend), "under")] },
    { of: "backend", show: withHealth }, USED.active, USED.connections, USED.downRate, USED.upRate, USED.down, USED.up,
  ],
});
const backends = new Table("backends-table", {
  key: "backend", sort: "health", descending: false,
  columns: [
    { of: "backend", show: String },
    { says: (row) => [row.health, row.words],
      fill: (row) => [mark(HEALTH[row.health][0], healthWords(row), "health")] },
    USED.active, USED.connections, { of: "failures", show: count }, USED.downRate, USED.upRate,
  ],
});
const refusals = new Table("refused-table", {
  key: "reason", sort: "count", descending: true,
  columns: [
    { of: "reason", show: String }, { of: "count", show: count },
    { says: (row) => row.reason,
      fill: (row) => [make("span", row.means, "means"), make("span", row.remedy, "remedy")] },
  ],
});
const last = new Table("last-table", {
  key: "id", sort: null,
  columns: [
    { of: "id", show: String },
    { says: (row) => [row.time, today()], fill: (row) => [moment(row.time)], className: "time" },
    { of: "name", show: String }, { of: "reason", show: String, className: "word" },
    { of: "client", show: String }, { of: "detail", show: String },
  ],
});

function today() {
  return new Date().toDateString();
}

// The time of day; with the day, where it was another.
function moment(time) {
  const date = new Date(time * 1000);
  const day = date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  const words = date.toLocaleTimeString("en-GB");
  const element = make("time", date.toDateString() === today() ? words : `${day} ${words}`);
  element.dateTime = date.toISOString();
  return element;
}

// --- routes, and those that are looked for

const find = byId("find");
const liveRates = new Rates();
const foundRates = new Rates();
const backendRates = new Rates();
let found = null; // what the server said to what is looked for
let asking = 0;

function wanted() {
  return find.value.trim().replace(/\s+/g, " ").toLowerCase();
}

function hasAll() {
  return shown && shown.routes.rows.length >= shown.routes.total;
}

function renderRoutes() {
  if (!shown) return;
  const { rows, total } = shown.routes;
  const text = wanted();
  setText(byId("routes-total"), count(total));
  byId("find").parentElement.hidden = total === 0;
  if (!text) {
    routes.render(rows);
    const note = total === 0
      ? "There are none: no route is configured, and no Caddy has told of a name yet. What the doctor"
        + " says may help; --route HOST=ADDR and --caddy ADDR make some."
      : rows.length < total ? `${count(rows.length)} of ${count(total)}, those with traffic first. Others can be found by name.`
      : "";
    setText(byId("routes-note"), note);
    return;
  }
  const isHit = (row) => [row.pattern, ...row.backend].some((each) => each.toLowerCase().includes(text));
  const hits = hasAll() ? { total: 0, rows: rows.filter(isHit) } : found;
  if (!hits) {
    setText(byId("routes-note"), "Looking.");
    return;
  }
  routes.render(hits.rows);
  const hitsTotal = Math.max(hits.total, hits.rows.length);
  setText(byId("routes-note"), hits.rows.length < hitsTotal
    ? `The first ${count(hits.rows.length)} of ${count(hitsTotal)} that have it.`
    : `${count(hitsTotal)} of ${count(total)} ${hitsTotal === 1 ? "has" : "have"} it.`);
}

async function look() {
  const text = wanted();
  const number = ++asking;
  if (text && shown && !hasAll()) {
    try {
      const answer = await fetch(`find?${encodeURIComponent(text)}`);
      if (number !== asking) return;
      if (!answer.ok) {
        setText(byId("routes-note"), `Not found out: ${(await answer.text()).trim()}.`);
        return;
      }
      const hits = await answer.json();
      if (number !== asking) return;
      for (const row of hits.rows) {
        row.backend = [...(row.backend ?? []), ...(row.http ?? []), ...(row.refuses ? ["refuse"] : [])];
      }
      foundRates.add(hits.rows, "pattern", seconds(), shown.instance);
      found = hits;
    } catch {
      return; // the state line says that touch is lost
    }
  }
  renderRoutes();
}

let typed = 0;
find.addEventListener("input", () => {
  clearTimeout(typed);
  found = null;
  typed = setTimeout(look, 200);
});

// --- how it is

let heard = null; // when the last event came
let looked = 0; // since when somebody looks
let connected = 0; // since when this stream is there
let whyNot = ""; // no more come, where the server has said that
let said = ""; // to screen readers

// Seconds; of very many routes it takes longer from one event to the next.
function patience(least) {
  return Math.max(least, 3 * (shown?.every ?? 0));
}

function health() {
  const isLate = seconds() - Math.max(heard ?? 0, looked) > patience(QUIET);
  if (whyNot) {
    return { state: "bad", words: `Not watching: ${whyNot}. Trying again.`, short: "not watching" };
  }
  if (!shown) {
    return isLate || isCut
      ? { state: "bad", words: "No answer yet; trying again.", short: "no answer" }
      : { state: "waiting", words: "Waiting for the first figures.", short: "waiting" };
  }
  if (isLate || isCut) {
    const words = `Lost touch ${span(seconds() - heard)} ago; trying again. What is shown is as of then.`;
    return { state: "bad", words, short: "lost touch" };
  }
  if (heard < looked && seconds() - heard > patience(QUIET)) {
    const words = `What is shown is ${span(seconds() - heard)} old; asking.`;
    return { state: "waiting", words, short: "asking" };
  }
  if (shown.state !== "serving") {
    const word = shown.state[0].toUpperCase() + shown.state.slice(1);
    return { state: "bad", words: `${word}: ${plural(shown.active, "connection")} open.`,
      short: shown.state };
  }
  const stuck = Object.keys(shown.workers).filter((each) => !shown.workers[each]);
  const faults = shown.routes.total ? [] : ["there is no route"];
  if (shown.reload?.problems.length) faults.push("the last reload failed");
  if (shown.faults.length) faults.push(`routes not read: ${shown.faults[0]}`);
  if (shown.backends.down) {
    faults.push(`${plural(shown.backends.down, "backend")} down`);
  }
  if (stuck.length) faults.push(`no answer from worker ${stuck.join(", ")}`);
  const now = `${plural(shown.active, "connection")}, ${plural(shown.routes.total, "route")}`;
  if (faults.length) {
    return { state: "warn", words: `Serving, but ${faults.join("; ")}. ${now}.`, short: faults.join("; ") };
  }
  return { state: "good", words: `Serving: ${now}.`, short: "serving" };
}

function tellAbout() {
  setText(byId("uptime"), span(shown.uptime));
  const listeners = shown.listeners.map((each) => `${each.address} (${each.protocol})`);
  const none = shown.state === "draining" ? "nowhere any more" : "\u2013";
  setText(byId("listeners"), listeners.join(", ") || none);
  const { reload } = shown;
  const faults = JSON.stringify(shown.faults);
  if (byId("faults").dataset.said !== faults) {
    byId("faults").dataset.said = faults;
    byId("faults").replaceChildren(...shown.faults.map((each) => make("li", each)));
  }
  const problems = reload?.problems ?? [];
  const said = JSON.stringify([reload, today()]);
  if (byId("reload").dataset.said === said) return;
  byId("reload").dataset.said = said;
  if (!reload) byId("reload").replaceChildren("as at the start");
  else if (!problems.length) byId("reload").replaceChildren("reloaded at ", moment(reload.time));
  else {
    const failed = mark("bad", "not reloaded at ");
    failed.lastChild.append(moment(reload.time));
    const list = make("ul");
    list.append(...problems.map((each) => make("li", each)));
    byId("reload").replaceChildren(failed, "; what was before it is in effect", list);
  }
}

function tellHealth() {
  const { state, words, short } = health();
  byId("state").dataset.state = state;
  setText(byId("state-words"), words);
  document.title = `snimux: ${short}`;
  // For screen readers: what has changed, and not what only moves.
  const down = shown ? shown.backends.rows.filter((row) => row.health === "down") : [];
  const named = down.slice(0, 3).map((row) => row.backend).join(", ");
  const now = `${short} ${named}`;
  if (now === said) return;
  said = now;
  setText(byId("live"), named ? `${words} Down: ${named}.` : words);
}

function render() {
  const event = shown;
  setText(byId("version"), event.version);
  tellAbout();
  for (const plot of PLOTS) draw(plot);
  liveRates.add(event.routes.rows, "pattern", event.time, event.instance);
  backendRates.add(event.backends.rows, "backend", event.time, event.instance);
  if (!wanted() || hasAll()) renderRoutes();
  else if (seconds() - (foundRates.asked ?? 0) > 3) {
    foundRates.asked = seconds();
    look();
  }
  backends.render(event.backends.rows);
  setText(byId("backends-note"), event.backends.rows.length ? "" : "There are none: no route leads"
    + " anywhere yet.");
  setText(byId("backends-total"), event.backends.down ? `${count(event.backends.down)} down` : "");
  refusals.render(event.refused);
  setText(byId("refused-total"), count(event.refusals));
  byId("refused-note").hidden = event.refusals > 0;
  for (const row of event.last_refused) {
    row.id = Object.keys(event.workers).length ? `${row.worker}.${row.number}` : row.number;
    row.name ??= "no name";
    row.detail ||= "\u2013";
  }
  last.render(event.last_refused);
  byId("last-heading").hidden = event.last_refused.length === 0;
  tellExplain(event.last_refused);
  tellHealth();
}

// How to find out more of the last one of which there is more.
function tellExplain(refused) {
  const one = refused.find((row) => row.protocol !== "http");
  byId("last-note").hidden = !one;
  if (one) setText(byId("explain"), `snimux explain --refused ${one.id} --status ${location.host}`);
}

// --- what the doctor says

const COLOURS = { red: ["bad", "wrong"], yellow: ["warn", "doubtful"], green: ["good", "fine"] };
let doctorTimer = 0;

function finding(each) {
  const item = make("li");
  const heading = make("h3");
  const [state, word] = COLOURS[each.colour] ?? ["unknown", each.colour];
  heading.append(mark(state, word), make("span", `: ${each.title}`));
  item.append(heading);
  if (each.meaning) item.append(make("p", each.meaning));
  if (each.remedy.length) {
    const remedy = make("pre");
    remedy.textContent = each.remedy.map(plain).join("\n");
    remedy.tabIndex = 0; // it may scroll
    remedy.setAttribute("role", "region");
    remedy.setAttribute("aria-label", `What mends it: ${each.title}`);
    item.append(remedy);
  }
  return item;
}

function renderDoctor(told) {
  const said = JSON.stringify([told.findings, told.unseen]);
  if (byId("findings").dataset.said !== said) {
    byId("findings").dataset.said = said;
    byId("findings").replaceChildren(...told.findings.map(finding));
    const more = make("details");
    const list = make("ul");
    list.append(...told.unseen.map((each) => make("li", each)));
    more.append(make("summary", `What it could not see: ${told.unseen.length}`), list);
    byId("unseen").replaceChildren(...(told.unseen.length ? [more] : []));
  }
  const tally = Object.entries(COLOURS).map(
    ([colour, [, word]]) => [told.findings.filter((x) => x.colour === colour).length, word]);
  tally.push([told.left_out, "more"]);
  setText(byId("doctor-total"),
    tally.filter(([number]) => number).map((each) => each.join(" ")).join(", "));
  const age = told.age == null ? "" : `It looked ${told.age < 90
    ? `${Math.round(told.age)} s` : `${Math.round(told.age / 60)} min`} ago.`;
  const state = told.looking ? "It is looking." : told.fault ? `It could not look: ${told.fault}` : age;
  setText(byId("doctor-state"), state);
  // Not disabled, which would take the focus away.
  byId("doctor-again").setAttribute("aria-disabled", String(told.looking));
}

async function askDoctor(again = false) {
  clearTimeout(doctorTimer);
  let soon = 10;
  try {
    const told = await (await fetch(again ? "doctor?again" : "doctor")).json();
    renderDoctor(told);
    if (again && !told.looking) {
      const wait = Math.max(1, Math.ceil(told.rest - told.age));
      setText(byId("doctor-state"), `It has just looked. It can again in ${wait} s.`);
    }
    if (told.looking) soon = 2;
  } catch {
    // the state line says that touch is lost
  }
  if (!document.hidden) doctorTimer = setTimeout(askDoctor, soon * 1000);
}

byId("doctor-again").addEventListener("click", (event) => {
  if (event.currentTarget.getAttribute("aria-disabled") !== "true") askDoctor(true);
});

// --- touch

let source = null;
let retry = 0;
let isCut = false;

function connect() {
  clearTimeout(retry);
  source?.close();
  connected = seconds();
  source = new EventSource("events");
  source.addEventListener("message", (message) => {
    heard = seconds();
    whyNot = "";
    isCut = false;
    const event = JSON.parse(message.data);
    // Who comes again soon gets the newest that there is, which may be what is shown.
    if (event.instance === shown?.instance && event.time <= shown.time) tellHealth();
    else {
      take(event);
      render();
    }
  });
  source.addEventListener("error", () => {
    isCut = true;
    tellHealth();
    // Else the browser tries again itself.
    if (source.readyState === EventSource.CLOSED) {
      retry = setTimeout(connect, AGAIN * 1000);
      askWhyNot();
    }
  });
}

// A browser does not tell what its stream was refused with.
async function askWhyNot() {
  const stop = new AbortController();
  try {
    const answer = await fetch("events", { signal: stop.signal });
    whyNot = answer.ok ? "" : (await answer.text()).trim();
  } catch {
    whyNot = ""; // nobody is there
  }
  stop.abort();
  tellHealth();
}

function watch() {
  if (document.hidden) {
    clearTimeout(retry);
    source?.close();
    source = null;
    document.title = "snimux"; // what is seen of it is not to say for hours that it serves
    return;
  }
  looked = seconds();
  whyNot = "";
  isCut = false;
  connect();
  tellHealth();
  askDoctor();
}

setInterval(() => {
  if (document.hidden) return;
  const silent = seconds() - Math.max(heard ?? 0, connected);
  if (silent > patience(3 * QUIET) && source?.readyState === EventSource.OPEN) {
    connect(); // it says it is connected, and nothing comes: a laptop that slept
  }
  tellHealth();
}, 1000);

document.addEventListener("visibilitychange", watch);
watch();
