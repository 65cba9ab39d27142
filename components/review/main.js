/* What people press, and how the page begins. */

/* --- layers --- */
function layerRow(layer) {
  const box = element("input", { type: "checkbox", checked: layer.shown, id: "show-" + layer.id });
  const range = element("input", { type: "range", min: "0", max: "100", value: String(layer.opacity * 100), "aria-label": `Opacity of ${layer.name}` });
  box.addEventListener("change", () => show(layer, box.checked));
  range.addEventListener("input", () => setOpacity(layer, range.value / 100));
  const legend = (layer.legend || []).map(([color, title]) => {
    const swatch = element("i");
    swatch.style.background = color;
    return element("span", {}, swatch, title);
  });
  layer.box = box;
  return element("div", { className: "layer" },
    element("div", { className: "line" }, element("label", { className: "line" }, box, element("span", {}, layer.name)), range),
    ...(legend.length ? [element("p", { className: "legend" }, ...legend)] : []));
}

function setSwipe(on) {
  if (sets.length < 2) return;
  if (on && !swipe.on) swipe.before = sets.map((set) => set.shown);
  swipe.on = on;
  byId("swipe-on").checked = on;
  byId("swipe").hidden = !on;
  swipe.left = Number(byId("left").value);
  swipe.right = Number(byId("right").value);
  sets.forEach((set, number) => {
    const wanted = on ? [swipe.left, swipe.right].includes(number) || (number === 0 && set.kind === "image" && set.shown) : swipe.before[number] ?? set.shown;
    show(set, wanted);
    set.box.checked = wanted;
  });
  byId("swipe-left").textContent = sets[swipe.left].name;
  byId("swipe-right").textContent = sets[swipe.right].name;
  placeSwipe(swipe.at);
}
function placeSwipe(at) {
  swipe.at = Math.min(Math.max(at, 0), 1);
  byId("swipe").style.left = swipe.at * 100 + "%";
  byId("swipe").setAttribute("aria-valuenow", String(Math.round(swipe.at * 100)));
  cut();
}

let veiled = null;
function veil() {
  if (veiled) { veiled.forEach((layer) => { show(layer, true); layer.box.checked = true; }); map.getPane("overlayPane").hidden = false; veiled = null; return; }
  veiled = layers.filter((layer) => layer.shown && layer.kind !== "image");
  veiled.forEach((layer) => { show(layer, false); layer.box.checked = false; });
  map.getPane("overlayPane").hidden = true;
}

/* --- going somewhere --- */
function search(text) {
  const tile = text.trim().match(/^(\d{1,2})\s*\/\s*(\d{1,10})\s*\/\s*(\d{1,10})$/), place = text.trim().match(/^#?\s*(\d{1,9})$/);
  if (tile) {
    const [z, x, y] = tile.slice(1).map(Number);
    if (z > 30 || x >= 2 ** z || y >= 2 ** z) return `There is no tile ${z}/${x}/${y}.`;
    goToTile(z, x, y);
    return "";
  }
  if (!place) return "Give a place in the list, as 12, or a tile, as 18/135560/91230.";
  const number = Number(place[1]);
  if (number < 1 || number > suspects.length) return `The list goes from 1 to ${suspects.length}.`;
  if (!shownPlaces.includes(number - 1)) { byId("filter").value = "all"; filter(); }
  goTo(number - 1);
  return "";
}
byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const wrong = search(byId("query").value);
  byId("query").setAttribute("aria-invalid", String(Boolean(wrong)));
  if (wrong) notice(wrong); else byId("query").blur();
});
byId("query").addEventListener("keydown", (event) => { if (event.key === "Escape") byId("query").blur(); });

let whole = false;
function toggleWhole() {
  whole = !whole;
  if (whole) map.fitBounds(everything, { animate: false }); else look(suspects[current]);
}
byId("whole").addEventListener("click", () => { whole = true; map.fitBounds(everything, { animate: false }); });
byId("back").addEventListener("click", () => { whole = false; look(suspects[current]); });
map.on("click", ({ latlng }) => {
  const { x, y } = map.project(latlng, 0).divideBy(256), number = changed.shown ? index.at(x, y) : undefined;
  if (number !== undefined) goTo(number, false);
});

/* --- the list and the card --- */
byId("before").addEventListener("click", () => turn(-1));
byId("after").addEventListener("click", () => turn(1));
for (const name of Object.keys(DECISIONS)) byId(name).addEventListener("click", () => choose(name));
byId("clear").addEventListener("click", () => undo());
/* The decision on what is looked at, else the last one that was made. */
function undo() {
  if (suspects[current] && !decisions.has(suspects[current].n)) {
    while (made.length && !decisions.has(suspects[made.at(-1)].n)) made.pop();
    if (!made.length) return;
    goTo(made.pop());
  }
  const suspect = suspects[current];
  if (suspect) choose(decisions.get(suspect.n));
}
list.addEventListener("scroll", drawRows, { passive: true });
rows.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row) goTo(Number(row.dataset.place));
});
byId("filter").addEventListener("change", () => { filter(); list.scrollTop = 0; reveal(); drawRows(); });
list.addEventListener("keydown", (event) => {
  const act = { ArrowDown: () => turn(1), ArrowUp: () => turn(-1), Home: () => goTo(shownPlaces[0]), End: () => goTo(shownPlaces.at(-1)) }[event.key];
  if (act) { event.preventDefault(); act(); }
});

