/** A file's page: what it is, what it fits and who opens it; its picture, its notes, and what can be made of it. */

import { ApiError, get, post, put, url } from "../api.js";
import { go, say } from "../app.js";
import { fill, h } from "../dom.js";
import { bases, load, misfit } from "../library.js";
import { settings as paintSettings } from "../recipe.js";
import { Store } from "../store.js";
import { dropTarget } from "../drop.js";
import { actions, NO_OVERLAYS } from "./actions.js";
import { notesForm } from "./notes.js";

const RECENT_PICTURES = 24;
const KIB = 1024;
/** Notes that were typed and not saved yet, by the ids of files. */
export const drafts = new Store("library-notes", { notes: {} });

/** @param {() => void} close */
export function filePage(close) {
  const element = h("section.library-file", { hidden: true });
  let shown = "";

  /** @param {string} id @param {boolean} [takesFocus] After a click; not when the page was loaded with this address. */
  async function open(id, takesFocus = false) {
    shown = id;
    element.hidden = !id;
    if (!id) return;
    fill(element, h("p.quiet", {}, "Reading the file ..."));
    try {
      const file = await get(`api/library/${id}`);
      if (shown !== id) return;
      show(file);
      if (takesFocus) /** @type {HTMLElement} */ (element.querySelector("h2")).focus();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (shown === id) fill(element, back(), h("p.error", { role: "alert" }, error.message));
    }
  }

  function back() {
    return h("button.library-back", { type: "button", onclick: close }, "All files");
  }

  /** @param {any} file */
  function show(file) {
    const title = h("h2", { tabIndex: -1 }, file.name);
    fill(
      element,
      back(),
      title,
      h("p", {}, file.summary),
      file.error && h("p.error", {}, file.error),
      verdict(file),
      file.tag && h("div.row", {}, h("button.primary", { type: "button", onclick: () => use(file) }, "Use in Paint"), h("code", {}, file.tag)),
      picture(file),
      notesForm(file, drafts, (changed) => {
        show(changed);
        load();
      }),
      facts(file),
      ...actions(file),
    );
  }

  /** @param {any} file */
  function picture(file) {
    const error = h("p.error", { role: "alert", hidden: true });
    const image = h("img.library-picture", { alt: `Preview of ${file.name}`, hidden: !file.has_preview, src: file.has_preview ? address() : "" });
    const chooser = h("div.library-recent", { hidden: true });
    const input = h("input.unseen", { type: "file", id: "library-picture", accept: "image/png,image/jpeg,image/webp", onchange: () => input.files[0] && upload(input.files[0]) });
    const drop = h("label.drop.compact", { htmlFor: "library-picture" }, file.has_preview ? "Drop or choose another picture" : "Drop or choose a picture for it");
    const recent = h("button", { type: "button", onclick: showRecent, "aria-expanded": "false" }, "Take one that was painted");
    const box = h("div.library-preview", {}, image, h("div", {}, input, drop, h("div.row", {}, recent), chooser, error));
    dropTarget(box, drop, ([first]) => first && upload(first));

    function address() {
      return `${url(`api/library/${file.id}/thumbnail`)}?${Date.now()}`;
    }
    /** @param {File} blob */
    async function upload(blob) {
      try {
        const { reference } = await post("api/inputs", blob);
        await choose({ image: reference });
      } catch (problem) {
        refuse(problem);
      }
    }
    /** @param {any} choice */
    async function choose(choice) {
      try {
        await put(`api/library/${file.id}/thumbnail`, choice);
        file.has_preview = true;
        image.src = address();
        image.hidden = false;
        chooser.hidden = true;
        error.hidden = true;
        say("The picture was saved beside the file.");
        load();
      } catch (problem) {
        refuse(problem);
      }
    }
    async function showRecent() {
      const { pictures } = await get("api/pictures", { limit: RECENT_PICTURES }).catch(() => ({ pictures: [] }));
      chooser.hidden = false;
      recent.setAttribute("aria-expanded", "true");
      const buttons = pictures.map((/** @type {any} */ one) => {
        const small = h("img", { src: url(`api/pictures/${one.id}/thumbnail`), alt: one.recipe.prompt || "without a prompt", loading: "lazy" });
        return h("button", { type: "button", onclick: () => choose({ picture: one.id }) }, small);
      });
      fill(chooser, ...(buttons.length ? buttons : [h("p.quiet", {}, "Nothing was painted yet.")]));
    }
    /** @param {unknown} problem */
    function refuse(problem) {
      if (!(problem instanceof ApiError)) throw problem;
      error.textContent = problem.message;
      error.hidden = false;
    }
    return box;
  }

  return { element, open };
}

/** @param {any} file Put its tag into the prompt of the tab Paint. */
function use(file) {
  const prompt = (paintSettings.get("prompt") ?? "").trim();
  if (!prompt.includes(file.tag)) paintSettings.set({ prompt: `${prompt} ${file.tag}`.trim() });
  go("paint");
  say(`${file.tag} is in the prompt.`);
}

/** @param {any} file */
function verdict(file) {
  const own = bases.find((base) => base.is_default);
  const isOverlay = !["checkpoint", ...NO_OVERLAYS].includes(file.kind);
  const problem = isOverlay ? misfit(file, null) : "";
  const fits = !isOverlay || !file.family ? "" : problem || `Fits ${own?.name ?? "the server's base"}`;
  const programs = Object.entries(file.opens).map(([name, answer]) => h("li", { class: answer.opens ? "" : "error" }, `${name}: ${answer.opens ? "opens it" : "does not open it"}${answer.why ? `, ${answer.why}` : ""}`));
  const warnings = [...file.warnings, ...file.unread].map((text) => h("li.warning", {}, text));
  return h("div", {}, fits && h(problem ? "p.error" : "p", {}, fits), programs.length > 0 && h("ul.findings", { "aria-label": "Programs that open it" }, programs), warnings.length > 0 && h("ul.findings", {}, warnings));
}

/** @param {any} file */
function facts(file) {
  const trained = [file.base, file.base_hash && `(${file.base_hash})`].filter(Boolean).join(" ");
  const values = file.parameters ? `${file.parameters.toLocaleString("en")}, ${file.precisions.join(", ")}` : "";
  /** @type {[string, string][]} */
  const rows = [
    ["Place", file.place],
    ["Size", file.bytes === null ? "" : size(file.bytes)],
    ["Structure", file.outline],
    ["Made for", [file.family !== file.base && file.family, trained].filter(Boolean).join(" ")],
    ["Trained", file.steps ? `${file.steps.toLocaleString("en")} steps` : ""],
    ["Values", values],
    ["Also called", file.aliases.filter((/** @type {string} */ alias) => alias !== file.name).join(", ")],
    ...Object.entries(file.details).map(([name, value]) => /** @type {[string, string]} */ ([name[0].toUpperCase() + name.slice(1), String(value)])),
    ...Object.entries(file.hashes).map(([name, value]) => /** @type {[string, string]} */ ([name, String(value)])),
  ];
  const shown = rows.filter(([, value]) => value);
  return h("details", { open: true }, h("summary", {}, "Facts"), h("dl.facts", {}, shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

/** @param {number} bytes */
function size(bytes) {
  if (bytes >= KIB ** 3) return `${(bytes / KIB ** 3).toFixed(2)} GiB`;
  return bytes >= KIB ** 2 ? `${(bytes / KIB ** 2).toFixed(1)} MiB` : `${(bytes / KIB).toFixed(1)} KiB`;
}
