// A viewer of stitched tiles, or of one image: zoom and pan down to the pixels of the files.
// It draws on a canvas whatever lies inside of it with data-picture, data-row and data-column; without scripts that
// fallback is shown instead.
"use strict";

const TILE = 512; // as the gateway makes them
const KEPT = 600; // tiles in memory, unless more of them are seen at once
const BUSY = 6; // requests at a time
const FARTHEST = 16; // screen pixels of one pixel of a file

function cells(within) {
  return [...within.querySelectorAll("[data-picture]")].map((one) => ({
    row: Number(one.dataset.row), column: Number(one.dataset.column), picture: one.dataset.picture,
    page: one.getAttribute("href"),
  }));
}

class Viewer {
  constructor(element) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.pen = this.canvas.getContext("2d", { alpha: false });
    this.where = element.querySelector("[data-where]");
    this.cells = cells(element);
    this.before = []; // what the difference is taken from
    this.suffix = element.dataset.query ? `&${element.dataset.query}` : "";
    this.tiles = new Map(); // by address: the image, or null while it is loaded, or an error
    this.waiting = [];
    this.loading = 0;
    this.pointers = new Map();
    this.start();
  }

  async start() {
    const answer = await fetch(this.element.dataset.info).catch(() => null);
    if (!answer || !answer.ok) return this.fail(answer);
    const { width, height } = await answer.json();
    this.cell = { width, height };
    this.width = width * (1 + Math.max(...this.cells.map((one) => one.column)));
    this.height = height * (1 + Math.max(...this.cells.map((one) => one.row)));
    this.levels = Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / 16)));
    this.listen();
    this.resize();
    if (!this.restore()) this.fit();
    this.element.dataset.ready = "";
  }

  async fail(answer) {
    const told = answer && (await answer.json().catch(() => null));
    const reason = document.createElement("p");
    reason.className = "notice bad";
    reason.textContent = `No picture: ${(told && told.error && told.error.message) || "the gateway does not answer"}`;
    this.element.prepend(reason);
    this.element.classList.add("failed");
  }

  // ------------------------------------------------------------------------------------------------- what is drawn

  resize() {
    const box = this.canvas.getBoundingClientRect();
    this.ratio = window.devicePixelRatio || 1;
    this.view = { width: box.width, height: box.height };
    this.canvas.width = Math.round(box.width * this.ratio);
    this.canvas.height = Math.round(box.height * this.ratio);
    this.draw();
  }

  fit() {
    this.scale = Math.min(this.view.width / this.width, this.view.height / this.height);
    this.x = this.width / 2;
    this.y = this.height / 2;
    this.moved();
  }

  get least() {
    return Math.min(1, this.view.width / this.width, this.view.height / this.height) / 2;
  }

  moved() {
    this.scale = Math.min(Math.max(this.scale, this.least), FARTHEST);
    this.x = Math.min(Math.max(this.x, 0), this.width);
    this.y = Math.min(Math.max(this.y, 0), this.height);
    this.draw();
    clearTimeout(this.remember);
    this.remember = setTimeout(() => {
      const at = [this.x, this.y].map(Math.round).concat(Number(this.scale.toPrecision(4)));
      history.replaceState(history.state, "", `#at=${at.join(",")}`);
    }, 300);
  }

  restore() {
    const [x, y, scale] = (/^#at=([\d.,]+)$/.exec(location.hash)?.[1] || "").split(",").map(Number);
    if (!(scale > 0)) return false;
    Object.assign(this, { x, y, scale });
    this.moved();
    return true;
  }

  zoom(factor, at = { x: this.view.width / 2, y: this.view.height / 2 }) {
    const [left, top] = [at.x - this.view.width / 2, at.y - this.view.height / 2];
    const scale = Math.min(Math.max(this.scale * factor, this.least), FARTHEST);
    this.x += left / this.scale - left / scale;
    this.y += top / this.scale - top / scale;
    this.scale = scale;
    this.moved();
  }

  draw() {
    if (this.drawing || !this.cell) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.paint();
    });
  }

  // Edges are rounded to whole pixels of the screen, alike for neighbours: no seam is left between tiles.
  edge(value, centre, size) {
    return Math.round((value - centre) * this.scale * this.ratio + (size * this.ratio) / 2);
  }

  paint() {
    const { pen, canvas } = this;
    pen.fillStyle = "#0b1210";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = this.scale * this.ratio < 2;
    const level = Math.min(Math.max(Math.floor(Math.log2(1 / (this.scale * this.ratio))), 0), this.levels);
    this.waiting = [];
    this.used = 0;
    const differs = this.before.length > 0;
    this.paintCells(this.before, level, level);
    pen.globalCompositeOperation = differs ? "difference" : "source-over";
    this.paintCells(this.cells, level, differs ? level : this.levels);
    pen.globalCompositeOperation = "source-over";
    const far = ({ x, y }) => Math.hypot(x - this.x, y - this.y);
    this.waiting.sort((one, other) => far(one) - far(other));
    this.load();
    this.forget();
    this.element.dataset.level = level;
    if (this.waiting.length || this.loading) delete this.element.dataset.whole;
    else this.element.dataset.whole = "";
    if (this.where) this.where.textContent = `${Math.round(this.scale * this.ratio * 1000) / 10} %`;
  }

  paintCells(cells, level, coarsest) {
    for (const cell of cells) {
      const [left, top] = [cell.column * this.cell.width, cell.row * this.cell.height];
      if (!this.seen(left, top, left + this.cell.width, top + this.cell.height)) continue;
      for (let above = coarsest; above >= level; above--) this.paintLevel(cell, left, top, above, above === level);
    }
  }

  seen(left, top, right, bottom) {
    const [x, y] = [this.view.width / 2 / this.scale, this.view.height / 2 / this.scale];
    return right > this.x - x && left < this.x + x && bottom > this.y - y && top < this.y + y;
  }

  // Coarser levels are only drawn where they are there already: they stand in until the wanted one is loaded.
  paintLevel(cell, left, top, level, wanted) {
    const side = TILE * 2 ** level;
    const columns = Math.max(1, Math.ceil(Math.floor(this.cell.width / 2 ** level) / TILE));
    const rows = Math.max(1, Math.ceil(Math.floor(this.cell.height / 2 ** level) / TILE));
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) {
        const right = x + 1 < columns ? left + (x + 1) * side : left + this.cell.width;
        const bottom = y + 1 < rows ? top + (y + 1) * side : top + this.cell.height;
        if (!this.seen(left + x * side, top + y * side, right, bottom)) continue;
        const address = this.address(cell, level, x, y);
        const tile = this.tiles.get(address);
        this.used += 1;
        if (wanted && tile === undefined) {
          this.waiting.push({ address, x: (left + x * side + right) / 2, y: (top + y * side + bottom) / 2 });
        }
        if (!tile) continue;
        this.tiles.delete(address); // the last one used is the last one in the map
        this.tiles.set(address, tile);
        const [a, c] = [left + x * side, right].map((one) => this.edge(one, this.x, this.view.width));
        const [b, d] = [top + y * side, bottom].map((one) => this.edge(one, this.y, this.view.height));
        if (tile instanceof Image) this.pen.drawImage(tile, a, b, c - a, d - b);
        else this.cross(tile, a, b, c - a, d - b);
      }
    }
  }

  cross(problem, left, top, width, height) {
    const { pen } = this;
    pen.fillStyle = "#2a1a18";
    pen.fillRect(left, top, width, height);
    pen.fillStyle = "#ffb3a8";
    pen.font = `${12 * this.ratio}px sans-serif`;
    if (width > 60 * this.ratio) pen.fillText(problem.message, left + 6, top + 18 * this.ratio, width - 12);
  }

  address(cell, level, x, y) {
    return `${cell.picture}?level=${level}&x=${x}&y=${y}${this.suffix}`;
  }

  load() {
    while (this.loading < BUSY && this.waiting.length) {
      const { address } = this.waiting.shift();
      this.tiles.set(address, null);
      this.loading += 1;
      const image = new Image();
      const ended = (tile) => {
        this.loading -= 1;
        this.tiles.set(address, tile);
        this.draw();
      };
      image.onload = () => ended(image);
      image.onerror = async () => {
        const told = await fetch(address).then((one) => one.json()).catch(() => null);
        ended({ message: (told && told.error && told.error.message) || "no picture" });
      };
      image.src = address;
    }
  }

  forget() {
    for (const [address, tile] of this.tiles) {
      if (this.tiles.size <= Math.max(KEPT, this.used)) return;
      if (tile) this.tiles.delete(address);
    }
  }

  show(query) {
    this.suffix = query.size ? `&${query}` : "";
    this.draw();
  }

  // ----------------------------------------------------------------------------------------- keyboard, mouse, touch

  listen() {
    const { canvas } = this;
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls until the viewer has the focus
      event.preventDefault();
      this.zoom(2 ** (-event.deltaY / (event.deltaMode ? 8 : 300)), this.at(event));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(2, this.at(event)));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.at(event));
    });
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const step = 80 / this.scale;
      const known = {
        ArrowLeft: () => { this.x -= step; }, ArrowRight: () => { this.x += step; },
        ArrowUp: () => { this.y -= step; }, ArrowDown: () => { this.y += step; },
        "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5),
        0: () => this.fit(), 1: () => this.zoom(1 / this.ratio / this.scale), f: () => this.fill(),
        Enter: () => this.open(),
      }[event.key];
      if (!known) return;
      event.preventDefault();
      event.stopPropagation();
      known();
      this.moved();
    });
    const buttons = {
      in: () => this.zoom(2), out: () => this.zoom(0.5), fit: () => this.fit(),
      native: () => this.zoom(1 / this.ratio / this.scale), fill: () => this.fill(), open: () => this.open(),
      tiles: () => this.element.classList.toggle("listed"),
    };
    for (const button of this.element.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => buttons[button.dataset.do]());
    }
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  // One pointer moves the view; two also zoom, by their distance.
  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.at(event);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, now);
    const share = other ? 2 : 1;
    this.x -= (now.x - before.x) / this.scale / share;
    this.y -= (now.y - before.y) / this.scale / share;
    if (other) {
      const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
      this.zoom(apart(now) / apart(before), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
    } else this.moved();
  }

  fill() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (this.element.requestFullscreen) this.element.requestFullscreen();
  }

  // The image in the middle of the view has a page of its own.
  open() {
    const [column, row] = [Math.floor(this.x / this.cell.width), Math.floor(this.y / this.cell.height)];
    const cell = this.cells.find((one) => one.column === column && one.row === row);
    if (cell && cell.page) location.href = cell.page;
  }
}