/* --- the border between two sets --- */
const border = byId("swipe");
border.addEventListener("pointerdown", (event) => { border.setPointerCapture(event.pointerId); event.preventDefault(); border.focus(); });
border.addEventListener("pointermove", (event) => {
  if (!border.hasPointerCapture(event.pointerId)) return;
  const area = byId("stage").getBoundingClientRect();
  placeSwipe((event.clientX - area.left) / area.width);
});
border.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -0.05, ArrowRight: 0.05, Home: -1, End: 1 }[event.key];
  if (step) { event.preventDefault(); event.stopPropagation(); placeSwipe(swipe.at + step); }
});
byId("swipe-on").addEventListener("change", (event) => setSwipe(event.target.checked));
for (const name of ["left", "right"]) byId(name).addEventListener("change", () => setSwipe(byId("swipe-on").checked));

/* --- keys --- */
const KEYS = {
  j: () => turn(1), k: () => turn(-1), n: () => turn(1), p: () => turn(-1),
  a: () => choose("accept"), d: () => choose("doubt"), r: () => choose("reject"), u: undo,
  o: veil, s: () => setSwipe(!swipe.on), w: toggleWhole,
  "/": () => byId("query").focus(), "?": () => byId("keys").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  if (event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea")) return;
  const act = KEYS[event.key.toLowerCase()];
  if (act) { event.preventDefault(); act(); }
});
byId("help").addEventListener("click", () => byId("keys").showModal());

/* --- saving, and going on with what was saved --- */
const saved = (name, text, type) => { save(name, text, type); byId("save").open = false; notice(`${name} is saved.`); };
byId("save-decisions").addEventListener("click", () => saved("decisions.json", decisionsText(), "application/json"));
byId("save-accepted").addEventListener("click", () => saved("accepted.geojson", acceptedText(), "application/geo+json"));
byId("save-doubtful").addEventListener("click", () => saved("doubtful.csv", doubtfulText(), "text/csv"));
byId("load").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  let found = null;
  try { found = JSON.parse(await file.text()); } catch { /* said below */ }
  event.target.value = "";
  if (!found || typeof found.decisions !== "object" || !found.decisions) return notice(`${file.name} holds no decisions.`);
  if (found.changes !== page.digest) return notice(`${file.name} was made on other changes than these.`);
  take(found.decisions);
  keep();
  filter();
  changed.leaflet.repaint();
  drawProgress();
  drawCard();
  drawRows();
  byId("save").open = false;
  notice(`${file.name} is loaded.`);
});
document.addEventListener("pointerdown", (event) => { if (!event.target.closest("#save")) byId("save").open = false; });

/* --- archives beside a page from the disk have to be chosen --- */
for (const set of sets.filter((set) => set.source.locked)) {
  const input = element("input", { type: "file", accept: ".pmtiles", "aria-label": `Archive of ${set.name}` });
  input.addEventListener("change", () => { [set.source.file] = input.files; set.leaflet.redraw(); set.chooser.remove(); });
  const name = decodeURIComponent(set.base.split("/").at(-1));
  set.chooser = element("p", { className: "chooser" }, `A page from the disk may not read ${name}. Choose it, or look at the page through \u201crsp serve\u201d. `, input);
}

/* --- the beginning: the first suspect comes first --- */
restore();
byId("about").textContent = `${suspects.length.toLocaleString("en")} suspects of ${page.objects.toLocaleString("en")} objects`;
byId("filter").replaceChildren(...FILTERS.map(([key, title]) => element("option", { value: key }, title)));
byId("credits").innerHTML = page.attribution;  // of rsp.shared.attribution: text and links, nothing else
byId("command").textContent = `rsp review --changes ${page.changes} --mapped MAP \\\n  --decisions decisions.json --corrected corrected.geojson \\\n  --doubtful doubtful.csv --zoom ${page.zoom}`;
byId("layers").open = window.innerWidth > 720;
map.setView([(south + north) / 2, (west + east) / 2], lowest);
const firstImage = sets.findIndex((set) => set.kind === "image");
sets.forEach((set, number) => {
  setOpacity(set, set.opacity);
  if (number === firstImage || (set.kind === "mask")) show(set, true);
});
show(changed, true);
byId("layer-rows").replaceChildren(...[...layers].reverse().filter((layer) => layer !== mapped).map((layer) => {
  const row = layerRow(layer);
  if (layer.chooser) row.append(layer.chooser);
  return row;
}));
for (const name of ["left", "right"]) byId(name).replaceChildren(...sets.map((set, number) => element("option", { value: String(number) }, set.name)));
if (sets.length > 1) {
  byId("right").value = String(Math.max(1, sets.findIndex((set, number) => number > 0 && (set.kind === "image" || set.kind === "mask"))));
  byId("swipe-row").hidden = false;
}
current = Math.max(0, suspects.findIndex((each) => !decisions.has(each.n)));
map.keepFitted(() => { if (suspects.length) goTo(current); else map.fitBounds(everything, { animate: false }); });
drawProgress();
drawCard();
drawRows();
if (!kept) notice("This browser keeps no decisions for this page: save them before you leave.");
new ResizeObserver(() => { map.invalidateSize({ animate: false }); drawRows(); }).observe(byId("stage"));
document.body.dataset.ready = "yes";

/* The features of the map stand behind this script, so that the first suspect need not wait for them. */
document.addEventListener("DOMContentLoaded", () => setTimeout(() => {
  const found = JSON.parse(byId("features").textContent);
  if (found.length) {
    features = new Index(found);
    byId("layer-rows").children[0].after(layerRow(mapped));
  }
  document.body.dataset.whole = "yes";
}));
