/* The list of suspects, of which only the rows in sight are in the page, and the card of the one that is looked at. */

const ROW = 46; // pixels, as review.css has it
const list = byId("list"), rows = byId("rows");
let current = 0; // place among the suspects
const made = []; // places that were decided on here, the last one last
let shownPlaces = suspects.map((_, place) => place); // those that pass the filter

const percent = (value) => Math.round(value * 100) + " %";
const MEASURES = [
  ["iou", "IoU", (value) => value.toFixed(2), "Overlap of what is mapped and what is predicted, 0 to 1"],
  ["offset_m", "Offset", (value) => value.toFixed(1) + " m", "Distance between the middles of both"],
  ["area_m2", "Area", (value) => Math.round(value).toLocaleString("en") + " m\u00b2", "On the ground"],
  ["support", "Support", percent, "The share of what is mapped that is predicted, or how probable it is there"],
  ["evidence", "Evidence", percent, "What is left of what is predicted without a metre of its outline, times its probability"],
];

const FILTERS = [
  ["all", "All", () => true],
  ["open", "Undecided", (each) => !decisions.has(each.n)],
  ...Object.entries(DECISIONS).map(([key, title]) => [key, title, (each) => decisions.get(each.n) === key]),
  ...Object.entries(STATUS).map(([key, { title }]) => [key, title, (each) => each.status === key])
    .filter(([key]) => suspects.some((each) => each.status === key)),
];

function drawRows() {
  rows.style.height = shownPlaces.length * ROW + "px";
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(shownPlaces.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const made = [];
  for (let at = first; at < last; at++) {
    const place = shownPlaces[at], suspect = suspects[place], decision = decisions.get(suspect.n);
    const status = STATUS[suspect.status];
    const row = element("div", { id: "row-" + place, className: "row", role: "option", "aria-selected": String(place === current), "aria-setsize": String(shownPlaces.length), "aria-posinset": String(at + 1) },
      element("span", { className: "place number" }, String(place + 1)),
      element("i", { className: "dot " + status.group }),
      element("span", { className: "what" }, status.title, ...(suspect.class ? [element("small", {}, suspect.class)] : [])),
      element("span", { className: "mark " + (decision || "") }, decision ? DECISIONS[decision] : ""),
      element("span", { className: "score number" }, suspect.score.toFixed(2)));
    row.style.top = at * ROW + "px";
    row.dataset.place = place;
    made.push(row);
  }
  rows.replaceChildren(...made);
  if (byId("row-" + current)) list.setAttribute("aria-activedescendant", "row-" + current);
  else list.removeAttribute("aria-activedescendant");
}

function filter() {
  const passes = FILTERS.find(([key]) => key === byId("filter").value)[2];
  shownPlaces = suspects.map((_, place) => place).filter((place) => passes(suspects[place]));
}

function reveal() {
  const at = shownPlaces.indexOf(current);
  if (at < 0) return;
  const top = at * ROW, around = Math.min(2, Math.floor(list.clientHeight / ROW / 3)) * ROW; // rows to see beyond it
  if (top - around < list.scrollTop) list.scrollTop = top - around;
  else if (top + ROW + around > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW + around - list.clientHeight;
}

function drawCard() {
  const suspect = suspects[current];
  if (!suspect) {
    byId("card-title").textContent = "No suspects";
    byId("card-text").textContent = "The map and the prediction agree in all objects that were to be reviewed.";
    for (const name of ["accept", "doubt", "reject", "before", "after", "back"]) byId(name).disabled = true;
    return;
  }
  const status = STATUS[suspect.status], decision = decisions.get(suspect.n);
  byId("card-dot").className = "dot " + status.group;
  byId("card-kind").textContent = status.title + (suspect.class ? ", " + suspect.class : "");
  byId("card-title").textContent = `${(current + 1).toLocaleString("en")} of ${suspects.length.toLocaleString("en")}`;
  byId("card-text").textContent = status.text + (suspect.cut ? " The border of the area cuts it." : "");
  const measures = [["Score", suspect.score.toFixed(2), "How suspicious it is, 0 to 1"],
    ...MEASURES.filter(([key]) => key in suspect).map(([key, title, format, text]) => [title, format(suspect[key]), text])];
  byId("measures").replaceChildren(...measures.map(([title, value, text]) =>
    element("div", { title: text }, element("dt", {}, title), element("dd", { className: "number" }, value))));
  for (const name of Object.keys(DECISIONS)) byId(name).setAttribute("aria-pressed", String(decision === name));
  byId("accept").querySelector("span").textContent = status.accept;
  byId("reject").querySelector("span").textContent = status.reject;
  byId("clear").hidden = !decision;
}

function drawProgress() {
  const done = suspects.filter((each) => decisions.has(each.n)).length;
  byId("progress").max = Math.max(1, suspects.length);
  byId("progress").value = done;
  byId("decided").textContent = `${done.toLocaleString("en")} of ${suspects.length.toLocaleString("en")} decided`;
}

/* Look at a suspect, by its place. */
function goTo(place, move = true) {
  if (!suspects[place]) return;
  current = place;
  drawCard();
  reveal();
  drawRows();
  look(suspects[place], move);
  changed.leaflet.repaint();
}

/* The next place that the list shows, in a direction; null at the end. */
function nextPlace(step, open = false) {
  const places = step > 0 ? shownPlaces : [...shownPlaces].reverse();
  const found = places.find((place) => (place - current) * step > 0 && !(open && decisions.has(suspects[place].n)));
  return found === undefined ? null : found;
}
function turn(step) {
  const place = nextPlace(step);
  if (place !== null) goTo(place);
  else notice(step > 0 ? "That was the last one." : "That is the first one.");
}

/* Decide on the suspect that is looked at, and go on to the next that is open; deciding the same again undoes it. */
function choose(decision) {
  const suspect = suspects[current];
  if (!suspect) return;
  const now = decision === decisions.get(suspect.n) ? null : decision;
  const next = now && nextPlace(1, true);
  decide(suspect, now);
  if (now) made.push(current);
  filter();
  changed.leaflet.repaint();
  drawProgress();
  if (now && next !== null) goTo(next);
  else {
    drawCard();
    drawRows();
    if (now) notice(suspects.every((each) => decisions.has(each.n)) ? "All are decided. Save what you decided." : "No open one below this.");
  }
}

let quiet = 0;
function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = false;
  clearTimeout(quiet);
  quiet = setTimeout(() => { byId("notice").hidden = true; }, 4000);
}