for (const element of document.querySelectorAll("[data-viewer]")) element.viewer = new Viewer(element);

// Time: the same plate at other times, in the same view; played, or as the difference to the time before.
class Times {
  constructor(element, viewer) {
    this.element = element;
    this.viewer = viewer;
    this.slider = element.querySelector("input[type=range]");
    this.told = element.querySelector("[data-when]");
    this.play = element.querySelector("[data-play]");
    this.difference = element.querySelector("[data-difference]");
    this.read = new Map([[element.dataset.here, Promise.resolve(viewer.cells)]]);
    this.start();
  }

  async start() {
    this.times = await fetch(this.element.dataset.times).then((one) => one.json()).catch(() => []);
    if (!Array.isArray(this.times) || this.times.length < 2) return;
    this.slider.max = this.times.length - 1;
    this.slider.value = this.times.findIndex((one) => one.ref === this.element.dataset.here);
    this.slider.addEventListener("input", () => this.show());
    this.difference.addEventListener("change", () => this.show());
    this.play.addEventListener("click", () => this.run(!this.running));
    this.element.hidden = false;
    this.show();
  }

  tiles(ref) {
    if (!this.read.has(ref)) {
      const page = fetch(`/events/${ref}`).then((one) => one.text());
      this.read.set(ref, page.then((text) => cells(new DOMParser().parseFromString(text, "text/html"))).catch(() => []));
    }
    return this.read.get(ref);
  }

