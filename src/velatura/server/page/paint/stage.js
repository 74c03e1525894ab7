/** The picture that is looked at, or the one that is being painted, with its recipe and what can be done with it. */

import { ApiError, get, url } from "../api.js";
import { fill, h } from "../dom.js";
import { sideOf } from "../library.js";
import { describe, differences, settings } from "../recipe.js";

const SMALL_PIXELS = 160; // pictures up to here are shown with sharp pixels, as the tiny base's are

/**
 * @typedef {object} StoredPicture
 * @property {number} id
 * @property {string} job
 * @property {number} position
 * @property {number} width
 * @property {number} height
 * @property {number} created Seconds since 1970.
 * @property {Record<string, any>} recipe
 * @property {string[]} effects
 */

/** @typedef {{title: string, why: string, run: (picture: StoredPicture) => void}} PictureAction */

/** The large picture, the progress above it, and the facts below it. */
export class Stage {
  /** @param {PictureAction[]} actions @param {string[]} examples Prompts to begin with. */
  constructor(actions, examples) {
    this.examples = examples;
    this.actions = actions;
    /** @type {StoredPicture | null} */
    this.picture = null;
    this.view = h("div.stage-view", {});
    this.facts = h("div.stage-facts", {});
  }

  /** Show what a first visitor can do. */
  showEmpty() {
    const buttons = this.examples.map((text) => h("button", { type: "button", onclick: () => settings.set({ prompt: text }) }, text));
    fill(
      this.view,
      h("div.stage-empty", {}, h("p", {}, "Your picture appears here. Write what it shows, and press Paint."), buttons.length && h("div.row", {}, buttons)),
    );
    fill(this.facts);
    this.picture = null;
  }

  /** @param {StoredPicture} picture */
  async show(picture) {
    this.picture = picture;
    const image = h("img", {
      src: url(`api/pictures/${picture.id}/file`),
      alt: picture.recipe.prompt || "Picture without a prompt",
      width: picture.width,
      height: picture.height,
    });
    frame(image, picture);
    fill(this.view, image);
    fill(this.facts, this.buttons(picture), this.report(picture), h("div.job-warnings"));
    const job = await get(`api/jobs/${picture.job}`).catch(() => null); // it is forgotten after a month
    if (this.picture === picture && job?.warnings.length) {
      const lines = job.warnings.map((/** @type {string} */ line) => h("li", {}, line));
      fill(/** @type {Element} */ (this.facts.querySelector(".job-warnings")), h("h3", {}, "To know"), h("ul", {}, lines));
    }
  }

  /**
   * Show previews of pictures that are being painted.
   *
   * @param {Record<string, string>} previews Data URLs by position.
   */
  preview(previews) {
    const sources = Object.values(previews);
    let box = this.view.querySelector(".stage-previews");
    if (!box || box.children.length !== sources.length) {
      box = h("div.stage-previews", {}, sources.map(() => h("img", { alt: "Preview" })));
      fill(this.view, box);
    }
    sources.forEach((source, index) => (/** @type {HTMLImageElement} */ (/** @type {Element} */ (box).children[index]).src = source));
  }

  /** Show again what was there before a preview. */
  restore() {
    if (!this.view.querySelector(".stage-previews")) return;
    if (this.picture) this.show(this.picture);
    else this.showEmpty();
  }

  /** Say anew in what the recipe differs from the settings. */
  refreshReport() {
    const line = this.facts.querySelector(".differences");
    if (line && this.picture) line.textContent = differenceText(this.picture.recipe);
  }

  /** @param {StoredPicture} picture */
  buttons(picture) {
    return h(
      "div.row",
      {},
      this.actions.map(({ title, why, run }) => h("button", { type: "button", title: why, onclick: () => run(picture) }, title)),
      h("a.button", { href: url(`api/pictures/${picture.id}/file`), download: `velatura-${picture.id}`, title: "The file, with its recipe inside" }, "Save"),
    );
  }

