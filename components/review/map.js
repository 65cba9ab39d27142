/* The map: tile sets and shapes as layers, the suspect that is looked at, and the border to swipe. */

const COLORS = { missing: "#ff2d95", gone: "#22d3ee", differs: "#fbbf24", features: "#22d3ee" };
const zooms = page.layers.flatMap((layer) => layer.zooms);
const native = zooms.length ? Math.max(...zooms) : page.zoom;
const lowest = zooms.length ? Math.min(...zooms) : page.zoom;
const [west, south, east, north] = page.bounds;

const map = L.map("map", {
  attributionControl: false, zoomControl: false, zoomAnimation: false, fadeAnimation: false, markerZoomAnimation: false, inertia: false,
  boxZoom: false, wheelPxPerZoomLevel: 100, minZoom: Math.max(0, lowest - 8), maxZoom: native + 4,
});
L.control.zoom({ position: "bottomright" }).addTo(map);

/* --- tile sets --- */
const Tiles = L.GridLayer.extend({
  createTile(coords, done) {
    const cell = document.createElement("div");
    this.options.source.url(coords.z, coords.x, coords.y).then((url) => {
      if (!url) return done(null, cell);
      const image = document.createElement("img");
      image.alt = "";
      image.className = "tile";
      if (this.options.filter) image.style.filter = this.options.filter;
      image.onload = () => done(null, cell);
      image.onerror = () => { image.remove(); done(null, cell); };
      image.src = url;
      cell.append(image);
    }).catch((error) => done(error, cell));
    return cell;
  },
});

const sets = page.layers.map((layer, index) => {
  const pane = map.createPane("set-" + index);
  pane.style.zIndex = 200 + index;
  pane.classList.add(layer.kind);
  const filter = layer.clear ? clearing("clear-" + index, layer.clear) : "";
  const source = new Source(layer);
  const tiles = new Tiles({
    pane: "set-" + index, source, filter, minZoom: layer.zooms[0] - 3, maxZoom: native + 4,
    minNativeZoom: layer.zooms[0], maxNativeZoom: layer.zooms[1], updateWhenZooming: false, keepBuffer: 1,
    ...(east > 180 ? {} : { bounds: [[south, west], [north, east]] }),
  });
  return { ...layer, id: "set-" + index, index, pane, source, leaflet: tiles, shown: false };
});

/* --- shapes: drawn on canvases, found by the cells of one zoom that they touch --- */
class Index {
  constructor(shapes) {
    this.level = Math.max(0, native - 1);
    this.cells = new Map();
    this.items = [];
    shapes.forEach((shape, number) => {
      const box = [1, 1, 0, 0];
      const paths = rings(shape).flat().map((ring) => {
        const path = new Float64Array(ring.length * 2);
        ring.forEach(([lon, lat], at) => {
          const x = lon / UNIT / 360 + 0.5, y = 0.5 - Math.asinh(Math.tan((lat / UNIT) * Math.PI / 180)) / Math.PI / 2;
          path[2 * at] = x;
          path[2 * at + 1] = y;
          box[0] = Math.min(box[0], x); box[1] = Math.min(box[1], y); box[2] = Math.max(box[2], x); box[3] = Math.max(box[3], y);
        });
        return path;
      });
      this.items.push({ number, paths, box });
      const side = 2 ** this.level;
      for (let x = Math.floor(box[0] * side); x <= Math.floor(box[2] * side); x++)
        for (let y = Math.floor(box[1] * side); y <= Math.floor(box[3] * side); y++) {
          const key = x + "/" + y;
          if (!this.cells.has(key)) this.cells.set(key, []);
          this.cells.get(key).push(number);
        }
    });
  }

  /* The items of which a box may have a part, each once, in order. */
  among(left, top, right, bottom) {
    const side = 2 ** this.level, found = new Set();
    const [x0, y0, x1, y1] = [left, top, right, bottom].map((value) => Math.floor(value * side));
    if ((x1 - x0 + 1) * (y1 - y0 + 1) > this.cells.size) for (const cell of this.cells.values()) cell.forEach((number) => found.add(number));
    else for (let x = x0; x <= x1; x++) for (let y = y0; y <= y1; y++) (this.cells.get(x + "/" + y) || []).forEach((number) => found.add(number));
    return [...found].sort((a, b) => a - b).map((number) => this.items[number])
      .filter(({ box }) => box[0] <= right && box[2] >= left && box[1] <= bottom && box[3] >= top);
  }

  /* The number of the smallest item at a point; undefined where there is none. */
  at(x, y) {
    const inside = ({ paths }) => {
      let odd = false;
      for (const path of paths)
        for (let at = 0; at + 3 < path.length; at += 2) {
          const [ax, ay, bx, by] = path.subarray(at, at + 4);
          if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
        }
      return odd;
    };
    const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    return this.among(x, y, x, y).filter(inside).sort((a, b) => size(a) - size(b))[0]?.number;
  }
}