  async show() {
    const at = Number(this.slider.value);
    const [before, now] = [this.times[at - 1], this.times[at]];
    this.told.href = `/events/${now.ref}`;
    this.told.textContent = `${at + 1} of ${this.times.length} · ${now.at} · ${now.since}`;
    delete this.viewer.element.dataset.whole;
    const wanted = await Promise.all([this.tiles(now.ref), this.difference.checked && before ? this.tiles(before.ref) : []]);
    if (at !== Number(this.slider.value)) return;
    [this.viewer.cells, this.viewer.before] = wanted;
    this.viewer.draw();
  }

  // The next time follows when the picture is whole.
  run(on) {
    this.running = on;
    this.play.textContent = on ? "Pause" : "Play";
    clearInterval(this.clock);
    if (!on) return;
    this.clock = setInterval(() => {
      if (!("whole" in this.viewer.element.dataset)) return;
      this.slider.value = (Number(this.slider.value) + 1) % this.times.length;
      this.show();
    }, 400);
  }
}

for (const element of document.querySelectorAll("[data-times]")) {
  element.times = new Times(element, document.querySelector("[data-viewer]").viewer);
}

// Contrast: what is set in the form goes into the address and into the tiles at once.
for (const form of document.querySelectorAll("form[data-contrast]")) {
  const { viewer } = document.querySelector("[data-viewer]");
  const change = () => {
    const query = new URLSearchParams();
    for (const input of form.querySelectorAll("[name]")) {
      const range = input.type === "range";
      const plain = range ? Math.abs(input.value - input.dataset.plain) < 1e-9 * Math.abs(input.max) : !input.checked;
      if (!plain) query.set(input.name, range ? Number(Number(input.value).toPrecision(6)) : "true");
    }
    viewer.show(query);
    history.replaceState(history.state, "", `${location.pathname}${query.size ? `?${query}` : ""}${location.hash}`);
    for (const link of document.querySelectorAll("[data-rendered]")) {
      link.href = `${link.pathname}?${new URLSearchParams([["format", link.dataset.rendered], ...query])}`;
    }
  };
  const mark = () => {
    for (const input of form.querySelectorAll("input[type=range]")) {
      input.parentElement.querySelector("output").textContent = Number(Number(input.value).toPrecision(5));
    }
  };
  form.addEventListener("input", () => {
    mark();
    clearTimeout(form.pause);
    form.pause = setTimeout(change, 150);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    change();
  });
  form.addEventListener("reset", () => setTimeout(() => {
    for (const input of form.querySelectorAll("[name]")) {
      if (input.type === "range") input.value = input.dataset.plain;
      else input.checked = false;
    }
    mark();
    change();
  }));
}
