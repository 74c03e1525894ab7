/**
 * The tabs, in their order, and what a tab is.
 *
 * To add one, write tabs/NAME.js and one line below. The module exports
 *
 *     export function mount(root) { ... return { show(parameters) {}, hide() {} }; }
 *
 * - `mount(root)` is called once, when the tab is first shown. It fills `root`, a <section role="tabpanel"> that is
 *   named by its tab. It may be async. What it returns is optional, and so are both functions in it.
 * - `show(parameters)` is called each time the tab is shown, and when the address changes while it is: `parameters` are
 *   URLSearchParams of what follows "?" in the address's hash, as in #library?search=ink.
 * - `hide()` is called when another tab is shown. A hidden tab keeps its elements, and should do nothing costly.
 *
 * What a tab stands on:
 *
 * - app.js: `go(tab, parameters)` shows a tab and writes the address (`replace` without a step in the history);
 *   `say(text)` tells a screen reader.
 * - api.js: `get`, `post`, `put`, `patch`, `remove` under "api/..."; they throw ApiError, whose `message` is one line
 *   for people and whose `field` is the field that caused it.
 * - jobs.js: `submit(request)`, `cancel(id)`, `whenOver(id)`, and `follow(listener)` for all jobs with their progress.
 * - events.js: `on(type, listener)` for single events; "connection" tells of a loss and of its end.
 * - store.js: `new Store(name, defaults)` keeps what a person types. Take the tab's name as `name`.
 * - fields.js: labelled inputs bound to a store, with unit, reason and a place for the error of each; `showError(form,
 *   error)` puts a refusal beside the field that it names.
 * - dom.js: `h("p.error", {hidden: true}, "text")` builds elements. The page's policy forbids inline scripts and style
 *   attributes in HTML; `style: {width: "4em"}` in `h` is allowed.
 * - recipe.js: `settings`, the store of the tab Paint, and `useRecipe(recipe)`, which fills it.
 *
 * Every tab works by keyboard alone and at a width of 360 px, in light and dark, with the variables of style.css.
 */

/** @typedef {{show?: (parameters: URLSearchParams) => void, hide?: () => void}} View */

export const TABS = [
  { name: "paint", title: "Paint", load: () => import("./paint.js") },
  { name: "train", title: "Train", load: () => import("./train.js") },
  { name: "library", title: "Library", load: () => import("./library.js") },
  { name: "compare", title: "Compare", load: () => import("./compare.js") },
  { name: "info", title: "Picture info", load: () => import("./info.js") },
];
