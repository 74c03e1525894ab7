/** Change the text of a prompt: tags of overlays, their strengths, weights of words. Nothing here knows of the page. */

const TAG = /<(\w+):([^<>:]+)((?::[^<>:]*)*)>/g;
const STEP = { weight: 0.1, strength: 0.05 };
const DELIMITERS = /[\s,.()[\]{}<>|]/;

/**
 * @typedef {{kind: string, name: string}} Overlay
 * @typedef {{kind: string, name: string, strength: number | null, start: number, end: number}} TextTag
 * @typedef {{text: string, start: number, end: number}} Edit A text and the selection in it.
 */

/**
 * Return the tags in a prompt; a strength that is not a plain number is null.
 *
 * @param {string} text
 * @returns {TextTag[]}
 */
export function findTags(text) {
  return [...text.matchAll(TAG)].map((match) => {
    const [first] = match[3].slice(1).split(":");
    const strength = first === "" ? 1 : Number(first);
    const [kind, name] = [match[1] === "lyco" ? "lora" : match[1], match[2].trim()];
    const end = match.index + match[0].length;
    return { kind, name, strength: Number.isFinite(strength) ? strength : null, start: match.index, end };
  });
}

/**
 * Return where a prompt calls an overlay: by its tag, or an embedding by its name among the words.
 *
 * @param {string} text
 * @param {Overlay} overlay
 * @returns {TextTag | null}
 */
export function findCall(text, { kind, name }) {
  if (kind === "embedding") return findWord(text, name);
  const wanted = name.toLowerCase();
  return findTags(text).find((tag) => tag.kind === kind && tag.name.toLowerCase() === wanted) ?? null;
}

/**
 * Return a prompt that calls an overlay, with words that go with it.
 *
 * @param {string} text
 * @param {Overlay} overlay
 * @param {number} strength
 * @param {string} [words] Trigger words; they are left out if the prompt has them.
 */
export function addCall(text, overlay, strength, words = "") {
  const call = callText(overlay, strength);
  const needsWords = words && !text.toLowerCase().includes(words.toLowerCase());
  const separator = overlay.kind === "embedding" ? ", " : " ";
  const begun = text.trimEnd();
  const comment = begun.slice(begun.lastIndexOf("\n") + 1).includes("#"); // what follows would be part of the comment
  const withCall = begun ? `${begun}${comment ? "\n" : separator}${call}` : call;
  return needsWords ? `${withCall}${begun || overlay.kind === "embedding" ? ", " : " "}${words}` : withCall;
}

/**
 * Return a prompt without an overlay, and without the words that go with it if they stand right behind it.
 *
 * @param {string} text
 * @param {Overlay} overlay
 * @param {string} [words]
 */
export function removeCall(text, overlay, words = "") {
  let result = text;
  for (let call = findCall(result, overlay); call; call = findCall(result, overlay)) {
    const before = result.slice(0, call.start).replace(overlay.kind === "embedding" ? /[,\s]*$/ : /[ \t]*$/, "");
    let after = result.slice(call.end);
    const trailing = words ? after.match(/^[,\s]*/)?.[0].length ?? 0 : 0;
    if (words && after.slice(trailing).toLowerCase().startsWith(words.toLowerCase())) {
      after = after.slice(trailing + words.length);
    }
    result = before ? `${before}${after}` : after.replace(/^[,\s]+/, "");
  }
  return result;
}

/**
 * Return a prompt in which an overlay has another strength; what follows the strength in its tag stays.
 *
 * @param {string} text
 * @param {Overlay} overlay
 * @param {number} strength
 */
export function setStrength(text, overlay, strength) {
  const call = findCall(text, overlay);
  if (!call) return text;
  const old = text.slice(call.start, call.end);
  if (overlay.kind === "embedding") return splice(text, call, callText(overlay, strength));
  const [head, name, _strength, ...rest] = old.slice(1, -1).split(":");
  return splice(text, call, `<${[head, name, show(strength), ...rest].join(":")}>`);
}

