/* Keep a map fitted to what it shows: a page in a frame, or behind another, may get its size after its script has run.

   fit    fits the map; called now, and whenever the size changes until somebody presses a key, points or scrolls */
L.Map.include({
  keepFitted(fit) {
    let untouched = true;
    for (const kind of ["pointerdown", "wheel", "keydown"])
      window.addEventListener(kind, () => { untouched = false; }, { capture: true, passive: true, once: true });
    this.on("resize", () => { if (untouched) fit(); });
    fit();
  },
});
