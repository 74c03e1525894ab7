/** The notes beside a file, in the sidecar that A1111, Forge and others read. */

import { ApiError, patch } from "../api.js";
import { say } from "../app.js";
import { h } from "../dom.js";
import { checkNumbers, clearErrors, hintLine, numberField, showError, textField } from "../fields.js";

const FIELDS = ["activation", "strength", "negative", "description", "notes"];

/**
 * @param {any} file
 * @param {import("../store.js").Store} drafts What was typed and not saved, by the ids of files.
 * @param {(file: any) => void} onSaved
 */
export function notesForm(file, drafts, onSaved) {
  const saved = Object.fromEntries(FIELDS.map((name) => [name, file.notes[name] ?? (name === "strength" ? null : "")]));
  const values = draftStore(file.id, saved, drafts);
  const words = file.trigger_words.join(", ");
  const problem = h("p.error.form-error", { role: "alert", hidden: true });
  const save = h("button.primary", { type: "submit" }, "Save notes");
  const form = h(
    "form.library-notes",
    { noValidate: true, onsubmit: send },
    h("h3", {}, "Notes"),
    textField(values, "activation", { label: "Trigger words", placeholder: words, why: "What a click on its card adds to the prompt (Activation text). Empty: what the file or its publisher says." }),
    numberField(values, "strength", { label: "Strength", min: -10, max: 10, step: 0.05, placeholder: "1", why: "The strength that it begins with (Preferred weight). Empty: 1." }),
    textField(values, "negative", { label: "Negative prompt", why: "What to add to the negative prompt (Negative text)." }),
    textField(values, "description", { label: "Description", rows: 2, why: "What it is, in a sentence." }),
    textField(values, "notes", { label: "Notes", rows: 3, why: "Anything to remember." }),
    h("div.row", {}, save),
    problem,
  );
  form.append(hintLine(form, "Saved beside the file, where A1111 and Forge read them too."));

  /** @param {Event} event */
  async function send(event) {
    event.preventDefault();
    clearErrors(form);
    if (!checkNumbers(form)) return;
    const changed = FIELDS.filter((name) => values.get(name) !== saved[name]);
    if (!changed.length) {
      say("Nothing has changed.");
      return;
    }
    save.disabled = true;
    try {
      const body = Object.fromEntries(changed.map((name) => [name, values.get(name) ?? 0])); // 0 takes a strength away
      const answer = await patch(`api/library/${file.id}`, body);
      const rest = { ...drafts.get("notes") };
      delete rest[file.id];
      drafts.set({ notes: rest });
      say("The notes were saved beside the file.");
      onSaved(answer);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(form, error);
    } finally {
      save.disabled = false;
    }
  }
  return form;
}

/**
 * Return what the fields of a form need of a store, kept among the drafts of all files.
 *
 * @param {string} id
 * @param {Record<string, any>} saved
 * @param {import("../store.js").Store} drafts
 * @returns {any}
 */
function draftStore(id, saved, drafts) {
  return {
    get: (/** @type {string} */ name) => ({ ...saved, ...drafts.get("notes")[id] })[name],
    set: (/** @type {Record<string, any>} */ changes) => drafts.set({ notes: { ...drafts.get("notes"), [id]: { ...drafts.get("notes")[id], ...changes } } }),
    subscribe: () => () => {},
  };
}
