/* What is reviewed, what was decided, and what comes out. Nothing here touches the map. */

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("data").textContent);
const suspects = page.suspects;
const UNIT = 1e7; // coordinates are whole numbers of 1e-7 degrees

const MISSING = "missing_on_map", GONE = "gone";
const STATUS = {
  missing_on_map: { title: "Missing on the map", group: "missing", text: "Predicted, and nothing like it is on the map.", accept: "add it", reject: "do not add it" },
  gone: { title: "Gone", group: "gone", text: "On the map, and nothing like it is predicted.", accept: "take it away", reject: "it is there" },
  moved: { title: "Moved", group: "differs", text: "Predicted in another place than it is mapped.", accept: "move it", reject: "leave it" },
  reshaped: { title: "Reshaped", group: "differs", text: "Predicted in another shape than it is mapped.", accept: "new shape", reject: "leave it" },
  merged: { title: "Merged", group: "differs", text: "Several on the map are one as predicted.", accept: "make it one", reject: "leave them" },
  split: { title: "Split", group: "differs", text: "One on the map is several as predicted.", accept: "split it", reject: "leave it" },
  matched: { title: "Matched", group: "differs", text: "Mapped and predicted agree, but less well than others do.", accept: "new shape", reject: "leave it" },
};
const DECISIONS = { accept: "Accepted", doubt: "In doubt", reject: "Rejected" };

/* --- decisions: by the number of the object, kept in this browser for exactly these changes --- */
const STORE = "rsp-review/" + page.digest;
let decisions = new Map();
let kept = true;

function valid(found) {
  const numbers = new Set(suspects.map((each) => String(each.n)));
  return new Map(Object.entries(found).filter(([number, decision]) => numbers.has(number) && decision in DECISIONS)
    .map(([number, decision]) => [Number(number), decision]));
}
/* Decisions on objects that this page does not show, which it was given and gives back. */
let others = {};

function take(found) {
  decisions = valid(found);
  others = Object.fromEntries(Object.entries(found).filter(([number]) => !decisions.has(Number(number))));
}

function restore() {
  let found = null;
  try {
    found = JSON.parse(localStorage.getItem(STORE));
  } catch {
    kept = false; // a page in a sandbox has no storage
  }
  take(found && typeof found === "object" ? found : page.decisions);
}

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(all()));
  } catch {
    kept = false;
  }
}

const all = () => ({ ...others, ...Object.fromEntries([...decisions].sort((a, b) => a[0] - b[0])) });

function decide(suspect, decision) {
  if (decision) decisions.set(suspect.n, decision); else decisions.delete(suspect.n);
  keep();
}

/* --- shapes: steps in whole numbers become points --- */
function rings(shape) {
  return shape.map((polygon) => polygon.map((steps) => {
    const points = [];
    for (let at = 0, x = 0, y = 0; at < steps.length; at += 2) points.push([x += steps[at], y += steps[at + 1]]);
    points.push(points[0]);
    return points;
  }));
}
const degrees = (shape) => rings(shape).map((polygon) => polygon.map((ring) => ring.map(([x, y]) => [x / UNIT, y / UNIT])));

/* --- what comes out --- */
const stays = (suspect) => suspect.cut && suspect.status !== GONE && suspect.status !== MISSING;

/* Decisions, as `rsp review --decisions` reads them. */
const decisionsText = () => JSON.stringify({ version: 1, changes: page.digest, decisions: all() }, null, 1) + "\n";

/* The accepted objects that are real; as `rsp review --accepted` writes them. */
function acceptedText() {
  const lines = [];
  for (const each of suspects) {
    if (decisions.get(each.n) !== "accept" || each.status === GONE || stays(each)) continue;
    const polygons = degrees(each.shape);
    const parts = each.status === "split" ? polygons.map((polygon) => [polygon]) : [polygons];
    for (const part of parts) {
      const geometry = part.length === 1 ? { type: "Polygon", coordinates: part[0] } : { type: "MultiPolygon", coordinates: part };
      lines.push(`{"type":"Feature","properties":${each.properties},"geometry":${JSON.stringify(geometry)}}`);
    }
  }
  return '{"type":"FeatureCollection","features":[\n' + lines.join(",\n") + "\n]}\n";
}

/* The tiles of what is in doubt, as a cover; as `rsp review --doubtful` writes it. */
function doubtfulText() {
  const tiles = new Map();
  for (const each of suspects) {
    const decision = decisions.get(each.n);
    if (decision !== "doubt" && !(decision === "accept" && stays(each))) continue;
    const [left, top, right, bottom] = each.tiles;
    for (let x = left; x <= right; x++) for (let y = top; y <= bottom; y++) tiles.set(x + "," + y, [x, y]);
  }
  return [...tiles.values()].sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([x, y]) => `${x},${y},${page.zoom}\n`).join("");
}

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/* An element with properties and children, which are text unless they are elements: never markup. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
