/** Picture info: the recipe inside a dropped picture, what is missing here, and how it differs from the settings. */

import { ApiError, post } from "../api.js";
import { go, say } from "../app.js";
import { dropTarget } from "../drop.js";
import { fill, h } from "../dom.js";
import { bases, load, sideOf } from "../library.js";
import { describe, differences, settings, useRecipe } from "../recipe.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const KINDS = { hypernet: "hypernetwork", lora: "LoRA", vae: "VAE" };

/** @param {HTMLElement} root */
export function mount(root) {
  const shown = h("div.info-picture");
  const error = h("p.error", { role: "alert", hidden: true });
  const result = h("div.info-result", { "aria-live": "polite" });
  const input = h("input.unseen", { type: "file", id: "info-file", accept: TYPES.join(), onchange: () => take(input.files) });
  const drop = h(
    "label.drop",
    { htmlFor: "info-file" },
    h("strong", {}, "Drop a picture here, or choose one"),
    h("span", {}, "PNG, JPEG or WebP of velatura, A1111, ComfyUI, Forge, Fooocus, InvokeAI and others. Or paste one, or a text copied from Civitai."),
  );
  root.classList.add("info");
  root.append(h("h1.unseen", {}, "Picture info"), h("div.info-left", {}, input, drop, shown, error), result);

  /** @param {FileList | File[] | null} files */
  async function take(files) {
    const file = files?.[0];
    if (!file) return;
    error.hidden = true;
    showPicture(file);
    await read(file);
    input.value = "";
  }

  /** @param {Blob} file */
  function showPicture(file) {
    const image = h("img", { alt: "The picture that was dropped", src: URL.createObjectURL(file) });
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 128));
    image.addEventListener("error", () => (shown.hidden = true));
    shown.hidden = false;
    fill(shown, image);
  }

  /** @param {Blob} body A picture or a text. */
  async function read(body) {
    drop.setAttribute("aria-busy", "true");
    try {
      const [reading] = await Promise.all([post("api/recipes/read", body), bases.length ? null : load()]);
      fill(result, ...view(reading));
      say("The recipe was read.");
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      fill(result);
      error.textContent = problem.message;
      error.hidden = false;
    } finally {
      drop.removeAttribute("aria-busy");
    }
  }

  dropTarget(root, drop, take);
  document.addEventListener("paste", (event) => {
    const isTyping = /** @type {HTMLElement} */ (event.target).closest("input, textarea");
    if (root.hidden || isTyping || !event.clipboardData) return;
    const { files } = event.clipboardData;
    const text = event.clipboardData.getData("text/plain");
    if (files.length) take(files);
    else if (text.trim()) {
      shown.hidden = true;
      error.hidden = true;
      read(new Blob([text], { type: "text/plain" }));
    }
  });
}

/**
 * @param {{recipe: Record<string, any>, text: string, warnings: string[], missing: {kind: string, name: string}[]}} reading
 */
function view(reading) {
  const { recipe } = reading;
  const others = differences(recipe, settings.values, sideOf(settings.get("base"))).filter(({ name }) => !["prompt", "negative"].includes(name));
  const use = () => {
    useRecipe(recipe, bases.map((base) => base.name));
    go("paint");
  };
  return [
    h(
      "div.row",
      {},
      h("button.primary", { type: "button", onclick: use }, "Use these settings"),
      h("button", { type: "button", onclick: () => copy(reading.text) }, "Copy as text"),
    ),
    reading.missing.length > 0 &&
      section("Missing here", h("ul", {}, reading.missing.map((part) => h("li", {}, missingText(part))))),
    reading.warnings.length > 0 &&
      section("Not understood", h("ul", {}, reading.warnings.map((warning) => h("li", {}, warning)))),
    section("Prompt", h("p.prompt-text", {}, recipe.prompt || "(empty)")),
    recipe.negative && section("Negative prompt", h("p.prompt-text", {}, recipe.negative)),
    section("Settings", facts(describe(recipe))),
    section(
      "What differs from your settings",
      others.length
        ? h(
            "table",
            {},
            h("thead", {}, h("tr", {}, ...["Setting", "This picture", "Yours"].map((text) => h("th", { scope: "col" }, text)))),
            h("tbody", {}, others.map(({ label, theirs, mine }) => h("tr", {}, h("th", { scope: "row" }, label), h("td", {}, theirs), h("td", {}, mine)))),
          )
        : h("p", {}, "Only the prompts, if anything: all other settings are the same."),
    ),
  ];
}

/** @param {{kind: string, name: string, hash?: string}} part */
function missingText({ kind, name, hash }) {
  const word = KINDS[/** @type {"vae"} */ (kind)] ?? kind;
  return `The ${word} ${name}${hash ? ` (${hash})` : ""} is not in this library.`;
}

/** @param {[string, string][]} pairs */
function facts(pairs) {
  return h("dl.facts", {}, pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** @param {string} title @param {Node} content */
function section(title, content) {
  return h("section", {}, h("h2", {}, title), content);
}

/** @param {string} text */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("The browser does not let the page copy.");
  }
}
