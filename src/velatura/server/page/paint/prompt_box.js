/** A box for a prompt: weight keys, completion of overlays, embeddings and words, and its length in tokens. */

import { get, post } from "../api.js";
import { debounce, fill, h, newId } from "../dom.js";
import { wrap } from "../fields.js";
import { OVERLAY_KINDS, library } from "../library.js";
import { FIELDS, settings } from "../recipe.js";
import { callText, changeWeight, findCall, typedBefore } from "./prompt_text.js";

const COUNT_PAUSE = 250; // milliseconds after the last key
const COMPLETE_PAUSE = 60;
const MAX_COMPLETIONS = 8;
const MIN_LETTERS = 2;

/** @typedef {{text: string, note: string, insert: string, file?: import("../library.js").LibraryFile}} Completion */

/** @type {string[]} */
let words = [];

/**
 * Build the boxes for the prompt and the negative prompt.
 *
 * @returns {{fields: HTMLElement[], count: () => void}} `count` counts again, as when another base is open.
 */
export function promptBoxes() {
  const boxes = { prompt: promptBox("prompt", 4), negative: promptBox("negative", 2) };
  const count = async () => {
    const texts = { prompt: settings.get("prompt"), negative: settings.get("negative") };
    const lengths = await post("api/prompts/count", texts).catch(() => ({}));
    for (const name of /** @type {("prompt" | "negative")[]} */ (["prompt", "negative"])) {
      const length = lengths[name];
      boxes[name].length.textContent = length ? `${length.tokens} of ${length.capacity} tokens` : "";
    }
  };
  const countSoon = debounce(count, COUNT_PAUSE);
  settings.subscribe((names) => (names.includes("prompt") || names.includes("negative")) && countSoon());
  get("api/prompts/words").then((found) => (words = found), () => {});
  return { fields: [boxes.prompt.field, boxes.negative.field], count };
}

/** @param {"prompt" | "negative"} name @param {number} rows */
function promptBox(name, rows) {
  const { label, why } = FIELDS[name];
  const box = /** @type {any} */ (h("textarea", { rows, spellcheck: false, autocapitalize: "off" }));
  if (name === "prompt") box.placeholder = "What to show, for example: a red house on the beach";
  const length = h("span.length", { title: "Chunks of 75 tokens are read at once; a longer prompt takes one more" });
  const list = h("ul.completions", { id: newId("completions"), role: "listbox", hidden: true });
  list.setAttribute("aria-label", "Completions");
  const field = wrap(box, name, { label, why });
  field.querySelector("label")?.after(length);
  field.querySelector(".control")?.append(list);
  field.classList.add("prompt");
  box.setAttribute("aria-autocomplete", "list");
  box.setAttribute("aria-controls", list.id);
  const completion = completionList(box, list);
  box.value = settings.get(name);
  settings.subscribe((names) => {
    if (names.includes(name) && box.value !== settings.get(name)) box.value = settings.get(name);
  });
  box.addEventListener("input", () => {
    settings.set({ [name]: box.value });
    completion.soon();
  });
  box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (completion.takes(event)) return;
    const isWeightKey = (event.ctrlKey || event.metaKey) && ["ArrowUp", "ArrowDown"].includes(event.key);
    if (!isWeightKey) return;
    event.preventDefault();
    const edit = { text: box.value, start: box.selectionStart, end: box.selectionEnd };
    const changed = changeWeight(edit, event.key === "ArrowUp" ? 1 : -1);
    if (changed.text !== edit.text) replaceText(box, changed.text);
    box.setSelectionRange(changed.start, changed.end);
  });
  box.addEventListener("blur", () => completion.close());
  return { field, length };
}

/**
 * Replace the part of a box's text that differs, as if it were typed, so that Ctrl+Z takes it back.
 *
 * @param {HTMLTextAreaElement} box
 * @param {string} text
 */
