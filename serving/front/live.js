"use strict";
/* The map of the live front. Tiles are fetched, not only named: so a tile that is told to wait is asked for again, one that
   has left the map is given up, and each says which version of the model made it. */
(() => {
const byId = (id) => document.getElementById(id);
const LONGEST_WAIT = 30, ATTEMPTS = 8, POLL = 5000;

const map = L.map("map", { attributionControl: false, zoomSnap: 0.5, wheelPxPerZoomLevel: 100, keyboardPanDelta: 160, fadeAnimation: false });
const credits = L.control.attribution({ prefix: '<a href="https://leafletjs.com">Leaflet</a>' }).addTo(map);
L.control.scale({ imperial: false, position: "bottomleft" }).addTo(map);

let sources = [], models = [], source = null, model = null;
let imagery = null, masks = null, outlines = null, credited = "";
let seen = "";  // the version of which the masks on the map are

/* --- telling people --- */

let fading = 0;
function notice(text, seconds) {
  clearTimeout(fading);
  byId("notice").hidden = !text;
  byId("notice").textContent = text || "";
  if (text && seconds) fading = setTimeout(() => notice(""), seconds * 1000);
}

async function reasonOf(answer) {
  try {
    const said = await answer.json();
    return said.detail || said.error || "HTTP " + answer.status;
  } catch {
    return "HTTP " + answer.status;
  }
}

/* --- asking, and asking again --- */

const sleep = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

const counts = { wait: 0, done: 0, none: 0, failed: 0 };
function count() {
  const parts = [];
  if (counts.wait) parts.push(counts.wait + " to come");
  parts.push(counts.done + " shown");
  if (counts.failed) parts.push(counts.failed + " failed");
  byId("progress").textContent = parts.join(", ");
  document.body.dataset.waiting = counts.wait;
}

/* Returns the answer; null where there is no such tile, which the server is asked to say without an error. */
async function ask(url, signal) {
  for (let attempt = 1; ; attempt++) {
    let answer = null;
    try {
      answer = await fetch(url, { signal });
    } catch (error) {
      if (signal.aborted) throw error;
      if (attempt === ATTEMPTS) throw new Error("the server cannot be reached");
    }
    if (answer && answer.ok) return answer.status === 204 ? null : answer;
    if (answer && ![429, 502, 503, 504].includes(answer.status)) throw new Error(await reasonOf(answer));
    if (answer && attempt === ATTEMPTS) throw new Error(await reasonOf(answer));
    const told = answer ? Number(answer.headers.get("Retry-After")) : 0;
    // Not all at the same moment: they were sent away together.
    await sleep(Math.min(LONGEST_WAIT, told || 0.5 * 2 ** attempt) * (0.75 + Math.random() / 2), signal);
  }
}

const Fetched = L.GridLayer.extend({
  createTile(coords, done) {
    const image = document.createElement("img");
    image.alt = "";
    image.className = "empty " + (this.options.look || "");
    image.stop = new AbortController();
    this.fill(image, coords).then(() => done(null, image), (error) => {
      if (image.stop.signal.aborted) return;
      if (this.options.counted) image.classList.replace("empty", "failed");
      notice(this.options.what + ": " + error.message, 12);
      done(error, image);
    });
    return image;
  },
  async fill(image, coords) {
    const counted = this.options.counted;
    if (counted) { counts.wait++; image.counts = "wait"; count(); }
    try {
      const answer = await ask(this.options.at(coords), image.stop.signal);
      if (!answer) return this.tally(image, "none");
      const version = answer.headers.get("X-Model-Version");
      if (counted && version) sawVersion(version);
      image.blob = URL.createObjectURL(await answer.blob());
      if (image.stop.signal.aborted) throw image.stop.signal.reason;
      await new Promise((resolve, reject) => {
        image.onload = () => { image.classList.remove("empty"); resolve(); };
        image.onerror = () => reject(new Error("the tile is no image"));
        image.src = image.blob;
      });
      this.tally(image, "done");
    } catch (error) {
      this.tally(image, image.stop.signal.aborted ? null : "failed");
      throw error;
    }
  },
  tally(image, now) {
    if (!this.options.counted || !image.counts) return;
    counts[image.counts]--;
    image.counts = now;
    if (now) counts[now]++;
    count();
  },
  onRemove(on) { L.GridLayer.prototype.onRemove.call(this, on); this.forget(); },
  forget() { for (const image of Object.values(this._tiles || {})) this.drop(image.el); },
  drop(image) {
    image.stop.abort();
    this.tally(image, null);
    if (image.blob) URL.revokeObjectURL(image.blob);
    image.blob = null;
  },
});
function fetched(options) {
  const layer = new Fetched(options);
  layer.on("tileunload", (event) => layer.drop(event.tile));
  return layer;
}

/* --- what is shown --- */

const path = (...parts) => parts.map(encodeURIComponent).join("/");
// A hair less than all: tiles that only touch the bounds hold nothing.
const HAIR = 1e-6;
const boundsOf = ({ bounds: [west, south, east, north] }) => [[south + HAIR, west + HAIR], [north - HAIR, east - HAIR]];

/* The one zoom at which the model is asked: the one it was trained on, where the imagery has it. */
function maskZoom() {
  const zoom = model && Number.isInteger(model.zoom) ? model.zoom : source.maxzoom;
  return Math.min(source.maxzoom, Math.max(source.minzoom, zoom));
}

function fitImagery() {
  const wide = map.getSize().x > 600;
  map.fitBounds(boundsOf(source), { paddingTopLeft: [16, 16], paddingBottomRight: wide ? [292, 16] : [16, 16] });
  if (map.getZoom() < maskZoom() - 1) map.setView(map.getCenter(), maskZoom() - 1);
}

function showImagery() {
  if (imagery) imagery.remove();
  if (credited) credits.removeAttribution(credited);
  credited = source.attribution || "";  // of rsp.shared.attribution: text and links, nothing else
  if (credited) credits.addAttribution(credited);
  map.setMinZoom(Math.max(0, source.minzoom - 2));
  map.setMaxZoom(Math.min(24, source.maxzoom + 4));
  imagery = fetched({
    what: "Imagery", at: ({ z, x, y }) => path(source.name, z, x, y) + ".webp?empty=true", bounds: boundsOf(source), zIndex: 1,
    minNativeZoom: source.minzoom, maxNativeZoom: source.maxzoom, minZoom: Math.max(0, source.minzoom - 2), maxZoom: 24,
  }).addTo(map);
}

function showMasks() {
  if (masks) masks.remove();
  if (outlines) outlines.remove();
  masks = outlines = null;
  Object.assign(counts, { wait: 0, done: 0, none: 0, failed: 0 });
  count();
  if (!model) return;
  const zoom = maskZoom();
  masks = fetched({
    what: "Masks", counted: true, look: "mask", zIndex: 2, opacity: byId("opacity").value / 100, bounds: boundsOf(source),
    at: ({ z, x, y }) => path(source.name, model.name, z, x, y) + ".png?transparent=true&empty=true",
    minNativeZoom: zoom, maxNativeZoom: zoom, minZoom: zoom - 1, maxZoom: 24, keepBuffer: 1,
  }).addTo(map);
  outlines = new Outlines(zoom).addTo(map);
  zoomed();
}

/* Outlines, one request a tile that is in sight, and only where people see them well. */
const Outlines = L.GridLayer.extend({
  initialize(zoom) {
    this.features = new L.LayerGroup();
    L.setOptions(this, { zIndex: 3, bounds: boundsOf(source), minNativeZoom: zoom, maxNativeZoom: zoom, minZoom: zoom - 1, maxZoom: 24, keepBuffer: 0 });
    this.on("tileunload", ({ tile }) => { tile.stop.abort(); if (tile.shown) this.features.removeLayer(tile.shown); });
  },
  onAdd(on) { this.features.addTo(on); L.GridLayer.prototype.onAdd.call(this, on); },
  onRemove(on) { for (const { el } of Object.values(this._tiles)) el.stop.abort(); this.features.remove(); L.GridLayer.prototype.onRemove.call(this, on); },
  createTile(coords, done) {
    const cell = document.createElement("div");
    cell.stop = new AbortController();
    if (!byId("features").checked) { setTimeout(() => done(null, cell)); return cell; }
    const colors = Object.fromEntries((model.classes || []).map(({ title, color }) => [title, color]));
    ask(path(source.name, model.name, coords.z, coords.x, coords.y) + ".geojson?empty=true", cell.stop.signal)
      .then((answer) => answer && answer.json())
      .then((found) => {
        if (cell.stop.signal.aborted) return;
        if (found) {
          cell.shown = L.geoJSON(found, {
            interactive: false,
            style: ({ properties }) => ({ color: colors[properties.class] || "#4cc9f0", weight: 2, fill: false, className: "outline" }),
          });
          this.features.addLayer(cell.shown);
        }
        done(null, cell);
      })
      .catch((error) => {
        if (cell.stop.signal.aborted) return;
        notice("Outlines: " + error.message, 12);
        done(error, cell);
      });
    return cell;
  },
});

function showLegend() {
  byId("legend").replaceChildren(...((model && model.classes) || []).map(({ title, color, transparent }) => {
    const item = document.createElement("li");
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    swatch.setAttribute("aria-hidden", "true");
    const patch = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of [["width", "100%"], ["height", "100%"], ["fill", transparent ? "none" : color]]) patch.setAttribute(key, value);
    swatch.append(patch);
    const name = document.createElement("span");
    name.textContent = title + (transparent ? " (see-through)" : "");
    item.append(swatch, name);
    return item;
  }));
}

function zoomed() {
  if (!source) return;
  const zoom = maskZoom(), now = map.getZoom();
  const far = model && now < zoom - 1;
  byId("hint").hidden = !far;
  byId("hint").textContent = far ? "Zoom in to see masks: the model is asked at zoom " + zoom + "." : "";
  byId("features-note").textContent = byId("features").checked && now < zoom - 1 ? "from zoom " + (zoom - 1) : "";
}

/* --- versions and state --- */

function sawVersion(version) {
  byId("version").textContent = version;
  if (seen && seen !== version) {
    seen = version;
    notice("Version " + version + " of the model answers now; the masks are made again.", 8);
    showMasks();
  }
  seen = version;
}

function showState(about) {
  const state = byId("state");
  const text = about ? (about.state || (about.version ? "serving" : "not ready")) : "unknown";
  state.textContent = text + (about && about.wanted && about.version && about.wanted !== about.version ? ", " + about.wanted + " wanted" : "");
  state.className = text === "serving" ? "good" : text === "refused" ? "bad" : "warn";
  state.title = (about && about.reason) || "";
  if (about && about.reason && text === "refused") state.textContent += ": " + about.reason;
}

async function poll() {
  try {
    const answer = await fetch("models");
    if (!answer.ok) throw new Error(await reasonOf(answer));
    const found = (await answer.json()).models;
    const about = model && found.find(({ name }) => name === model.name);
    if (found.map(({ name }) => name).join() !== models.map(({ name }) => name).join()) { models = found; fillModels(); }
    models = found;
    if (about) {
      const fresh = about.uuid !== model.uuid;
      model = about;
      showState(about);
      if (about.version) sawVersion(about.version);
      if (fresh) { showLegend(); showMasks(); }
    }
  } catch (error) {
    byId("state").textContent = "the server cannot be reached";
    byId("state").className = "bad";
  }
  setTimeout(poll, document.hidden ? 6 * POLL : POLL);
}

/* --- controls --- */

function fill(select, entries, chosen) {
  select.replaceChildren(...entries.map(({ name }) => new Option(name, name, false, name === chosen)));
  select.disabled = entries.length < 2;
}
function fillModels() {
  model = models.find(({ name }) => model && name === model.name) || models[0] || null;
  fill(byId("model"), models, model && model.name);
  seen = "";
  byId("version").textContent = (model && model.version) || "none yet";
  showState(model);
  showLegend();
  showMasks();
}
byId("source").addEventListener("change", (event) => {
  source = sources.find(({ name }) => name === event.target.value);
  showImagery();
  fitImagery();
  showMasks();
});
byId("model").addEventListener("change", (event) => {
  model = models.find(({ name }) => name === event.target.value);
  fillModels();
});
byId("opacity").addEventListener("input", (event) => {
  event.target.setAttribute("aria-valuetext", event.target.value + " %");
  if (masks) masks.setOpacity(event.target.value / 100);
});
byId("features").addEventListener("change", () => { if (outlines) outlines.redraw(); zoomed(); });
map.on("zoomend", zoomed);
new ResizeObserver(() => map.invalidateSize()).observe(map.getContainer());

async function start() {
  if (innerWidth <= 600) document.querySelector("details").open = false;
  map.invalidateSize();
  const answers = await Promise.all([fetch("sources"), fetch("models")]);
  for (const answer of answers) if (!answer.ok) throw new Error(await reasonOf(answer));
  sources = (await answers[0].json()).sources;
  models = (await answers[1].json()).models;
  source = sources[0];
  fill(byId("source"), sources, source.name);
  model = models[0] || null;
  showImagery();
  map.keepFitted(fitImagery);
  fillModels();
  if (!model) notice("The servers say of no model yet; the imagery is shown.", 12);
  setTimeout(poll, POLL);
  document.body.dataset.ready = "yes";
}
start().catch((error) => notice("The map cannot begin: " + error.message));
})();