/**
 * Change the weight of the selection, of the word at the cursor, or the strength of the tag at the cursor.
 *
 * @param {Edit} edit
 * @param {1 | -1} direction
 * @returns {Edit}
 */
export function changeWeight({ text, start, end }, direction) {
  const tag = findTags(text).find((found) => found.start <= start && end <= found.end);
  if (tag?.strength !== undefined && tag?.strength !== null) {
    const changed = setStrength(text.slice(tag.start, tag.end), tag, tag.strength + direction * STEP.strength);
    const stop = tag.start + changed.length;
    return { text: splice(text, tag, changed), start: tag.start, end: stop };
  }
  const [from, to] = start === end ? wordAt(text, start) : [start, end];
  if (from === to) return { text, start, end };
  const around = text.slice(to).match(/^:(-?\d*\.?\d+)\)/);
  if (text[from - 1] === "(" && around) {
    const weight = Number(around[1]) + direction * STEP.weight;
    const stop = to + around[0].length;
    const inner = text.slice(from, to);
    const isPlain = Math.abs(weight - 1) < 1e-9;
    const changed = isPlain ? inner : `(${inner}:${show(weight)})`;
    const at = isPlain ? from - 1 : from;
    return { text: splice(text, { start: from - 1, end: stop }, changed), start: at, end: at + inner.length };
  }
  const changed = `(${text.slice(from, to)}:${show(1 + direction * STEP.weight)})`;
  return { text: splice(text, { start: from, end: to }, changed), start: from + 1, end: to + 1 };
}

/**
 * Return what is being typed before the cursor, for completion: a tag that is not closed, or a word.
 *
 * @param {string} text
 * @param {number} cursor
 * @returns {{kind: string | null, query: string, start: number, isTag: boolean}}
 */
export function typedBefore(text, cursor) {
  const open = text.slice(0, cursor).match(/<(?:(\w+):)?([^<>:]*)$/);
  if (open) return { kind: open[1] ?? null, query: open[2], start: cursor - open[0].length, isTag: true };
  const query = text.slice(0, cursor).match(/[^\s,.()[\]{}<>|:#]*$/)?.[0] ?? "";
  return { kind: null, query, start: cursor - query.length, isTag: false };
}

/** @param {Overlay} overlay @param {number} strength */
export function callText({ kind, name }, strength) {
  if (kind !== "embedding") return `<${kind}:${name}:${show(strength)}>`;
  return Math.abs(strength - 1) < 1e-9 ? name : `(${name}:${show(strength)})`;
}

/** @param {number} value @returns {string} At most two digits behind the point. */
export function show(value) {
  return String(Math.round(value * 100) / 100);
}

/** @param {string} text @param {string} name @returns {TextTag | null} */
function findWord(text, name) {
  const escaped = name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const pattern = new RegExp(`\\(${escaped}:(-?\\d*\\.?\\d+)\\)|(?<![\\w<:-])${escaped}(?![\\w:>-])`, "i");
  const match = pattern.exec(text);
  if (!match) return null;
  const strength = match[1] === undefined ? 1 : Number(match[1]);
  return { kind: "embedding", name, strength, start: match.index, end: match.index + match[0].length };
}

/** @param {string} text @param {number} cursor @returns {[number, number]} */
function wordAt(text, cursor) {
  let [start, end] = [cursor, cursor];
  const isWord = (/** @type {number} */ index) => index >= 0 && index < text.length && !DELIMITERS.test(text[index]);
  while (isWord(start - 1) && text[start - 1] !== ":") start -= 1;
  while (isWord(end) && text[end] !== ":") end += 1;
  return [start, end];
}

/** @param {string} text @param {{start: number, end: number}} place @param {string} replacement */
function splice(text, { start, end }, replacement) {
  return text.slice(0, start) + replacement + text.slice(end);
}
