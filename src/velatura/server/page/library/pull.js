/** Download a file from Civitai or the Hugging Face hub, with its progress. */

import { ApiError } from "../api.js";
import { h } from "../dom.js";
import { clearErrors, showError, textField } from "../fields.js";
import { live, submit } from "../jobs.js";
import { Store } from "../store.js";
import { watch } from "./actions.js";

const CIVITAI = /^https?:\/\/(?:www\.)?civitai\.(?:com|red|green)\/models\/(\d+)[^?#]*(?:\?(?:.*&)?modelVersionId=(\d+))?/;
const HUB = /^https?:\/\/huggingface\.co\/([^/?#]+\/[^/?#]+)(?:\/(?:blob|resolve)\/[^/?#]+\/([^?#]+))?/;

export function pullForm() {
  const store = new Store("pull", { source: "" });
  const problem = h("p.error.form-error", { role: "alert", hidden: true });
  const jobs = h("div.pulls", { "aria-live": "polite" });
  const form = h(
    "form.library-pull",
    { noValidate: true, onsubmit: send },
    textField(store, "source", { label: "Download", placeholder: "civitai:12345 or hub:owner/name", why: "A page of Civitai or Hugging Face, civitai:ID, civitai:ID@VERSION, or hub:OWNER/NAME/FILE.", buttons: [h("button", { type: "submit" }, "Download")] }),
    problem,
    jobs,
  );
  for (const job of live.values()) if (job.kind === "pull") follow(job);

  /** @param {any} job */
  function follow(job) {
    const box = h("div.job-progress");
    jobs.append(h("div", {}, h("p.quiet", {}, job.request.source), box));
    watch(job, box);
  }

  /** @param {Event} event */
  async function send(event) {
    event.preventDefault();
    clearErrors(form);
    try {
      follow(await submit({ kind: "pull", source: toSource(store.get("source").trim()) }));
      store.set({ source: "" });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(form, error);
    }
  }
  return form;
}

/** @param {string} text @returns {string} The address of a page as the server takes it. */
function toSource(text) {
  const civitai = CIVITAI.exec(text);
  if (civitai) return `civitai:${civitai[1]}${civitai[2] ? `@${civitai[2]}` : ""}`;
  const hub = HUB.exec(text);
  if (hub) return `hub:${hub[1]}${hub[2] ? `/${decodeURIComponent(hub[2])}` : ""}`;
  return text;
}
