/** The image that a picture begins from, and the mask that is drawn on it: white is painted anew, the rest stays. */

import { ApiError, post, url } from "../api.js";
import { debounce, h } from "../dom.js";
import { dropTarget } from "../drop.js";
import { checkField, choiceField, numberField, wrap } from "../fields.js";
import { FIELDS, settings } from "../recipe.js";
import { Store } from "../store.js";

const MAX_MASK_SIDE = 1024; // of the mask that is drawn; it is brought to the picture's size
const MAX_UNDO = 12;
const SEND_PAUSE = 400;
const INK = [240, 120, 30]; // of the mask on the screen: seen on light and dark pictures
const FITS = /** @type {[string, string][]} */ ([
  ["stretch", "Stretch"],
  ["crop", "Crop"],
  ["fill", "Fill the rest"],
  ["latent", "Stretch latents"],
]);
const CONTENTS = /** @type {[string, string][]} */ ([
  ["original", "Original"],
  ["fill", "Colours around"],
  ["latent noise", "Noise"],
  ["latent nothing", "Nothing"],
]);

const brush = new Store("brush", { size: 48, erases: false });
/** The upload of an image that is under way, or the last one. @type {Promise<unknown>} */
let arriving = Promise.resolve();
let imageCount = 0; // of images that were taken: an older upload must not replace a newer one

/**
 * Take an image as the one to begin from.
 *
 * @param {Blob} file
 * @throws {ApiError} The server does not take it.
 */
export async function beginFrom(file) {
  const turn = ++imageCount;
  const upload = post("api/inputs", file);
  arriving = upload;
  const { reference, width, height } = await upload;
  if (turn === imageCount) settings.set({ image: reference, image_size: [width, height], mask: null });
}

/**
 * Build the part for the image and its mask.
 *
 * @returns {{element: HTMLElement, ready: () => Promise<boolean>}} `ready` waits until the image and the mask are at the
 *   server, and returns false, with the reason shown, if one of them cannot be sent.
 */
export function startImage() {
  const input = h("input.unseen", { type: "file", id: "start-file", accept: "image/png,image/jpeg,image/webp", onchange: () => take([...(input.files ?? [])]) });
  const drop = h("label.drop.compact", { htmlFor: "start-file" }, h("strong", {}, "Drop an image, or choose one"));
  const error = h("p.error", { role: "alert", hidden: true });
  const picture = h("img", { alt: "Image to begin from" });
  const canvas = /** @type {HTMLCanvasElement} */ (/** @type {unknown} */ (h("canvas", { tabIndex: 0, role: "img" })));
  canvas.setAttribute("aria-label", "Mask. Draw with the pointer; or move with the arrow keys, and paint a dot with the space key.");
  const cursor = h("span.brush", { hidden: true });
  const easel = h("div.easel", {}, picture, canvas, cursor);
  const mask = new Mask(canvas, cursor, (problem) => showProblem(problem));
  const tools = h(
    "div.row",
    {},
    wrap(sizeSlider(), "brush", { label: "Brush", unit: "px" }),
    checkField(brush, "erases", { label: "Erase" }),
    h("button", { type: "button", onclick: () => mask.undo() }, "Undo"),
    h("button", { type: "button", onclick: () => mask.clear() }, "Clear mask"),
    h("button", { type: "button", onclick: removeImage }, "Remove image"),
  );
  const fields = h(
    "div.fields",
    {},
    choiceField(settings, "fit", { ...FIELDS.fit, choices: FITS }),
    choiceField(settings, "masked_content", { ...FIELDS.masked_content, choices: CONTENTS }),
    numberField(settings, "mask_blur", FIELDS.mask_blur),
    numberField(settings, "mask_padding", FIELDS.mask_padding),
  );
  const chosen = h("div.start-chosen", { hidden: true }, easel, tools, fields);
  const element = h("div.start.field", { data: { field: "image" } }, input, drop, error, chosen);

  /** @param {string} message */
  function showProblem(message) {
    error.textContent = message;
    error.hidden = !message;
  }

  /** @param {File[]} files */
  async function take(files) {
    if (!files.length) return;
    showProblem("");
    try {
      await beginFrom(files[0]);
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      showProblem(problem.message);
    }
    input.value = "";
  }

  function removeImage() {
    imageCount += 1; // one that is on its way comes too late
    settings.set({ image: null, image_size: null, mask: null });
  }

  async function ready() {
    const hasImage = await arriving.then(() => true, () => false);
    arriving = Promise.resolve(); // a failure is shown by whoever sent the image, and stops one picture
    return (await mask.ready()) && hasImage;
  }

  const show = () => {
    const { image, image_size: size } = settings.values;
    chosen.hidden = !image;
    drop.hidden = Boolean(image);
    input.hidden = drop.hidden; // without its label it has no name
    if (!image || !size) return;
    picture.src = url(`api/inputs/${image}`);
    picture.classList.toggle("small", Math.max(...size) <= 160);
    easel.style.aspectRatio = `${size[0]} / ${size[1]}`;
    easel.style.maxWidth = `${Math.max(0.4, size[0] / size[1]) * 26}rem`;
    mask.resize(size[0], size[1]);
  };
  picture.addEventListener("error", () => settings.get("image") && showProblem("This image is not stored any more: choose it again."));
  picture.addEventListener("load", () => showProblem(""));
  settings.subscribe((names) => {
    if (names.includes("image")) {
      mask.forget(); // what is drawn, and perhaps on its way to the server, belongs to the image before
      show();
    }
    if (names.includes("mask") || names.includes("image")) mask.load(settings.get("mask"));
  });
  dropTarget(element, drop, take);
  show();
  mask.load(settings.get("mask"));
  return { element, ready };
}