const Shapes = L.GridLayer.extend({
  createTile(coords) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 256 * (window.devicePixelRatio || 1);
    canvas.coords = coords;
    this.paint(canvas);
    return canvas;
  },
  paint(canvas) {
    const { x, y, z } = canvas.coords, pen = canvas.getContext("2d"), scale = canvas.width, side = 2 ** z;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, scale, scale);
    const reach = 4 / 256; // how far lines reach beyond what they outline
    const index = this.options.index();
    if (!index) return;
    for (const item of index.among((x - reach) / side, (y - reach) / side, (x + 1 + reach) / side, (y + 1 + reach) / side)) {
      const style = this.options.style(item.number);
      if (!style) continue;
      const small = (item.box[2] - item.box[0]) * side * 256;
      pen.beginPath();
      if (small < 4) {
        if (!style.dot) continue;
        pen.arc((((item.box[0] + item.box[2]) / 2) * side - x) * scale, (((item.box[1] + item.box[3]) / 2) * side - y) * scale, style.dot * scale / 256, 0, 7);
        pen.fillStyle = style.color;
        pen.fill();
        continue;
      }
      for (const path of item.paths) {
        pen.moveTo((path[0] * side - x) * scale, (path[1] * side - y) * scale);
        for (let at = 2; at < path.length; at += 2) pen.lineTo((path[at] * side - x) * scale, (path[at + 1] * side - y) * scale);
      }
      if (style.fill) { pen.globalAlpha = style.fill; pen.fillStyle = style.color; pen.fill("evenodd"); }
      pen.globalAlpha = style.alpha || 1;
      pen.setLineDash(style.dash ? [5, 4].map((length) => length * scale / 256) : []);
      pen.lineWidth = style.width * scale / 256;
      pen.strokeStyle = style.color;
      pen.stroke();
      pen.globalAlpha = 1;
    }
  },
  repaint() {
    for (const { el } of Object.values(this._tiles || {})) this.paint(el);
  },
});

let features = null;
const index = new Index(suspects.map((each) => each.shape));
const suspectStyle = (number) => {
  if (number === current) return null; // it has an outline of its own
  const suspect = suspects[number], color = COLORS[STATUS[suspect.status].group], decision = decisions.get(suspect.n);
  return decision ? { color, width: 1.5, dash: true, alpha: 0.8, dot: 2 } : { color, width: 2, fill: 0.16, dot: 3 };
};
function shapesLayer(id, zIndex, name, index, style, legend, shown) {
  const pane = map.createPane(id);
  pane.style.zIndex = zIndex;
  const leaflet = new Shapes({ pane: id, index, style, updateWhenZooming: false, keepBuffer: 1, maxZoom: native + 4 });
  return { id, name, kind: "shapes", pane, leaflet, legend, opacity: 1, shown: false, wanted: shown };
}
const mapped = shapesLayer("features", 350, "Map", () => features, () => ({ color: COLORS.features, width: 1.25 }), [[COLORS.features, "mapped"]], false);
const changed = shapesLayer("changes", 360, "Suspects", () => index, suspectStyle,
  [[COLORS.missing, "missing on the map"], [COLORS.gone, "gone"], [COLORS.differs, "differs"]], true);
const layers = [...sets, mapped, changed];

function show(layer, shown) {
  layer.shown = shown;
  if (shown && !map.hasLayer(layer.leaflet)) layer.leaflet.addTo(map);
  if (!shown) layer.leaflet.remove();
}
function setOpacity(layer, opacity) {
  layer.opacity = opacity;
  layer.pane.style.opacity = opacity;
}

/* --- the suspect that is looked at: as it is mapped, and as it is predicted, each with a dark line below --- */
const outline = L.layerGroup().addTo(map);
let box = null;
function look(suspect, move = true) {
  outline.clearLayers();
  if (!suspect) return;
  const parts = [];
  const draw = (shape, color, dashArray) => {
    const latlngs = degrees(shape).map((polygon) => polygon.map((ring) => ring.map(([lon, lat]) => [lat, lon])));
    for (const style of [{ color: "#000", opacity: 0.55, weight: 6 }, { color, weight: 3, dashArray }])
      parts.push(L.polygon(latlngs, { fill: false, interactive: false, lineJoin: "round", ...style }).addTo(outline));
  };
  if (suspect.status === GONE) draw(suspect.shape, COLORS.gone, "7 6");
  else {
    if (suspect.old) draw(suspect.old, COLORS.gone, "7 6");
    draw(suspect.shape, COLORS.missing);
  }
  box = L.latLngBounds(parts.map((part) => part.getBounds()).flatMap((each) => [each.getSouthWest(), each.getNorthEast()]));
  if (move) map.fitBounds(box.pad(0.9), { maxZoom: native + 2, animate: false });
}

let tileBox = null;
function goToTile(z, x, y) {
  const corner = (dx, dy) => map.unproject(L.point((x + dx) * 256, (y + dy) * 256), z);
  const bounds = L.latLngBounds(corner(0, 0), corner(1, 1));
  if (tileBox) tileBox.remove();
  tileBox = L.rectangle(bounds, { fill: false, interactive: false, color: "#fff", weight: 2, dashArray: "2 5" }).addTo(map);
  map.fitBounds(bounds.pad(0.15), { maxZoom: native + 2, animate: false });
}

const everything = [[south, west], [north, east]];

/* --- swiping: one set is cut off to the right of the border, the other to the left --- */
const swipe = { on: false, left: 0, right: 0, at: 0.5, before: [] };
function cut() {
  for (const set of sets) set.pane.style.clipPath = "";
  if (!swipe.on) return;
  const size = map.getSize(), from = map.containerPointToLayerPoint([0, 0]), to = map.containerPointToLayerPoint(size);
  const x = from.x + size.x * swipe.at;
  const area = (left, right) => `polygon(${left}px ${from.y}px, ${right}px ${from.y}px, ${right}px ${to.y}px, ${left}px ${to.y}px)`;
  if (swipe.left === swipe.right) return;
  sets[swipe.left].pane.style.clipPath = area(from.x, x);
  sets[swipe.right].pane.style.clipPath = area(x, to.x);
  // Masks and labels lie over imagery: over that of the other side where it is the only one.
  const lower = Math.min(swipe.left, swipe.right), upper = Math.max(swipe.left, swipe.right);
  if (sets[lower].kind === "image" && sets[upper].kind !== "image") sets[lower].pane.style.clipPath = "";
}
map.on("move zoomend resize", cut);
