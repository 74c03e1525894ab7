/** Library: every file that was found, by name, kind and base; a file's page; downloads. */

import { ApiError, post, url } from "../api.js";
import { go, say } from "../app.js";
import { debounce, h } from "../dom.js";
import { choiceField, textField } from "../fields.js";
import { filePage } from "../library/file.js";
import { pullForm } from "../library/pull.js";
import { library, load, matching, subscribe } from "../library.js";
import { Store } from "../store.js";
import { VirtualList } from "../virtual.js";

const ROW_HEIGHT = 68; // pixels, with the gap
const MIN_WIDTH = 260;
const SEARCH_PAUSE = 60; // milliseconds: a key is seen before the list is
export const KIND_NAMES = { checkpoint: "Base", vae: "VAE", upscaler: "Upscaler", "face-restorer": "Face restorer", "face-detector": "Face detector", hypernet: "Hypernetwork", embedding: "Embedding", lora: "LoRA", aesthetic: "Aesthetic", difference: "Difference", unknown: "Unknown" };
const settings = new Store("library", { search: "", kind: null, family: null });

/** @param {HTMLElement} root */
export function mount(root) {
  const search = textField(settings, "search", { label: "Search", placeholder: "name, folder, trigger word" });
  const kind = choiceField(settings, "kind", { label: "Kind", choices: [["", "all"], ...Object.entries(KIND_NAMES)] });
  const family = choiceField(settings, "family", { label: "For bases of", choices: [["", "any family"]] });
  const count = h("p.quiet", { role: "status" });
  const error = h("p.error", { role: "alert", hidden: true });
  const refresh = h("button", { type: "button", onclick: searchFolders, title: "Search the folders again" }, "Look again");
  const scroller = h("div.library-list", { "aria-label": "Files" });
  const list = new VirtualList(scroller, { height: ROW_HEIGHT, minWidth: MIN_WIDTH, build, update });
  const page = filePage(() => go("library"));
  const left = h("div.library-left", {}, h("div.library-filters", {}, search, kind, family), h("div.row", {}, count, refresh), error, scroller, pullForm());
  let shown = "";
  let isFirst = true;
  let families = "";
  let shownFilters = "";
  let shownContent = "";
  root.classList.add("library");
  const empty = h("p.quiet", {}, "Choose a file to see what it is, what it fits and what can be made of it.");
  root.append(h("h1.unseen", {}, "Library"), left, page.element, empty);

  /** @param {import("../library.js").LibraryFile} file */
  function build(file) {
    const picture = file.has_preview ? h("img", { src: url(`api/library/${file.id}/thumbnail`), alt: "", loading: "lazy" }) : h("span.library-blank", { "aria-hidden": "true" }, (KIND_NAMES[/** @type {"lora"} */ (file.kind)] ?? "?")[0]);
    const strength = file.strength === null ? "" : `strength ${file.strength}`;
    const facts = [KIND_NAMES[/** @type {"lora"} */ (file.kind)] ?? file.kind, file.family, strength].filter(Boolean).join(" · ");
    const words = file.error || file.trigger_words.join(", ") || file.place;
    const text = h("span.library-text", {}, h("strong", {}, file.name), h("span.quiet", {}, facts), h(file.error ? "span.error" : "span.quiet", {}, words));
    return h("div.library-item", {}, h("button.library-row", { type: "button", onclick: () => go("library", { file: file.id }) }, picture, text));
  }

  /** @param {HTMLElement} element @param {import("../library.js").LibraryFile} file */
  function update(element, file) {
    element.firstElementChild?.setAttribute("aria-current", String(file.id === shown));
  }

  function show() {
    const { values } = settings;
    const found = matching(library.files, values.search).filter((file) => (!values.kind || file.kind === values.kind) && (!values.family || file.family === values.family));
    const filters = JSON.stringify(values);
    const place = filters === shownFilters ? scroller.scrollTop : 0;
    const content = filters + found.map((file) => [file.id, file.has_preview, file.strength, file.trigger_words].join());
    if (content !== shownContent) list.setItems(found);
    if (content !== shownContent && place) scroller.scrollTop = place; // what changed is a file, not what is looked for
    [shownFilters, shownContent] = [filters, content];
    const all = library.files.length;
    count.textContent = found.length === all ? `${all.toLocaleString("en")} files${library.isComplete ? "" : " so far"}` : `${found.length.toLocaleString("en")} of ${all.toLocaleString("en")} files`;
    if (library.isComplete && !all) count.textContent = "No files yet: train one, download one below, or start the server with --library FOLDER.";
    error.textContent = library.error;
    error.hidden = !library.error;
    const names = [...new Set(library.files.map((file) => file.family).filter(Boolean))].sort();
    if (names.join() !== families) {
      families = names.join();
      family.setChoices([["", "any family"], ...names]);
    }
  }

  async function searchFolders() {
    refresh.disabled = true;
    try {
      await post("api/library/refresh");
      await load();
      say("The folders were searched again.");
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      error.textContent = problem.message;
      error.hidden = false;
    } finally {
      refresh.disabled = false;
    }
  }

  const showSoon = debounce(show, SEARCH_PAUSE);
  settings.subscribe(showSoon);
  subscribe(showSoon);
  if (!library.files.length) load();
  show();
  return {
    /** @param {URLSearchParams} parameters */
    show(parameters) {
      const before = shown;
      shown = parameters.get("file") ?? "";
      const isNew = shown !== before;
      root.classList.toggle("has-file", Boolean(shown));
      empty.hidden = Boolean(shown);
      list.refresh();
      if (isNew) page.open(shown, !isFirst);
      if (isNew && !shown) list.focus(Math.max(0, list.items.findIndex((file) => file.id === before)));
      isFirst = false;
    },
  };
}
