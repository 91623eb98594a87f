// The language model of Write and Score, and a switch where the server has several.

import { createElement } from "./format.js";
import { keyed, keyNow } from "./key.js";
import { restore, session, store } from "./storage.js";

const NAMES = { everyday: "Everyday English", ptb: "Newspaper of 1989" }; // those published; another's is its own
const ORDER = Object.keys(NAMES);
const CHANGE = "languagemodel"; // an event of the document, since both views have the switch
const SLOT = "model";
const listed = list(); // the names of the models that are ready; none if the list can't be read
let chosen = restore(SLOT);

/** Return the fields of a request that name the model; none where the server has only one. */
export const languageModel = () => (chosen ? { model: chosen } : {});

/** Fill the empty fieldset `group` with a radio button a model; call `changed` after a choice in any view. */
export async function offerModels(group, changed) {
  const names = await listed;
  if (!names.includes(chosen)) chosen = names.length > 1 ? names[0] : "";
  if (names.length < 2) return;
  const buttons = names.map((name) => createElement("input", { type: "radio", name: group.id, value: name, checked: name === chosen }));
  group.append(...buttons.map((button) => createElement("label", {}, button, NAMES[button.value] ?? button.value)));
  group.hidden = false;
  group.addEventListener("change", ({ target }) => {
    chosen = target.value;
    store(SLOT, chosen);
    document.dispatchEvent(new Event(CHANGE));
  });
  document.addEventListener(CHANGE, () => {
    for (const button of buttons) button.checked = button.value === chosen;
    changed();
  });
}

async function list() {
  try {
    const response = await fetch("models", { headers: keyed({ "X-Session-Id": session }, keyNow()) });
    const { models = [] } = response.ok ? await response.json() : {};
    const names = models.filter((one) => one.ready && one.family === "language_model").map((one) => one.name);
    const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
    return names.sort((a, b) => place(a) - place(b));
  } catch {
    return []; // offline; the first request reports it
  }
}
