/* Where the images of tiles come from: the page itself, files beside it, or an archive. */

const keyOf = (z, x, y) => z + "/" + x + "/" + y;
const overHttp = location.protocol === "http:" || location.protocol === "https:";
const MIME = { png: "image/png", jpg: "image/jpeg", webp: "image/webp" };
const MOST = 1500; // images of archives that are kept

class Source {
  constructor(layer) {
    this.layer = layer;
    this.known = layer.runs && new Set();
    for (const [z, x, first, count] of layer.runs || [])
      for (let y = first; y < first + count; y++) this.known.add(keyOf(z, x, y));
    this.blobs = new Map();
  }

  /* A URL for the image of a tile; null where there is none. */
  async url(z, x, y) {
    const key = keyOf(z, x, y), { layer } = this;
    if (layer.images) return layer.images[key] || null;
    if (!layer.base || (this.known && !this.known.has(key))) return null;
    if (!layer.archive) return `${layer.base}/${key}.${layer.ext}`;
    if (!overHttp && !this.file) return null;
    if (this.blobs.has(key)) return this.blobs.get(key);
    this.opened = this.opened || new pmtiles.PMTiles(this.file ? new pmtiles.FileSource(this.file) : new URL(layer.base, location.href).href);
    const found = await this.opened.getZxy(z, x, y);
    if (!found) return null;
    if (this.blobs.size > MOST) {
      const [oldest, url] = this.blobs.entries().next().value;
      URL.revokeObjectURL(url);
      this.blobs.delete(oldest);
    }
    const url = URL.createObjectURL(new Blob([found.data], { type: MIME[layer.ext] }));
    this.blobs.set(key, url);
    return url;
  }

  /* Whether the page was opened from the disk, where no script may read an archive that nobody chose. */
  get locked() {
    return Boolean(this.layer.archive && !this.layer.images && !overHttp && !this.file);
  }
}

/* A filter that makes one colour clear: pixels of it get no opacity. It reads no pixels, so it works from the disk. */
function clearing(id, color) {
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes, ...children) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const channels = ["R", "G", "B"].map((channel, index) => {
    const table = Array.from({ length: 256 }, (_, value) => (Math.abs(value - color[index]) <= 1 ? 0 : 1)).join(" ");
    return make("feFunc" + channel, { type: "discrete", tableValues: table });
  });
  const filter = make("filter", { id, "color-interpolation-filters": "sRGB", x: 0, y: 0, width: "100%", height: "100%" },
    make("feComponentTransfer", { in: "SourceGraphic", result: "apart" }, ...channels),
    make("feColorMatrix", { in: "apart", result: "seen", values: "0 0 0 0 0  0 0 0 0 0  0 0 0 0 0  1 1 1 0 0" }),
    make("feComposite", { in: "SourceGraphic", in2: "seen", operator: "in" }));
  const svg = make("svg", { width: 0, height: 0, "aria-hidden": "true", class: "filters" }, filter);
  document.body.append(svg);
  return `url(#${id})`;
}