function sizeSlider() {
  const slider = h("input", { type: "range", min: 4, max: 200, step: 2, value: brush.get("size") });
  slider.addEventListener("input", () => brush.set({ size: Number(slider.value) }));
  brush.subscribe(() => (slider.value = String(brush.get("size"))));
  return slider;
}

/** The canvas of the mask. What is drawn on it is opaque; the style sheet shows it half-transparent. */
class Mask {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} cursor Shows the brush.
   * @param {(problem: string) => void} report
   */
  constructor(canvas, cursor, report) {
    this.canvas = canvas;
    this.cursor = cursor;
    this.report = report;
    this.pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
    /** @type {ImageData[]} */
    this.past = [];
    /** @type {{x: number, y: number} | null} */
    this.last = null;
    this.place = { x: 0, y: 0 }; // of the brush, in pixels of the canvas
    /** @type {string | null} */
    this.reference = null; // of what is on the canvas
    this.isChanged = false; // since it was sent
    this.turn = 0; // of uploads: only the last one counts
    /** @type {Promise<boolean>} */
    this.sending = Promise.resolve(true);
    this.sendSoon = debounce(() => this.send(), SEND_PAUSE);
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.draw(event));
    canvas.addEventListener("pointerup", () => this.finish());
    canvas.addEventListener("pointercancel", () => this.finish());
    canvas.addEventListener("pointerleave", () => (cursor.hidden = true));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => (cursor.hidden = true));
  }

  /** @param {number} width @param {number} height Of the image, in pixels. */
  resize(width, height) {
    const scale = Math.min(1, MAX_MASK_SIDE / Math.max(width, height));
    const size = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    if (this.canvas.width === size[0] && this.canvas.height === size[1]) return;
    [this.canvas.width, this.canvas.height] = size;
    this.place = { x: size[0] / 2, y: size[1] / 2 };
    this.past = [];
    this.reference = null;
  }

  /** Take away what is drawn, sent or not: it was for another image. */
  forget() {
    this.turn += 1;
    this.isChanged = false;
    this.sending = Promise.resolve(true);
    this.reference = null;
    this.past = [];
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** @param {string | null} reference Show a mask that was drawn before a reload, or in another tab. */
  load(reference) {
    if (reference === this.reference) return;
    this.turn += 1;
    this.sending = Promise.resolve(true);
    this.reference = reference;
    this.isChanged = false;
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!reference) return;
    const image = new Image();
    image.onerror = () => this.reference === reference && this.report("This mask is not stored any more: draw it again.");
    image.onload = () => {
      if (this.reference !== reference) return;
      this.pen.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
      const data = this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height);
      for (let index = 0; index < data.data.length; index += 4) {
        data.data.set([...INK, data.data[index]], index); // what is white in the mask is drawn
      }
      this.pen.putImageData(data, 0, 0);
    };
    image.src = url(`api/inputs/${reference}`);
  }

  /** @param {PointerEvent} event */
  begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.last = this.position(event);
    this.stroke(this.last, this.last);
  }

  /** @param {PointerEvent} event */
  draw(event) {
    const position = this.position(event);
    this.place = position;
    this.showBrush();
    if (!this.last) return;
    for (const part of event.getCoalescedEvents?.() ?? []) {
      const next = this.position(part);
      this.stroke(this.last, next);
      this.last = next;
    }
    this.stroke(this.last, position);
    this.last = position;
  }

  finish() {
    if (!this.last) return;
    this.last = null;
    this.changed();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const step = event.shiftKey ? 2 : brushWidth(this.canvas) / 2;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const move = moves[/** @type {"ArrowUp"} */ (event.key)];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (move) {
      this.place = {
        x: Math.min(this.canvas.width, Math.max(0, this.place.x + move[0])),
        y: Math.min(this.canvas.height, Math.max(0, this.place.y + move[1])),
      };
    } else {
      this.remember();
      this.stroke(this.place, this.place);
      this.changed();
    }
    this.showBrush();
  }

  undo() {
    const before = this.past.pop();
    if (!before) return;
    this.pen.putImageData(before, 0, 0);
    this.changed();
  }

  clear() {
    this.remember();
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.changed();
  }

  /** @returns {Promise<boolean>} Waits until the server has what is drawn; false if it does not take it. */
  async ready() {
    this.send();
    return this.sending;
  }

  changed() {
    this.isChanged = true;
    this.sendSoon();
  }

  send() {
    if (!this.isChanged) return;
    this.isChanged = false;
    this.turn += 1;
    this.sending = this.store(this.turn);
  }

  /** @param {number} turn @returns {Promise<boolean>} False if the server does not take what is drawn. */
  async store(turn) {
    const blob = await this.toBlackAndWhite();
    try {
      const reference = blob && (await post("api/inputs", blob)).reference;
      if (turn !== this.turn) return this.sending; // a newer one is on its way, or it was for another image
      this.reference = reference;
      settings.set({ mask: reference });
      this.report("");
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      if (turn !== this.turn) return this.sending;
      this.isChanged = true; // sent again with the next picture
      this.report(problem.message);
      return false;
    }
    return true;
  }

  /** @returns {Promise<Blob | null>} A PNG, white where it is drawn; null if nothing is. */
  async toBlackAndWhite() {
    const { width, height } = this.canvas;
    const drawn = this.pen.getImageData(0, 0, width, height).data;
    if (!drawn.some((value, index) => index % 4 === 3 && value > 0)) return null;
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [width, height];
    const pen = /** @type {CanvasRenderingContext2D} */ (sheet.getContext("2d"));
    pen.drawImage(this.canvas, 0, 0);
    for (const [operation, colour] of /** @type {[GlobalCompositeOperation, string][]} */ ([["source-in", "white"], ["destination-over", "black"]])) {
      pen.globalCompositeOperation = operation;
      pen.fillStyle = colour;
      pen.fillRect(0, 0, width, height);
    }
    return new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
  }

  remember() {
    this.past.push(this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.past.length > MAX_UNDO) this.past.shift();
  }

  /** @param {{x: number, y: number}} from @param {{x: number, y: number}} to */
  stroke(from, to) {
    this.pen.globalCompositeOperation = brush.get("erases") ? "destination-out" : "source-over";
    this.pen.strokeStyle = `rgb(${INK})`;
    this.pen.lineCap = "round";
    this.pen.lineWidth = brushWidth(this.canvas);
    this.pen.beginPath();
    this.pen.moveTo(from.x, from.y);
    this.pen.lineTo(to.x, to.y);
    this.pen.stroke();
    this.pen.globalCompositeOperation = "source-over";
  }

  /** @param {PointerEvent} event @returns {{x: number, y: number}} */
  position(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  }

  showBrush() {
    const scale = this.canvas.clientWidth / this.canvas.width;
    const size = brush.get("size");
    this.cursor.hidden = false;
    Object.assign(this.cursor.style, {
      width: `${size}px`,
      height: `${size}px`,
      transform: `translate(${this.place.x * scale - size / 2}px, ${this.place.y * scale - size / 2}px)`,
    });
  }
}

/** @param {HTMLCanvasElement} canvas @returns {number} The brush, which is in pixels of the screen, on the canvas. */
function brushWidth(canvas) {
  return brush.get("size") * (canvas.width / (canvas.clientWidth || canvas.width));
}

