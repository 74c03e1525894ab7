/**
 * Labelled inputs that are bound to a store: with unit, with the reason of the default, and with a place for the error.
 *
 * The reason is the input's description for a screen reader, the label's tooltip, and the text of the nearest hint line
 * (`hintLine`) while the field has the focus or the pointer.
 */

import { h, newId } from "./dom.js";

/**
 * @typedef {object} FieldOptions
 * @property {string} label
 * @property {string} [why] What it does, and the reason of its default.
 * @property {string} [unit] "px", "steps".
 * @property {number} [min]
 * @property {number} [max]
 * @property {number} [step] 1 for whole numbers.
 * @property {string} [placeholder] What stands for an empty field.
 * @property {string} [error] The field's name in errors, if it is not the name in the store.
 * @property {Node[]} [buttons] Beside the input.
 */

/**
 * Build an input for a number. An empty one is null in the store.
 *
 * @param {import("./store.js").Store} store
 * @param {string} name
 * @param {FieldOptions} options
 */
export function numberField(store, name, options) {
  const { min, max, step = 1 } = options;
  const input = /** @type {any} */ (h("input", { type: "number", inputMode: step === 1 ? "numeric" : "decimal", min, max, step: "any" }));
  input.placeholder = options.placeholder ?? "";
  input.addEventListener("input", () => {
    const problem = numberProblem(input, options);
    setError(field, problem);
    if (!problem) store.set({ [name]: readNumber(input.value) });
  });
  const field = wrap(input, name, options);
  bind(store, name, (value) => {
    const text = value === null ? "" : String(value);
    if (text !== String(readNumber(input.value) ?? "")) input.value = text;
  });
  return field;
}

/**
 * Build a choice. Names in the store that are not among the choices are shown too.
 *
 * @param {import("./store.js").Store} store
 * @param {string} name
 * @param {FieldOptions & {choices: ([string, string] | string)[]}} options Values with their names.
 * @returns {HTMLElement & {setChoices: (choices: ([string, string] | string)[]) => void}}
 */
export function choiceField(store, name, options) {
  const select = h("select", { onchange: () => store.set({ [name]: select.value || null }) });
  const field = wrap(select, name, options);
  const show = () => {
    const value = store.get(name) ?? "";
    if (![...select.options].some((option) => option.value === value)) select.append(h("option", { value }, value));
    select.value = value;
  };
  field.setChoices = (/** @type {([string, string] | string)[]} */ choices) => {
    select.replaceChildren(
      ...choices.map((choice) => {
        const [value, text] = typeof choice === "string" ? [choice, choice] : choice;
        return h("option", { value }, text);
      }),
    );
    show();
  };
  field.setChoices(options.choices);
  bind(store, name, show);
  return /** @type {any} */ (field);
}

/**
 * Build a box to check.
 *
 * @param {import("./store.js").Store} store
 * @param {string} name
 * @param {FieldOptions} options
 */
export function checkField(store, name, options) {
  const input = h("input", { type: "checkbox", onchange: () => store.set({ [name]: input.checked }) });
  const field = wrap(input, name, options);
  field.classList.add("check");
  bind(store, name, (value) => (input.checked = Boolean(value)));
  return field;
}

/**
 * Build a line or, with `rows`, a box of text.
 *
 * @param {import("./store.js").Store} store
 * @param {string} name
 * @param {FieldOptions & {rows?: number}} options
 */
export function textField(store, name, options) {
  const input = h(options.rows ? "textarea" : "input", { rows: options.rows, spellcheck: false });
  if (!options.rows) input.type = "text";
  input.placeholder = options.placeholder ?? "";
  input.addEventListener("input", () => {
    setError(field, "");
    store.set({ [name]: input.value });
  });
  const field = wrap(input, name, options);
  bind(store, name, (value) => {
    if (input.value !== (value ?? "")) input.value = value ?? "";
  });
  return field;
}

/**
 * Build a line that shows the reason of whichever field inside an element has the focus or the pointer.
 *
 * @param {HTMLElement} area
 * @param {string} text What stands there otherwise.
 */
export function hintLine(area, text) {
  const line = h("p.hint", { "aria-hidden": "true" }, text); // a screen reader has each field's own description
  const show = (/** @type {Event} */ event) => {
    const field = /** @type {HTMLElement} */ (event.target).closest(".field");
    const why = field?.querySelector(".why")?.textContent ?? text;
    if (line.textContent !== why) line.textContent = why;
  };
  area.addEventListener("focusin", show);
  area.addEventListener("pointerover", show);
  area.addEventListener("pointerleave", () => (line.textContent = text));
  return line;
}

