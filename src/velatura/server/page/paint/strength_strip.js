/** The strength strip: one seed at seven strengths of an overlay, painted together; a click chooses one. */

import { get, url } from "../api.js";
import { fill, h } from "../dom.js";
import { follow, live } from "../jobs.js";
import { settings, toRecipe } from "../recipe.js";
import { Store } from "../store.js";
import { addCall, findCall, setStrength, show } from "./prompt_text.js";

export const STRENGTHS = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5];
const SEED_COUNT = 4294967294; // seeds that are drawn are below this number, as in A1111

/** The strip that is shown: its job, and the overlay. A reload keeps it. */
const strip = new Store("strip", { job: null, overlay: null, seed: null });

/**
 * Return the recipes of a strip: the settings with one seed, at each strength of an overlay.
 *
 * @param {{kind: string, name: string, strength?: number | null}} overlay
 * @returns {Record<string, any>[]}
 */
export function stripRecipes(overlay) {
  const prompt = settings.get("prompt");
  const called = findCall(prompt, overlay) ? prompt : addCall(prompt, overlay, 1);
  const given = settings.get("seed");
  const seed = given === null || given === -1 ? Math.floor(Math.random() * SEED_COUNT) : given;
  const recipe = toRecipe(settings.values);
  return STRENGTHS.map((strength) => ({ ...recipe, seed, prompt: setStrength(called, overlay, strength) }));
}

/**
 * Show the strip of a job.
 *
 * @param {string} job
 * @param {{kind: string, name: string}} overlay
 * @param {number} seed
 */
export function startStrip(job, { kind, name }, seed) {
  strip.set({ job, overlay: { kind, name }, seed });
}

/**
 * Build the part that shows the strip.
 *
 * @param {(picture: number) => void} look Called with the id of the picture that was chosen.
 * @returns {HTMLElement}
 */
export function strengthStrip(look) {
  const title = h("h2", {});
  const tiles = h("div.strip-tiles", { role: "group" });
  const close = h("button", { type: "button", onclick: () => strip.set({ job: null, overlay: null, seed: null }) }, "Close");
  const element = h("section.strip", { hidden: true }, h("div.row", {}, title, close), tiles);
  /** @type {Map<number, number>} Ids of pictures by their positions. */
  let pictures = new Map();

  const mark = () => {
    const overlay = strip.get("overlay");
    const call = overlay && findCall(settings.get("prompt"), overlay);
    [...tiles.children].forEach((tile, index) => tile.setAttribute("aria-pressed", String(call?.strength === STRENGTHS[index])));
  };
  const choose = (/** @type {number} */ index) => {
    const overlay = strip.get("overlay");
    const prompt = settings.get("prompt");
    const called = findCall(prompt, overlay) ? prompt : addCall(prompt, overlay, 1);
    settings.set({ prompt: setStrength(called, overlay, STRENGTHS[index]), seed: strip.get("seed") });
    const picture = pictures.get(index);
    if (picture !== undefined) look(picture);
    mark();
  };
  const draw = async () => {
    const { job, overlay, seed } = strip.values;
    element.hidden = !job;
    if (!job) return;
    pictures = new Map();
    title.textContent = `Strength of ${overlay.name}, seed ${seed}`;
    tiles.setAttribute("aria-label", `Choose a strength of ${overlay.name}`);
    fill(
      tiles,
      STRENGTHS.map((strength, index) =>
        h("button.tile", { type: "button", onclick: () => choose(index), "aria-pressed": "false" }, h("span.tile-blank"), h("span", {}, show(strength))),
      ),
    );
    mark();
    const { pictures: made } = await get("api/pictures", { job }).catch(() => ({ pictures: [] }));
    for (const picture of made) place(picture.position, picture.id);
    if (made.length || live.has(job)) return;
    await get(`api/jobs/${job}`).catch(() => strip.set({ job: null })); // another server's, or long ago
  };
  const place = (/** @type {number} */ position, /** @type {number} */ id) => {
    pictures.set(position, id);
    showImage(position, url(`api/pictures/${id}/thumbnail`));
  };
  const showImage = (/** @type {number} */ position, /** @type {string} */ source) => {
    const tile = tiles.children[position];
    if (!tile) return;
    let image = tile.querySelector("img");
    if (!image) {
      image = /** @type {HTMLImageElement} */ (h("img.small", { alt: "" }));
      tile.firstElementChild?.replaceWith(image);
    }
    image.src = source;
  };

  follow((job, event) => {
    if (job.id !== strip.get("job") || !event) return;
    if (event.type === "picture") place(event.position, event.id);
    const previews = event.type === "step" ? event.previews ?? {} : {};
    for (const [position, source] of Object.entries(previews)) {
      if (!pictures.has(Number(position))) showImage(Number(position), source);
    }
  });
  strip.subscribe((names) => names.includes("job") && draw());
  settings.subscribe((names) => names.includes("prompt") && mark());
  draw();
  return element;
}