  /** @param {StoredPicture} picture */
  report(picture) {
    const { recipe, effects } = picture;
    return h(
      "div.report",
      {},
      h("p.prompt-text", {}, recipe.prompt || "(no prompt)"),
      recipe.negative && h("p.prompt-text.quiet", {}, `Without: ${recipe.negative}`),
      effects.length > 0 &&
        h("section", {}, h("h3", {}, "What the overlays changed"), effects.map((effect) => h("p.effect", {}, effect))),
      h(
        "details",
        { open: true },
        h("summary", {}, "Recipe"),
        h("dl.facts", {}, describe(recipe).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
        h("p.quiet.differences", {}, differenceText(recipe)),
      ),
    );
  }
}

/** The row of small pictures, the newest first. */
export class Results {
  /** @param {(picture: StoredPicture, isChosen: boolean) => void} show Called for the picture to look at. */
  constructor(show) {
    this.show = show;
    /** @type {StoredPicture[]} */
    this.pictures = [];
    /** @type {number | null} */
    this.next = null;
    this.row = h("ol.results", { "aria-label": "Pictures, the newest first" });
    this.more = h("button", { type: "button", hidden: true, onclick: () => this.load() }, "Older");
    this.error = h("p.error", { hidden: true, role: "alert" });
    this.element = h("section", {}, h("h2.unseen", {}, "Results"), h("div.results-row", {}, this.row, this.more), this.error);
    this.row.addEventListener("keydown", (event) => this.move(event));
  }

  /** Load older pictures, or the newest ones at first. */
  async load() {
    try {
      const page = await get("api/pictures", { limit: 60, before: this.next });
      this.next = page.next;
      this.more.hidden = page.next === null;
      for (const picture of page.pictures) if (!this.find(picture.id)) this.add(picture, false);
      this.error.hidden = true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.error.textContent = error.message;
      this.error.hidden = false;
    }
  }

  /** Ask for pictures that were made while no events came. */
  async catchUp() {
    const page = await get("api/pictures", { limit: 60 }).catch(() => ({ pictures: [] }));
    for (const picture of [...page.pictures].reverse()) if (!this.find(picture.id)) this.add(picture, true);
  }

  /** @param {number} id */
  find(id) {
    return this.pictures.find((picture) => picture.id === id);
  }

  /** @param {StoredPicture} picture @param {boolean} isNew */
  add(picture, isNew) {
    const alt = picture.recipe.prompt || "without a prompt";
    const image = h("img", { loading: "lazy", decoding: "async", alt, src: url(`api/pictures/${picture.id}/thumbnail`) });
    if (picture.width <= SMALL_PIXELS) image.classList.add("small");
    const button = h("button.result", { type: "button", title: `Seed ${picture.recipe.seed}`, onclick: () => this.show(picture, true) }, image);
    button.dataset.id = String(picture.id);
    button.tabIndex = this.pictures.length ? -1 : 0;
    this.pictures[isNew ? "unshift" : "push"](picture);
    this.row[isNew ? "prepend" : "append"](h("li", {}, button));
  }

  /** @param {number} id */
  mark(id) {
    for (const button of this.buttons()) {
      const isShown = button.dataset.id === String(id);
      button.setAttribute("aria-current", String(isShown));
      button.tabIndex = isShown ? 0 : -1;
    }
  }

  /** @returns {HTMLElement[]} */
  buttons() {
    return [.../** @type {NodeListOf<HTMLElement>} */ (this.row.querySelectorAll("button"))];
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const buttons = this.buttons();
    const index = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const targets = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: buttons.length - 1 };
    const target = buttons[targets[/** @type {"Home"} */ (event.key)]];
    if (!target) return;
    event.preventDefault();
    target.focus();
  }
}

/** @param {Record<string, any>} recipe */
function differenceText(recipe) {
  const all = differences(recipe, settings.values, sideOf(settings.get("base")));
  const others = all.filter(({ name }) => name !== "seed" || settings.get("seed") !== null);
  const changed = others.map(({ label }) => label.toLowerCase());
  return changed.length ? `Differs from your settings in ${changed.join(", ")}.` : "These are your settings.";
}

/** @template {HTMLElement} Image @param {Image} image @param {{width: number, height: number}} size */
function frame(image, { width, height }) {
  image.classList.toggle("small", Math.max(width, height) <= SMALL_PIXELS);
  image.style.aspectRatio = `${width} / ${height}`;
  return image;
}