/**
 * Put an error beside the field that it names, else into the form's own place for errors (`.form-error`).
 *
 * @param {HTMLElement} form
 * @param {{message: string, field?: string | null}} error
 */
export function showError(form, error) {
  const name = (error.field ?? "").replace(/^(recipes?(\.\d+)?|plan|overlay)\./, "").split(".")[0];
  const field = name ? form.querySelector(`[data-field="${CSS.escape(name)}"]`) : null;
  if (!field) {
    const place = /** @type {HTMLElement} */ (form.querySelector(".form-error"));
    place.textContent = error.message;
    place.hidden = false;
    return;
  }
  for (let box = field.closest("details"); box; box = box.parentElement?.closest("details") ?? null) box.open = true;
  setError(/** @type {HTMLElement} */ (field), error.message);
  /** @type {HTMLElement | null} */ (field.querySelector("input, select, textarea"))?.focus();
}

/** Take away the errors that a server gave. @param {HTMLElement} form */
export function clearErrors(form) {
  for (const field of form.querySelectorAll(".field")) setError(/** @type {HTMLElement} */ (field), "");
  const place = /** @type {HTMLElement | null} */ (form.querySelector(".form-error"));
  if (place) place.hidden = true;
}

/**
 * Look at the numbers of a form that can be seen, show what is wrong with them, and move the focus to the first that is.
 *
 * @param {HTMLElement} form
 * @returns {boolean} True if all can be sent.
 */
export function checkNumbers(form) {
  const inputs = /** @type {HTMLInputElement[]} */ ([...form.querySelectorAll('input[type="number"]')]);
  const wrong = inputs.filter((input) => {
    const field = /** @type {any} */ (input.closest(".field"));
    const problem = field.hidden ? "" : numberProblem(input, field.options);
    if (problem) setError(field, problem);
    return problem;
  });
  wrong[0]?.focus();
  return wrong.length === 0;
}

/** @param {HTMLElement} field @param {string} message "" takes the error away. */
export function setError(field, message) {
  const place = /** @type {HTMLElement} */ (field.querySelector(".error"));
  if (place.textContent === message && place.hidden === !message) return;
  place.textContent = message;
  place.hidden = !message;
  field.querySelector("input, select, textarea")?.setAttribute("aria-invalid", String(Boolean(message)));
}

/**
 * Put a control between its label, its unit, its reason and its error.
 *
 * @param {HTMLElement} control
 * @param {string} name
 * @param {FieldOptions} options
 * @returns {HTMLElement & Record<string, any>}
 */
export function wrap(control, name, options) {
  const { label, unit, why = "", buttons = [] } = options;
  const [id, reason, error] = [newId(name), newId("why"), newId("error")];
  control.id = id;
  const described = [unit && `${id}-unit`, why && reason, error];
  control.setAttribute("aria-describedby", described.filter(Boolean).join(" "));
  const field = h(
    "div.field",
    { data: { field: options.error ?? name } },
    h("label", { htmlFor: id, title: why }, label),
    h("div.control", {}, control, unit && h("span.unit", { id: `${id}-unit` }, unit), buttons),
    why && h("span.why.unseen", { id: reason }, why),
    h("p.error", { id: error, hidden: true, role: "alert" }),
  );
  field.options = options;
  return field;
}

/** @param {import("./store.js").Store} store @param {string} name @param {(value: any) => void} show */
function bind(store, name, show) {
  show(store.get(name));
  store.subscribe((names) => names.includes(name) && show(store.get(name)));
}

/** @param {string} text @returns {number | string | null} A text for a whole number that JavaScript cannot hold. */
function readNumber(text) {
  if (text === "") return null;
  const value = Number(text);
  return Number.isInteger(value) && !Number.isSafeInteger(value) ? text : value;
}

/** @param {HTMLInputElement} input @param {FieldOptions} options @returns {string} What is wrong, "" if nothing is. */
function numberProblem(input, { min = -Infinity, max = Infinity, step = 1 }) {
  if (input.validity.badInput) return "This is not a number.";
  if (input.value === "") return "";
  const value = Number(input.value);
  if (value < min || value > max) {
    if (max === Infinity) return `Give ${min} or more.`;
    return min === -Infinity ? `Give ${max} or less.` : `Give ${min} to ${max}.`;
  }
  return step === 1 && !Number.isInteger(value) ? "Give a whole number." : "";
}
