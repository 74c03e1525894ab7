/** The files of the library, loaded once in the background, page by page, for all tabs. */

import { get } from "./api.js";
import { on } from "./events.js";
import { follow } from "./jobs.js";

const PAGE_FILES = 1000;
export const OVERLAY_KINDS = { lora: "LoRA", hypernet: "Hypernetwork", embedding: "Embedding", aesthetic: "Aesthetic", difference: "Difference" };

/**
 * @typedef {object} LibraryFile
 * @property {string} id
 * @property {string} name
 * @property {string} kind
 * @property {string} family
 * @property {string} place
 * @property {string} summary
 * @property {string[]} trigger_words
 * @property {number | null} strength
 * @property {boolean} has_preview
 * @property {string | null} error
 * @property {string} text What a search looks at, in small letters.
 */

/** @type {{files: LibraryFile[], isComplete: boolean, error: string}} */
export const library = { files: [], isComplete: false, error: "" };
/** @type {{name: string, family: string, pixels: number | null, is_open: boolean, is_default: boolean}[]} */
export const bases = [];
/** @type {Set<() => void>} */
const listeners = new Set();
let loading = 0;

/** @param {() => void} listener Called when files or bases were loaded. */
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Load files and bases again. */
export async function load() {
  const turn = ++loading;
  /** @type {LibraryFile[]} */
  const files = [];
  try {
    const found = await get("api/bases");
    bases.splice(0, bases.length, ...found);
    tell();
    for (let total = 1; files.length < total; ) {
      const page = await get("api/library", { start: files.length, limit: PAGE_FILES });
      if (turn !== loading) return; // a later call is under way
      total = page.files.length ? page.total : 0;
      for (const file of page.files) files.push({ ...file, text: searchText(file) });
      if (!library.isComplete || files.length >= total) Object.assign(library, { files: [...files], isComplete: files.length >= total, error: "" });
      tell();
    }
    library.isComplete = true;
  } catch (error) {
    library.error = /** @type {Error} */ (error).message;
  }
  tell();
}

/**
 * Return the files that have every word of a search in their names, places and trigger words.
 *
 * @param {LibraryFile[]} files
 * @param {string} search
 */
export function matching(files, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return words.length ? files.filter((file) => words.every((word) => file.text.includes(word))) : files;
}

/**
 * Return why an overlay does not fit a base, "" if it does or if that is not known.
 *
 * @param {LibraryFile} file
 * @param {string | null} baseName None: the server's own.
 */
export function misfit(file, baseName) {
  const base = bases.find((candidate) => (baseName ? candidate.name === baseName : candidate.is_default));
  if (!base?.family || !file.family || base.family === file.family) return "";
  return `For ${file.family} bases; ${base.name} is ${base.family === base.name ? "another" : base.family}`;
}

/** @param {string | null} baseName None: the server's own. @returns {number | null} Side of pictures it was trained on. */
export function sideOf(baseName) {
  return bases.find((base) => (baseName ? base.name === baseName : base.is_default))?.pixels ?? null;
}

/** @param {any} file */
function searchText(file) {
  return [file.name, file.place, file.kind, ...file.trigger_words].join("\n").toLowerCase();
}

function tell() {
  for (const listener of listeners) listener();
}

// Files are made by these jobs
const MAKERS = ["train", "resume", "merge", "bake", "extract", "convert", "pull", "create"];
follow((job) => job.state === "done" && MAKERS.includes(job.kind) && load());
on("connection", ({ hasGap }) => hasGap && load());
