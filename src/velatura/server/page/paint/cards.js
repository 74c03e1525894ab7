/** The cards of overlays: a click puts one into the prompt or takes it out, a slider changes its strength there. */

import { debounce, fill, h } from "../dom.js";
import { post, url } from "../api.js";
import { OVERLAY_KINDS, library, load, matching, misfit, subscribe } from "../library.js";
import { settings } from "../recipe.js";
import { Store } from "../store.js";
import { VirtualList } from "../virtual.js";
import { triggerWords } from "./prompt_box.js";
import { addCall, findCall, removeCall, setStrength, show } from "./prompt_text.js";

const CARD = { height: 104, minWidth: 250 };
const SEARCH_PAUSE = 30;
const MOST = 1.5; // at the right end of a slider; stronger ones are typed

/** @typedef {import("../library.js").LibraryFile} LibraryFile */

/** Search and filters, which a reload keeps. */
const chosen = new Store("cards", { search: "", kind: "", fits: false, active: false });

/**
 * Build the part with the cards.
 *
 * @param {(file: LibraryFile) => void} paintStrip Called to paint an overlay at several strengths.
 * @returns {HTMLElement}
 */
export function overlayCards(paintStrip) {
  const search = h("input", { type: "search", placeholder: "Search", value: chosen.get("search"), "aria-label": "Search overlays" });
  const kind = h("select", { "aria-label": "Kind of overlay", onchange: () => chosen.set({ kind: kind.value }) });
  kind.append(h("option", { value: "" }, "All kinds"), ...Object.entries(OVERLAY_KINDS).map(([value, text]) => h("option", { value }, text)));
  kind.value = chosen.get("kind");
  const fits = toggle("fits", "Fits the base");
  const active = toggle("active", "In the prompt");
  const note = h("p.note", { role: "status" });
  const scroller = h("div.card-list", { "aria-label": "Overlays" });
  /** @type {VirtualList<LibraryFile>} */
  const list = new VirtualList(scroller, { ...CARD, build: (file) => card(file, paintStrip), update });

  const filter = () => {
    const overlays = library.files.filter((file) => file.kind in OVERLAY_KINDS);
    const base = settings.get("base");
    const prompt = settings.get("prompt");
    const found = matching(overlays, chosen.get("search")).filter(
      (file) =>
        (!chosen.get("kind") || file.kind === chosen.get("kind")) &&
        (!chosen.get("fits") || !misfit(file, base)) &&
        (!chosen.get("active") || findCall(prompt, file)),
    );
    list.setItems(found);
    fill(note, noteText(overlays.length, found.length));
    note.hidden = overlays.length > 0 && found.length > 0;
  };
  const filterSoon = debounce(filter, SEARCH_PAUSE);
  search.addEventListener("input", () => chosen.set({ search: search.value }));
  chosen.subscribe(() => {
    if (search.value !== chosen.get("search")) search.value = chosen.get("search");
    kind.value = chosen.get("kind");
    filterSoon();
  });
  let known = "";
  subscribe(() => {
    const now = `${library.files.length} ${library.isComplete} ${library.error} ${library.files.at(0)?.id}`;
    if (now === known) list.refresh();
    else filter();
    known = now;
  });
  settings.subscribe((names) => {
    if (names.includes("base") && chosen.get("fits")) filterSoon();
    if (names.includes("prompt") || names.includes("base")) list.refresh();
  });
  filter();
  const reload = h("button", { type: "button", title: "Search the folders again", onclick: () => refreshLibrary(reload) }, "Reload");
  return h(
    "section.cards",
    {},
    h("h2", {}, "Overlays"),
    h("div.row.card-filters", {}, search, kind, fits, active, reload),
    note,
    scroller,
  );
}

/** @param {HTMLElement & Record<string, any>} button */
async function refreshLibrary(button) {
  button.disabled = true;
  await post("api/library/refresh").catch(() => {});
  await load();
  button.disabled = false;
}

