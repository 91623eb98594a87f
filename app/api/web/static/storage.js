// Session storage of texts across reloads of the tab, the id of the session, and the clipboard.

import { createElement } from "./format.js";

/** Copy a text, also where the clipboard API is unavailable; confirm it on the button for a moment. */
export async function copyText(button, text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyByCommand(text);
  const words = button.dataset.words ?? button.textContent;
  button.dataset.words = words;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = words), 1600);
}

function copyByCommand(text) {
  const field = createElement("textarea", { value: text, class: "unseen" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Store a text across reloads of this tab, if the browser allows it; return whether there was room. */
export function store(slot, text) {
  try {
    sessionStorage.setItem(slot, text);
    return true;
  } catch (error) {
    remove(slot); // else an old text would be restored
    return error.name !== "QuotaExceededError";
  }
}

/** Return the stored text, or an empty one. */
export function restore(slot) {
  try {
    return sessionStorage.getItem(slot) ?? "";
  } catch {
    return ""; // storage may be blocked by the visitor
  }
}

/** Random id of this tab, by which a proxy keeps its requests with the server that has their text in its cache. */
export const session = restore("session") || randomId();
store("session", session);

/** Remove the stored text. */
export function remove(slot) {
  try {
    sessionStorage.removeItem(slot);
  } catch {
    // storage is blocked, so nothing is stored
  }
}

function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
