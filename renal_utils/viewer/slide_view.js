// One slide on a canvas. Tiles are asked of the kernel by messages and painted when they come;
// until then the coarser ones that are there already stand in for them.
// Frames: "l0" are pixels of the slide at full resolution, "px" are those of the canvas.

const KEPT_TILES = 400; // about 100 MB in the browser
const ENLARGE = 8; // screen pixels a level-0 pixel, at most
const ASK_MS = 60, TELL_MS = 200;

function add(parent, tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

function addCheck(parent, className, text, checked, onChange, swatch) {
  const label = add(parent, "label", className);
  const box = add(label, "input");
  box.type = "checkbox";
  box.checked = checked;
  box.addEventListener("change", () => onChange(box.checked));
  if (swatch) add(label, "span", "swatch").style.background = swatch;
  add(label, "span", "", text);
  return label;
}

function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

class SlideView {
  constructor(model, el) {
    Object.assign(this, { model, setup: model.get("setup"), id: crypto.randomUUID?.() ?? String(Math.random()) });
    [this.width, this.height] = this.setup.size_l0;
    this.layers = Object.fromEntries(this.setup.layers.map((layer) => [layer.name, layer]));
    this.tiles = new Map();
    this.asked = new Set();
    this.frame = this.paints = 0;
    this.notes = new Map();
    this.build(el);
    this.listen();
  }

  // ---- the page ----
  build(el) {
    this.root = add(el, "div", "renal-view");
    this.root.dataset.lmSuppressShortcuts = "true"; // keys are for the view, not for the notebook
    this.canvas = add(this.root, "canvas");
    this.canvas.style.height = `${this.setup.height_px}px`;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("aria-label", `Slide ${this.setup.title}; drag to move, wheel to zoom`);
    this.context = this.canvas.getContext("2d");
    this.veil = document.createElement("canvas").getContext("2d");
    const buttons = add(this.root, "div", "buttons");
    for (const [text, title, act] of [
      ["+", "Zoom in (+)", () => this.zoom(0.5)],
      ["−", "Zoom out (-)", () => this.zoom(2)],
      ["Fit", "Show the whole slide (0)", () => this.fit()],
    ]) {
      const button = add(buttons, "button", "", text);
      button.title = title;
      button.addEventListener("click", act);
    }
    if (this.setup.layers.length) this.buildPanel(add(this.root, "div", "panel"));
    const status = add(this.root, "div", "status");
    for (const name of ["where", "zoomed", "note", "title"]) this[name] = add(status, "span", name);
    this.title.textContent = this.setup.title;
  }

  buildPanel(panel) {
    panel.replaceChildren();
    const get = (name) => this.model.get(name);
    const toggle = (name, value, on) =>
      this.set(name, on ? [...get(name), value] : get(name).filter((one) => one !== value));
    for (const { name, classes, table } of this.setup.layers) {
      const title = name === "labels" ? "Classes" : "Probability";
      addCheck(panel, "heading", title, get("shown").includes(name), (on) => toggle("shown", name, on));
      const colour = (id) => `rgb(${table.slice(4 * id, 4 * id + 3)})`;
      for (const { id, title } of classes) {
        if (id === 255 && !this.unlabelled) continue;
        addCheck(panel, "class", title, !get("hidden").includes(id), (on) => toggle("hidden", id, !on), colour(id));
      }
      if (classes.length) continue;
      const scale = add(panel, "div", "scale");
      const stops = [0, 64, 128, 192, 255].map(colour);
      add(scale, "i").style.background = `linear-gradient(90deg, ${stops})`;
      for (const end of ["0", "1"]) add(scale.querySelector("span") ?? add(scale, "span"), "b", "", end);
    }
    const options = add(panel, "div", "options");
    if (this.layers.labels)
      addCheck(options, "outline", "Borders only", get("outline"), (on) => this.set("outline", on));
    const label = add(options, "label", "", "Opacity");
    const slider = add(label, "input");
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.05, value: get("opacity") });
    slider.addEventListener("input", () => this.set("opacity", Number(slider.value)));
    this.panel = panel;
  }

  set(name, value) {
    this.choosing = true; // the panel shows it already
    this.model.set(name, value);
    this.choosing = false;
    this.model.save_changes();
  }

  // ---- what is done to it ----
  listen() {
    const canvas = this.canvas;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
      canvas.classList.add("moving");
    });
    canvas.addEventListener("pointermove", (event) => {
      if (from) {
        this.move((from[0] - event.clientX) * this.scale, (from[1] - event.clientY) * this.scale);
        from = [event.clientX, event.clientY];
      }
      this.showPlace(event);
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, () => { from = null; canvas.classList.remove("moving"); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 30 : 1;
      this.zoom(2 ** (Math.max(-200, Math.min(200, event.deltaY * lines)) / 200), event);
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(0.5, event));
    canvas.addEventListener("keydown", (event) => {
      const step = 80 * this.scale;
      const acts = {
        ArrowLeft: () => this.move(-step, 0), ArrowRight: () => this.move(step, 0),
        ArrowUp: () => this.move(0, -step), ArrowDown: () => this.move(0, step),
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), 0: () => this.fit(),
      };
      if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
    });
    this.listeners = [["msg:custom", (message, buffers) => this.receive(message, buffers)]];
    for (const name of ["centre_l0", "downsample"]) this.listeners.push([`change:${name}`, () => this.follow()]);
    for (const name of ["shown", "hidden", "opacity", "outline"])
      this.listeners.push([`change:${name}`, () => this.look()]);
    for (const [name, heard] of this.listeners) this.model.on(name, heard);
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(canvas);
  }

  close() {
    this.sizes.disconnect();
    cancelAnimationFrame(this.drawing);
    clearTimeout(this.asking);
    clearTimeout(this.telling);
    for (const [name, heard] of this.listeners) this.model.off(name, heard);
    for (const tile of this.tiles.values()) tile.image?.close?.();
    this.scale = 0; // nothing is painted any more
    this.model.send({ kind: "want", view: this.id, tiles: [] });
  }

  look() { // what is shown, and how, has changed
    this.paints++;
    if (this.panel && !this.choosing) this.buildPanel(this.panel);
    this.redraw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    this.ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.veil.canvas]) {
      canvas.width = Math.round(clientWidth * this.ratio);
      canvas.height = Math.round(clientHeight * this.ratio);
    }
    if (this.fitted) this.fit();
    else if (this.scale) this.redraw();
    else this.follow();
  }

  get fitScale() {
    return 1.04 * Math.max(this.width / this.canvas.clientWidth, this.height / this.canvas.clientHeight);
  }

  fit() {
    this.fitted = true;
    this.centre = [this.width / 2, this.height / 2];
    this.scale = this.fitScale;
    this.moved();
  }

  follow() { // what Python says, unless it only repeats what it was told
    if (!this.canvas.clientWidth || this.speaking) return;
    const said = [...this.model.get("centre_l0"), this.model.get("downsample")];
    if (said.length < 3 || !said[2]) return this.fit();
    if (String(said) === this.told) return;
    this.fitted = false;
    this.centre = said.slice(0, 2);
    this.scale = said[2];
    this.move(0, 0);
  }

  move(dx, dy) {
    this.fitted &&= !dx && !dy;
    this.centre[0] = Math.min(this.width, Math.max(0, this.centre[0] + dx));
    this.centre[1] = Math.min(this.height, Math.max(0, this.centre[1] + dy));
    this.moved();
  }

  zoom(factor, event) { // the pixel under the pointer stays where it is
    const before = this.scale;
    this.scale = Math.min(2 * this.fitScale, Math.max(1 / ENLARGE, before * factor));
    const box = this.canvas.getBoundingClientRect();
    const at = event ? [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2] : [0, 0];
    this.fitted = false;
    this.move(at[0] * (before - this.scale), at[1] * (before - this.scale));
    if (event) this.showPlace(event);
  }

  moved() {
    this.redraw();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => {
      this.told = String([...this.centre, this.scale]);
      this.speaking = true;
      this.model.set("centre_l0", [...this.centre]);
      this.model.set("downsample", this.scale);
      this.speaking = false;
      this.model.save_changes();
    }, TELL_MS);
  }

  // ---- tiles ----
  async receive(message, buffers) {
    if (message.kind !== "tile") return;
    const key = message.tile.join("/"), [name] = message.tile;
    const tile = { size: message.size, error: message.error };
    try {
      if (!tile.error && name === "slide") tile.image = await createImageBitmap(new Blob([buffers[0]], { type: "image/jpeg" }));
      else if (!tile.error) tile.ids = new Uint8Array(await inflate(buffers[0]));
    } catch (error) {
      tile.error = String(error);
    }
    if (tile.ids && name === "labels" && !this.unlabelled && tile.ids.includes(255)) {
      this.unlabelled = true;
      this.buildPanel(this.panel);
    }
    if (tile.error) this.notes.set("error", `not shown: ${tile.error}`);
    if (message.damaged) this.notes.set("damaged", `${message.damaged} damaged tile(s) of the file are grey`);
    this.note.textContent = this.note.title = [...this.notes.values()].join("; ");
    this.asked.delete(key);
    this.tiles.get(key)?.image?.close?.();
    this.tiles.set(key, { ...tile, frame: this.frame });
    this.redraw();
  }

  ask() {
    clearTimeout(this.asking);
    const missing = this.missing;
    this.root.dataset.waiting = missing.size;
    if ([...missing].every((key) => this.asked.has(key))) return;
    this.asking = setTimeout(() => {
      this.asked = new Set(missing);
      const tiles = [...missing].map((key) => key.split("/").map((part, i) => (i ? Number(part) : part)));
      this.model.send({ kind: "want", view: this.id, tiles });
    }, ASK_MS);
  }

  forget() {
    for (const [key, tile] of this.tiles) {
      if (this.tiles.size <= KEPT_TILES || tile.frame === this.frame) return;
      tile.image?.close?.();
      this.tiles.delete(key);
    }
  }

  // ---- painting ----
  redraw() {
    if (this.drawing || !this.scale || !this.canvas.width) return;
    this.drawing = requestAnimationFrame(() => { this.drawing = 0; this.draw(); });
  }

  draw() {
    const { context, canvas, veil } = this;
    this.frame++;
    this.missing = new Set();
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#fff";
    context.fillRect(...this.rect(0, 0, this.width, this.height));
    this.drawLayer(context, "slide");
    for (const { name } of this.setup.layers) {
      if (!this.model.get("shown").includes(name)) continue;
      veil.clearRect(0, 0, canvas.width, canvas.height);
      this.drawLayer(veil, name);
      context.globalAlpha = this.model.get("opacity");
      context.drawImage(veil.canvas, 0, 0);
      context.globalAlpha = 1;
    }
    this.drawScaleBar();
    this.drawMap();
    this.forget();
    this.ask();
    const { mpp } = this.setup;
    this.zoomed.textContent = mpp ? `${(this.scale * mpp).toPrecision(3)} µm a pixel` : `1 : ${this.scale.toPrecision(3)}`;
  }

  rect(left, top, right, bottom) { // whole pixels, so that neighbours leave no seam
    const x = (l0) => Math.round(((l0 - this.centre[0]) / this.scale) * this.ratio + this.canvas.width / 2);
    const y = (l0) => Math.round(((l0 - this.centre[1]) / this.scale) * this.ratio + this.canvas.height / 2);
    return [x(left), y(top), x(right) - x(left), y(bottom) - y(top)];
  }

  drawLayer(context, name) {
    const last = this.setup.num_levels - 1;
    const exact = Math.log2(this.scale / this.ratio);
    const level = Math.min(last, Math.max(0, Math.round(exact)));
    context.imageSmoothingEnabled = name === "slide" && exact > -1;
    for (let z = last; z >= level; z--) {
      const span = this.setup.tile_px * 2 ** z;
      const half = [this.canvas.width, this.canvas.height].map((px) => (px / 2 / this.ratio) * this.scale);
      const end = [this.width, this.height].map((l0, i) => Math.min(l0, this.centre[i] + half[i]));
      const start = half.map((one, i) => Math.max(0, Math.floor((this.centre[i] - one) / span)));
      const found = [];
      for (let row = start[1]; row * span < end[1]; row++)
        for (let column = start[0]; column * span < end[0]; column++) {
          const away = Math.hypot((column + 0.5) * span - this.centre[0], (row + 0.5) * span - this.centre[1]);
          if (!this.drawTile(context, name, [z, column, row])) found.push([away, [name, z, column, row].join("/")]);
        }
      if (z === level || z === last) // in between, only what is there already
        for (const [, key] of found.sort((a, b) => a[0] - b[0])) this.missing.add(key);
    }
  }

  drawTile(context, name, [z, column, row]) {
    const key = [name, z, column, row].join("/"), tile = this.tiles.get(key);
    if (!tile) return false;
    this.tiles.delete(key); // to the end: the last ones used are kept
    this.tiles.set(key, Object.assign(tile, { frame: this.frame }));
    const span = this.setup.tile_px * 2 ** z, [left, top] = [column * span, row * span];
    const [width, height] = tile.size.map((px) => px * 2 ** z);
    const place = this.rect(left, top, Math.min(this.width, left + width), Math.min(this.height, top + height));
    context.clearRect(...place);
    if (tile.error) {
      context.fillStyle = "#aaa";
      context.fillRect(...place);
    } else context.drawImage(tile.image ?? this.paint(tile, this.layers[name]), ...place);
    return true;
  }

  paint(tile, layer) { // bytes to colours, once for each change of what is shown
    if (tile.painted === this.paints) return tile.canvas;
    const [width, height] = tile.size, { ids } = tile;
    const table = new Uint32Array(new Uint8ClampedArray(layer.table).buffer);
    if (layer.name === "labels") for (const id of this.model.get("hidden")) table[id] = 0;
    const outline = layer.name === "labels" && this.model.get("outline");
    const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
    const differs = (i, inside, step) => inside && ids[i + step] !== ids[i];
    for (let i = 0, y = 0; y < height; y++)
      for (let x = 0; x < width; x++, i++)
        if (!outline || [1, 2].some((n) => differs(i, x >= n, -n) || differs(i, x + n < width, n)
          || differs(i, y >= n, -n * width) || differs(i, y + n < height, n * width))) pixels[i] = table[ids[i]];
    tile.canvas ??= new OffscreenCanvas(width, height);
    tile.canvas.getContext("2d").putImageData(image, 0, 0);
    tile.painted = this.paints;
    return tile.canvas;
  }

  drawScaleBar() {
    const { context, ratio } = this, { mpp } = this.setup;
    const unit = this.scale * (mpp ?? 1), longest = 150 * unit;
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map((n) => n * power).find((n) => n <= longest);
    const text = !mpp ? `${length} px` : length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(3))} µm`;
    const wide = (length / unit) * ratio, left = 14 * ratio, bottom = this.canvas.height - 14 * ratio;
    context.fillStyle = "rgba(255, 255, 255, .85)";
    context.fillRect(left - 6 * ratio, bottom - 24 * ratio, wide + 12 * ratio, 30 * ratio);
    context.fillStyle = "#000";
    context.fillRect(left, bottom - 4 * ratio, wide, 4 * ratio);
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText(text, left + wide / 2, bottom - 9 * ratio, wide + 10 * ratio);
  }

  drawMap() { // the whole slide in a corner, and what part of it is seen
    const tile = this.tiles.get(`slide/${this.setup.num_levels - 1}/0/0`);
    if (!tile?.image || this.scale >= this.fitScale * 0.9) return;
    const { context, ratio, canvas } = this;
    const factor = (120 * ratio) / Math.max(this.width, this.height);
    const [wide, high] = [this.width * factor, this.height * factor];
    const left = canvas.width - wide - 10 * ratio, top = canvas.height - high - 10 * ratio;
    context.imageSmoothingEnabled = true;
    context.drawImage(tile.image, left, top, wide, high);
    context.strokeStyle = "#555";
    context.lineWidth = ratio;
    context.strokeRect(left, top, wide, high);
    const seen = [canvas.width, canvas.height].map((px) => (px / ratio) * this.scale * factor);
    const corner = this.centre.map((l0, i) => l0 * factor - seen[i] / 2);
    context.save();
    context.beginPath();
    context.rect(left, top, wide, high);
    context.clip();
    context.strokeStyle = "#0072b2";
    context.lineWidth = 2 * ratio;
    context.strokeRect(left + corner[0], top + corner[1], seen[0], seen[1]);
    context.restore();
  }

  showPlace(event) {
    const box = this.canvas.getBoundingClientRect(), { mpp } = this.setup;
    const offset = [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
    const [x, y] = this.centre.map((l0, i) => (l0 + offset[i] * this.scale) * (mpp ?? 1));
    this.where.textContent = `x ${x.toFixed(0)}, y ${y.toFixed(0)} ${mpp ? "µm" : "px"}`;
  }
}

export default {
  render({ model, el }) {
    const view = new SlideView(model, el);
    return () => view.close();
  },
};
