// What outlives a moment: a text over a reload of the tab, and what is copied.

import { made } from "./shown.js";

/** Copies a text, also where a page may not reach the clipboard by itself; says so on the button for a moment. */
export async function copied(button, text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else byHand(text);
  const words = button.dataset.words ?? button.textContent;
  button.dataset.words = words;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = words), 1600);
}

function byHand(text) {
  const field = made("textarea", { value: text, class: "unseen" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Keeps a text over a reload of this tab, where the browser lets a page keep any; whether there was room for it. */
export function remember(slot, text) {
  try {
    sessionStorage.setItem(slot, text);
    return true;
  } catch (error) {
    forget(slot); // an old text would come back in its place
    return error.name !== "QuotaExceededError";
  }
}

/** What was kept. */
export function recalled(slot) {
  try {
    return sessionStorage.getItem(slot) ?? "";
  } catch {
    return ""; // a visitor may forbid pages to keep anything
  }
}

/** Keeps it no longer. */
export function forget(slot) {
  try {
    sessionStorage.removeItem(slot);
  } catch {
    // there is none, then
  }
}