/** @param {"fits" | "active"} name @param {string} text */
function toggle(name, text) {
  const button = h("button", { type: "button", onclick: () => chosen.set({ [name]: !chosen.get(name) }) }, text);
  const update = () => button.setAttribute("aria-pressed", String(chosen.get(name)));
  chosen.subscribe(update);
  update();
  return button;
}

/** @param {number} all @param {number} found */
function noteText(all, found) {
  if (library.error) return library.error;
  if (!all) return library.isComplete ? "No overlays yet: start the server with --library and the folder of your models, or train one." : "Reading the library ...";
  return found ? "" : "No overlay matches. Take away a filter, or search for less.";
}

/** @param {LibraryFile} file @param {(file: LibraryFile) => void} paintStrip */
function card(file, paintStrip) {
  const kind = OVERLAY_KINDS[/** @type {"lora"} */ (file.kind)];
  const picture = file.has_preview
    ? h("img", { loading: "lazy", decoding: "async", alt: "", src: url(`api/library/${file.id}/thumbnail`) })
    : h("span.card-blank", { "aria-hidden": "true" }, kind.slice(0, 1));
  const words = file.trigger_words.join(", ");
  const button = h(
    "button.card-main",
    { type: "button", onclick: () => switchCall(file), title: file.place },
    picture,
    h(
      "span.card-text",
      {},
      h("span.card-name", {}, file.name),
      h("span.card-kind", {}, [kind, file.family].filter(Boolean).join(" · ")),
      h("span.card-words", { title: words }, words || " "),
    ),
  );
  const slider = h("input", { type: "range", min: 0, max: MOST, step: 0.05, "aria-label": `Strength of ${file.name}` });
  const number = h("output.card-strength", {});
  slider.addEventListener("input", () => {
    settings.set({ prompt: setStrength(settings.get("prompt"), file, Number(slider.value)) });
    number.textContent = show(Number(slider.value));
  });
  const strip = h(
    "button.small-button",
    { type: "button", title: "Paint this seed at 0, 0.25, ... 1.5 of this overlay, and choose", onclick: () => paintStrip(file) },
    "Strip",
  );
  strip.setAttribute("aria-label", `Strength strip of ${file.name}`);
  return h(
    "div.card",
    {},
    h("div.card-box", {}, button, h("div.card-foot", {}, h("span.card-note"), h("span.card-slider", { hidden: true }, slider, number, strip))),
  );
}

/** @param {HTMLElement} element @param {LibraryFile} file */
function update(element, file) {
  const call = findCall(settings.get("prompt"), file);
  const part = (/** @type {string} */ name) => /** @type {any} */ (element.querySelector(name));
  const main = part(".card-main");
  const isActive = String(call !== null);
  if (main.getAttribute("aria-pressed") !== isActive) main.setAttribute("aria-pressed", isActive);
  element.classList.toggle("active", call !== null);
  const wrong = file.error ? "Cannot be read" : misfit(file, settings.get("base"));
  element.classList.toggle("misfit", Boolean(wrong));
  const note = part(".card-note");
  if (note.textContent !== wrong) {
    note.textContent = wrong;
    note.title = file.error ?? wrong;
  }
  const hasSlider = call !== null && call.strength !== null;
  part(".card-slider").hidden = !hasSlider;
  note.hidden = hasSlider && !wrong;
  if (!hasSlider) return;
  const slider = part("input");
  slider.min = String(Math.min(0, call.strength ?? 0));
  slider.max = String(Math.max(MOST, call.strength ?? 0));
  if (Number(slider.value) !== call.strength) slider.value = String(call.strength);
  part("output").textContent = show(call.strength ?? 1);
}

/** @param {LibraryFile} file Put it into the prompt, or take it out. */
function switchCall(file) {
  const prompt = settings.get("prompt");
  const words = triggerWords(file);
  const changed = findCall(prompt, file) ? removeCall(prompt, file, words) : addCall(prompt, file, file.strength ?? 1, words);
  settings.set({ prompt: changed });
}