function replaceText(box, text) {
  const old = box.value;
  let start = 0;
  while (start < Math.min(old.length, text.length) && old[start] === text[start]) start += 1;
  let same = 0; // letters at the end
  while (same < Math.min(old.length, text.length) - start && old.at(-1 - same) === text.at(-1 - same)) same += 1;
  box.focus();
  box.setSelectionRange(start, old.length - same);
  const inserted = text.slice(start, text.length - same);
  const command = inserted ? "insertText" : "delete";
  if (!document.execCommand(command, false, inserted)) {
    box.setRangeText(inserted, start, old.length - same, "end");
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

/** @param {any} box @param {HTMLElement} list */
function completionList(box, list) {
  /** @type {Completion[]} */
  let found = [];
  let chosen = -1;
  let start = 0;

  const close = () => {
    list.hidden = true;
    found = [];
    box.removeAttribute("aria-activedescendant");
  };
  const mark = (/** @type {number} */ index) => {
    chosen = index;
    [...list.children].forEach((item, position) => item.setAttribute("aria-selected", String(position === index)));
    if (index >= 0) box.setAttribute("aria-activedescendant", list.children[index].id);
    else box.removeAttribute("aria-activedescendant");
  };
  const open = () => {
    if (document.activeElement !== box || box.selectionStart !== box.selectionEnd) return close();
    const typed = typedBefore(box.value, box.selectionStart);
    found = complete(typed, box.value);
    if (!found.length) return close();
    start = typed.start;
    fill(
      list,
      found.map((completion, index) => {
        const onpointerdown = (/** @type {Event} */ event) => {
          event.preventDefault(); // the box keeps the focus
          accept(index);
        };
        return h("li", { role: "option", id: newId("completion"), onpointerdown }, completion.text, h("span.unit", {}, completion.note));
      }),
    );
    list.hidden = false;
    mark(typed.isTag ? 0 : -1); // a word may be meant as it stands: Enter stays a line break
  };
  const accept = (/** @type {number} */ index) => {
    const { insert, file } = found[index];
    const end = box.selectionStart;
    const text = box.value;
    const rest = file && text[end] === ">" ? end + 1 : end;
    let changed = text.slice(0, start) + insert + text.slice(rest);
    let cursor = start + insert.length;
    const trigger = file ? triggerWords(file) : "";
    if (trigger && !text.toLowerCase().includes(trigger.toLowerCase())) {
      changed = `${changed.slice(0, cursor)} ${trigger}${changed.slice(cursor)}`;
      cursor += trigger.length + 1;
    }
    close();
    replaceText(box, changed);
    box.setSelectionRange(cursor, cursor);
  };
  /** @param {KeyboardEvent} event @returns {boolean} True if the key was for the completions. */
  const takes = (event) => {
    if (list.hidden || event.ctrlKey || event.metaKey || event.altKey) return false;
    const isAccept = (event.key === "Enter" || event.key === "Tab") && chosen >= 0;
    if (event.key === "ArrowDown") mark((chosen + 1) % found.length);
    else if (event.key === "ArrowUp") mark((chosen <= 0 ? found.length : chosen) - 1);
    else if (isAccept) accept(chosen);
    else if (event.key === "Escape") close();
    else return false;
    event.preventDefault();
    event.stopPropagation();
    return true;
  };
  return { close, takes, soon: debounce(open, COMPLETE_PAUSE) };
}

/**
 * Return what may be meant: overlays for an open tag; else embeddings, trigger words, words of the base, overlays.
 *
 * @param {ReturnType<typeof typedBefore>} typed
 * @param {string} text The whole prompt.
 * @returns {Completion[]}
 */
function complete({ kind, query, isTag }, text) {
  const wanted = query.toLowerCase();
  if (!isTag && wanted.length < MIN_LETTERS) return [];
  const named = library.files.filter(
    (file) => file.kind in OVERLAY_KINDS && !file.error && file.name.toLowerCase().includes(wanted) && (!isTag || file.kind !== "embedding"),
  );
  const ofKind = kind ? named.filter((file) => file.kind === kind || (kind === "lyco" && file.kind === "lora")) : named;
  const starting = (/** @type {{name: string}} */ file) => (file.name.toLowerCase().startsWith(wanted) ? 0 : 1);
  const files = ofKind.sort((a, b) => starting(a) - starting(b)).slice(0, MAX_COMPLETIONS);
  const completions = files.map((file) => ({
    text: file.name,
    note: OVERLAY_KINDS[/** @type {"lora"} */ (file.kind)],
    insert: callText(file, file.strength ?? 1),
    file,
  }));
  if (isTag) return completions;
  const triggers = library.files.flatMap((file) => file.trigger_words.map((word) => ({ word, note: `calls ${file.name}` })));
  const known = [...words.map((word) => ({ word, note: "" })), ...triggers];
  const matches = known.filter(({ word }) => word.toLowerCase().startsWith(wanted) && word.toLowerCase() !== wanted && word.length < 80);
  const unique = [...new Map(matches.map((match) => [match.word, match])).values()];
  const plain = unique.map(({ word, note }) => ({ text: word, note, insert: word }));
  const isNew = (/** @type {Completion} */ completion) => !completion.file || !findCall(text, completion.file);
  return [...plain, ...completions.filter(isNew)].slice(0, MAX_COMPLETIONS);
}

/**
 * Return the words that are put into a prompt with an overlay: its only trigger words. Of several, a person chooses.
 *
 * @param {import("../library.js").LibraryFile} file
 */
export function triggerWords(file) {
  return file.trigger_words.length === 1 && file.kind !== "embedding" ? file.trigger_words[0] : "";
}

