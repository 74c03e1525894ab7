/** The pictures of a training: drop or choose them, read and write their captions, and mend what would spoil it. */

import { ApiError, get, put, remove, url } from "../api.js";
import { say } from "../app.js";
import { dropTarget } from "../drop.js";
import { debounce, fill, h } from "../dom.js";
import { choiceField, setError } from "../fields.js";
import { submit, whenOver } from "../jobs.js";
import { droppedFiles, upload } from "./upload.js";
import { loadBases, settings, trainingPixels } from "./settings.js";

const CHECK_PAUSE = 1200; // milliseconds after the last change
const TYPES = ".png,.jpg,.jpeg,.webp,.txt";
const CAPTIONERS = { tiny: "in the tiny base's words", blip: "in sentences (BLIP)", wd14: "as tags (WD14)" };
const FOCUSES = [["salient", "what stands out"], ["middle", "the middle"], ["faces", "faces"]];
/** @typedef {{grade: string, kind: string, file: string, text: string}} Finding */
/** @typedef {{figure: HTMLElement, box: HTMLElement, caption: HTMLTextAreaElement, flaws: HTMLElement, error: HTMLElement, saved: string}} Item */

/** @returns {HTMLElement} */
export function picturesPart() {
  /** @type {Map<string, Item>} */
  const items = new Map();
  /** @type {any} */
  let dataset = null;
  let turn = 0;
  const error = h("p.error", { role: "alert", hidden: true });
  const status = h("p.quiet", { role: "status" });
  const refused = h("ul.findings", { hidden: true });
  const findings = h("ul.findings");
  const grid = h("div.pictures");
  const tools = h("div.train-tools", { hidden: true });
  const input = h("input.unseen", { type: "file", id: "train-files", accept: TYPES, multiple: true, onchange: () => add([...input.files]) });
  const drop = h("label.drop", { htmlFor: "train-files" }, h("strong", {}, "Drop pictures or a folder here, or choose pictures"), h("span", {}, "PNG, JPEG or WebP, and their captions as text files. Ten or more that share a style or a subject."));
  const choice = choiceField(settings, "dataset", { label: "Set of pictures", choices: [["", "none yet: drop some"]], why: "Folders of pictures on the server, and the sets that come with velatura." });
  const captioner = h("select", {}, Object.entries(CAPTIONERS).map(([value, text]) => h("option", { value }, text)));
  captioner.setAttribute("aria-label", "How captions are proposed");
  const propose = h("button", { type: "button", onclick: () => caption(captioner.value) }, "Propose missing captions");
  const focus = choiceField(settings, "focus", { label: "Crop to", choices: /** @type {any} */ (FOCUSES), why: "What a crop keeps; the frames show it." });
  const crop = h("button", { type: "button", onclick: cropAll }, "Crop");
  fill(tools, h("div.row", {}, propose, captioner), h("div.row.train-crop", {}, focus, crop));
  const element = h("section.train-pictures", {}, h("h2", {}, "Pictures"), choice, input, drop, error, refused, status, tools, findings, grid);
  dropTarget(element, drop, (files, transfer) => droppedFiles(files, transfer).then(({ files: all, name }) => add(all, name)).catch(refuse));
  const checkSoon = debounce(() => check(), CHECK_PAUSE);

  /** @param {unknown} problem */
  function refuse(problem) {
    if (!(problem instanceof ApiError)) throw problem;
    error.textContent = problem.message;
    error.hidden = false;
    status.textContent = "";
  }

  /** @param {File[]} files @param {string} [folder] */
  async function add(files, folder) {
    error.hidden = true;
    refused.hidden = true;
    input.value = "";
    if (!files.length) return;
    try {
      const into = dataset && !dataset.is_bundled ? dataset.name : null;
      const result = await upload(files, into, folder, (done) => (status.textContent = `Sending pictures: ${done} of ${files.length}`));
      const texts = Object.entries(result.refused).map(([name, reason]) => h("li", {}, `${name}: ${reason}`));
      fill(refused, texts);
      refused.hidden = !texts.length;
      if (!result.stored) {
        status.textContent = "";
        return;
      }
      await listDatasets();
      dataset = { name: result.name, files: [], is_bundled: false }; // so that it is opened once
      settings.set({ dataset: result.name });
      await open(result.name);
      if (dataset.files.some((/** @type {any} */ file) => !file.caption)) await caption("tiny");
    } catch (problem) {
      refuse(problem);
    }
  }

  async function listDatasets() {
    const all = await get("api/datasets");
    choice.setChoices([["", "none yet: drop some"], ...all.map((/** @type {any} */ set) => [set.name, `${set.name}, ${set.pictures} pictures${set.is_bundled ? ", with velatura" : ""}`])]);
    if (settings.get("dataset") && !all.some((/** @type {any} */ set) => set.name === settings.get("dataset"))) settings.set({ dataset: null });
  }

  /** @param {string | null} name */
  async function open(name) {
    const now = ++turn;
    error.hidden = true;
    const found = name ? await get(`api/datasets/${encodeURIComponent(name)}`) : null;
    if (now !== turn) return;
    dataset = found;
    items.clear();
    fill(findings);
    fill(grid, ...(dataset?.files ?? []).map(build));
    tools.hidden = !dataset || dataset.is_bundled || !dataset.files.length;
    drop.classList.toggle("compact", Boolean(dataset?.files.length));
    status.textContent = "";
    if (dataset?.files.length) await check();
  }

  /** @param {{file: string, caption: string}} picture */
  function build({ file, caption: saved }) {
    const draft = settings.get("drafts")[draftKey(file)];
    const source = address(file);
    const image = h("img", { src: `${source}?thumbnail=true`, alt: file, loading: "lazy" });
    const box = h("span.crop-box", { hidden: true });
    const text = h("textarea", { rows: 2, value: draft ?? saved, readOnly: dataset.is_bundled, placeholder: "What it shows", onchange: save, oninput: type });
    text.setAttribute("aria-label", `Caption of ${file}`);
    const flaws = h("ul.findings");
    const wrong = h("p.error", { hidden: true, role: "alert" });
    const discard = !dataset.is_bundled && h("button.picture-remove", { type: "button", title: "Delete this picture", onclick: discardPicture }, "×");
    if (discard) discard.setAttribute("aria-label", `Delete ${file}`);
    const figure = h("figure.picture", {}, h("div.picture-frame", {}, image, box, discard), text, wrong, flaws);
    items.set(file, { figure, box, caption: /** @type {any} */ (text), flaws, error: wrong, saved });
    if (draft !== undefined && draft !== saved) save();
    return figure;

    function type() {
      settings.set({ drafts: { ...settings.get("drafts"), [draftKey(file)]: text.value } });
    }
    async function save() {
      await write({ [file]: text.value });
    }
    async function discardPicture() {
      try {
        await remove(`api/datasets/${encodeURIComponent(dataset.name)}/files/${encodePath(file)}`);
        items.delete(file);
        const next = /** @type {HTMLElement | null} */ ((figure.nextElementSibling ?? figure.previousElementSibling)?.querySelector("textarea"));
        figure.remove();
        next?.focus();
        say(`${file} was deleted.`);
        listDatasets();
        checkSoon();
      } catch (problem) {
        refuse(problem);
      }
    }
  }

  /** @param {string} file */
  function address(file) {
    return url(`api/datasets/${encodeURIComponent(dataset.name)}/files/${encodePath(file)}`);
  }

  /** @param {string} file */
  function draftKey(file) {
    return `${dataset.name}/${file}`;
  }

  /** @param {Record<string, string>} captions By file; what is empty or not new is left out. */
  async function write(captions) {
    const changed = Object.entries(captions).filter(([file, text]) => text.trim() && text !== items.get(file)?.saved);
    for (const [file, text] of Object.entries(captions)) showItemError(file, text.trim() ? "" : "A caption needs words: write what the picture shows.");
    if (!changed.length) return;
    try {
      await put(`api/datasets/${encodeURIComponent(dataset.name)}/captions`, { captions: Object.fromEntries(changed) });
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      for (const [file] of changed) showItemError(file, problem.message);
      return;
    }
    const drafts = { ...settings.get("drafts") };
    for (const [file, text] of changed) {
      const item = items.get(file);
      if (item) item.saved = text;
      if (item && item.caption.value !== text && document.activeElement !== item.caption) item.caption.value = text;
      delete drafts[draftKey(file)];
    }
    settings.set({ drafts });
    checkSoon();
  }

  /** @param {string} file @param {string} message */
  function showItemError(file, message) {
    const item = items.get(file);
    if (!item) return;
    item.error.textContent = message;
    item.error.hidden = !message;
    item.caption.setAttribute("aria-invalid", String(Boolean(message)));
  }

  /** @param {string} name Of a captioner. */
  async function caption(name) {
    status.textContent = "Proposing captions ...";
    try {
      const job = await whenOver((await submit({ kind: "caption", dataset: dataset.name, captioner: name })).id);
      if (job.error) throw new ApiError(422, job.error);
      const count = Object.keys(job.result?.captions ?? {}).length;
      await open(dataset.name);
      status.textContent = count ? `${count} captions were proposed: change what is wrong.` : "Every picture has a caption already.";
    } catch (problem) {
      refuse(problem);
    }
  }

  async function cropAll() {
    const pixels = trainingPixels();
    const name = await freeName(`${dataset.name.slice(0, 90)}-${pixels}`);
    status.textContent = "Cropping ...";
    try {
      const request = { kind: "crop", dataset: dataset.name, name, pixels, focus: settings.get("focus") };
      const job = await whenOver((await submit(request)).id);
      if (job.error) throw new ApiError(422, job.error);
      await listDatasets();
      settings.set({ dataset: name });
      say(`The crops are a new set of pictures, ${name}.`);
    } catch (problem) {
      refuse(problem);
    }
  }

  async function check() {
    const now = turn;
    const { name } = dataset;
    try {
      await loadBases(); // whose size the pictures are checked for
      if (now !== turn) return;
      const job = await whenOver((await submit({ kind: "check", dataset: name, pixels: trainingPixels() })).id);
      if (now !== turn) return;
      if (job.error) throw new ApiError(422, job.error);
      showFindings(job.result.findings);
    } catch (problem) {
      if (now === turn) refuse(problem);
    }
  }

  /** @param {Finding[]} all */
  function showFindings(all) {
    const serious = all.filter((finding) => finding.grade !== "note");
    for (const item of items.values()) {
      fill(item.flaws);
      item.box.hidden = true;
    }
    const general = serious.filter((finding) => !items.has(finding.file));
    fill(findings, ...general.map((finding) => h(`li.${finding.grade}`, {}, finding.file === "." ? "" : `${finding.file}: `, forPage(finding.text), mend(finding))));
    for (const finding of serious) items.get(finding.file)?.flaws.append(h(`li.${finding.grade}`, {}, forPage(finding.text)));
    const wide = serious.filter((finding) => finding.kind === "cropped").map((finding) => finding.file);
    const [count, stops] = [items.size, serious.filter((finding) => finding.grade === "error").length];
    const concerned = new Set(serious.map((finding) => finding.file)).size;
    const text = stops ? `${stops} of them would stop a training.` : concerned ? "They would be trained as they are." : "";
    if (!/proposed/.test(status.textContent ?? "")) status.textContent = `${count} pictures. ${concerned ? `${serious.length} remarks. ${text}` : "Nothing would spoil a training."}`;
    crop.textContent = `Crop all to ${trainingPixels()} px`;
    /** @type {HTMLElement} */ (tools.querySelector(".train-crop")).hidden = !wide.length;
    for (const file of wide) showBox(file);
  }

  /** @param {string} file Show what a crop would keep of a picture. */
  async function showBox(file) {
    const item = items.get(file);
    if (!item) return;
    const path = `api/datasets/${encodeURIComponent(dataset.name)}/boxes/${encodePath(file)}`;
    try {
      const { width, height, boxes } = await get(path, { pixels: trainingPixels(), focus: settings.get("focus") });
      const [left, top, right, bottom] = boxes[0];
      const share = (/** @type {number} */ part, /** @type {number} */ whole) => `${(100 * part) / whole}%`;
      Object.assign(item.box.style, { left: share(left, width), top: share(top, height), width: share(right - left, width), height: share(bottom - top, height) });
      item.box.hidden = false;
    } catch (problem) {
      if (problem instanceof ApiError) setError(focus, problem.message);
    }
  }

  /** @param {Finding} finding @returns {Node | false} A button for what one click can mend. */
  function mend({ kind, text }) {
    if (kind !== "frequent" || dataset.is_bundled) return false;
    const words = [...text.matchAll(/'([^']+)' \(\d+ of \d+\)/g)].map(([, word]) => word);
    return h("span.row", {}, words.map((word) => h("button.small-button", { type: "button", onclick: () => takeOut(word) }, `Take “${word}” out of all captions`)));
  }

  /** @param {string} word */
  function takeOut(word) {
    const pattern = new RegExp(`(?<![\\p{L}\\p{N}])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?![\\p{L}\\p{N}])`, "giu");
    /** @type {Record<string, string>} */
    const changes = {};
    for (const [file, { caption: box }] of items) {
      const shorter = box.value.replace(pattern, "").replace(/\s+/g, " ").replace(/( ?,)+/g, ",").replace(/^[ ,]+|[ ,]+$/g, "");
      if (shorter && shorter !== box.value) changes[file] = shorter;
    }
    write(changes);
  }

  settings.subscribe((names) => {
    if (names.includes("dataset") && settings.get("dataset") !== (dataset?.name ?? null)) open(settings.get("dataset")).catch(refuse);
    if ((names.includes("pixels") || names.includes("base")) && dataset?.files.length) checkSoon();
    if (names.includes("focus")) {
      setError(focus, "");
      for (const [file, item] of items) if (!item.box.hidden) showBox(file);
    }
  });
  listDatasets()
    .then(() => open(settings.get("dataset")))
    .catch(refuse);
  return element;
}

/** @param {string} text @returns {string} A finding without what to type in a terminal. */
function forPage(text) {
  return text.replace(/; try velatura .*$|, or give the name [^;]*--name|; to learn the first line, .*$/, "");
}

/** @param {string} path */
function encodePath(path) {
  return path.split("/").map(encodeURIComponent).join("/");
}

/** @param {string} wanted @returns {Promise<string>} A name that no dataset has. */
async function freeName(wanted) {
  const names = new Set((await get("api/datasets")).map((/** @type {any} */ set) => set.name));
  let name = wanted;
  for (let number = 2; names.has(name); number += 1) name = `${wanted}-${number}`;
  return name;
}
