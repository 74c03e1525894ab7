/** A small chart of our own: losses as they come, their mean, the validation losses, and where the guard went back. */

const WIDTH = 640;
const HEIGHT = 220;
const LEFT = 46;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 24;
const MAX_POINTS = 600; // of a line: more than the chart has pixels
const SMOOTHING = 0.05; // share of the newest loss in the running mean, of long runs
const NAMESPACE = "http://www.w3.org/2000/svg";

/** @param {string} name @param {Record<string, string | number>} attributes @param {string} [text] */
function part(name, attributes, text) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

export class Curves {
  constructor() {
    /** Losses by step. @type {Map<number, number>} */
    this.losses = new Map();
    /** @type {[number, number][]} */
    this.validation = [];
    /** @type {{step: number, back_to: number}[]} */
    this.rescues = [];
    this.total = 1;
    this.frame = 0;
    this.element = part("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "curves" });
  }

  clear() {
    this.losses.clear();
    this.validation = [];
    this.rescues = [];
    this.total = 1;
    this.draw();
  }

  /** Draw at the next frame, once for all that came until then. */
  draw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.paint();
    });
  }

  paint() {
    const points = [...this.losses].sort((a, b) => a[0] - b[0]);
    const mean = runningMean(points);
    const [low, high] = range([...points.map(([, loss]) => loss)], this.validation.map(([, loss]) => loss));
    const last = Math.max(this.total, points.at(-1)?.[0] ?? 1);
    const x = (/** @type {number} */ step) => LEFT + (step / last) * (WIDTH - LEFT - RIGHT);
    const y = (/** @type {number} */ loss) => TOP + (1 - (Math.min(high, Math.max(low, loss)) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const line = (/** @type {[number, number][]} */ values, /** @type {string} */ name) =>
      part("polyline", { class: name, points: thin(values).map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") });
    const parts = [];
    for (const loss of [low, (low + high) / 2, high]) {
      parts.push(part("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(loss), y2: y(loss) }));
      parts.push(part("text", { x: LEFT - 6, y: y(loss) + 4, "text-anchor": "end" }, points.length ? loss.toPrecision(2) : ""));
    }
    parts.push(part("text", { x: LEFT, y: HEIGHT - 6 }, "0"));
    parts.push(part("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, `${last} steps`));
    for (const { step } of this.rescues) parts.push(part("line", { class: "rescue", x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }));
    parts.push(line(points, "loss"), line(mean, "mean"), line(this.validation, "validation"));
    for (const [step, loss] of this.validation) parts.push(part("circle", { class: "validation", cx: x(step), cy: y(loss), r: 3.5 }));
    this.element.replaceChildren(...parts);
    this.element.setAttribute("aria-label", this.describe(mean));
  }

  /** @param {[number, number][]} mean */
  describe(mean) {
    if (!mean.length) return "Losses: none yet";
    const [step, loss] = /** @type {[number, number]} */ (mean.at(-1));
    const validated = this.validation.at(-1);
    const more = validated ? `; validation ${validated[1].toPrecision(2)} after ${validated[0]} steps` : "";
    return `Loss: ${mean[0][1].toPrecision(2)} at first, ${loss.toPrecision(2)} after ${step} steps${more}`;
  }
}

/** @param {[number, number][]} points @returns {[number, number][]} */
function runningMean(points) {
  let value = points[0]?.[1] ?? 0;
  return points.map(([step, loss], index) => {
    value += (loss - value) * Math.max(SMOOTHING, 1 / (index + 1));
    return [step, value];
  });
}

/** @param {number[]} losses @param {number[]} validation @returns {[number, number]} Without the few highest losses. */
function range(losses, validation) {
  const sorted = [...losses].sort((a, b) => a - b);
  const most = sorted[Math.floor((sorted.length - 1) * 0.98)] ?? 1;
  const high = Math.max(most, ...validation);
  const low = Math.min(sorted[0] ?? 0, ...validation);
  return high > low ? [low, high] : [low * 0.9, low * 1.1 || 1];
}

/** @template T @param {T[]} values @returns {T[]} */
function thin(values) {
  const interval = Math.ceil(values.length / MAX_POINTS);
  return values.filter((_, index) => index % interval === 0 || index === values.length - 1);
}
