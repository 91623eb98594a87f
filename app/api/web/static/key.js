// The API key of a server that requires one: kept for this tab, sent with every request.

import { remove, restore, store } from "./storage.js";

const SLOT = "key";
const EXPIRED = "the key has expired"; // the detail of a 401
const form = document.getElementById("key");
const field = document.getElementById("key-field");
const words = document.getElementById("key-words");
let key = restore(SLOT) || null;
let given = null; // a promise while the form is open

/** Return the key, or null. */
export const keyNow = () => key;

/** Return the headers, with the key if there is one. */
export const keyed = (headers, sent) => (sent ? { ...headers, Authorization: `Bearer ${sent}` } : headers);

/** Ask the visitor for another key than `used`, which was rejected with this status and problem. */
export function askKey(status, problem, used) {
  if (used !== key) return; // a new key has been entered meanwhile
  given ??= asked(reason(status, problem.detail, used !== null)).finally(() => (given = null));
}

/** Return a promise that resolves when the key form is closed. */
export const keyGiven = () => given;

async function asked(why) {
  key = null;
  remove(SLOT);
  form.hidden = false;
  words.textContent = why;
  if ([document.body, null].includes(document.activeElement)) field.focus();
  key = await submitted();
  store(SLOT, key);
  form.hidden = true;
  form.reset();
}

function reason(status, detail, refused) {
  if (status === 403) return "That key is not allowed to do this. Another one:";
  if (detail === EXPIRED) return "That key has expired. A newer one:";
  return refused ? "That key was not accepted. Another one:" : "This server asks for a key:";
}

function submitted() {
  return new Promise((resolve) => {
    form.addEventListener("submit", function read(event) {
      event.preventDefault();
      const typed = field.value.trim();
      const fault = /^[\x21-\x7e]+$/.test(typed) ? "" : "A key is made of letters, digits and signs, without spaces.";
      field.setCustomValidity(fault);
      if (!form.reportValidity()) return;
      form.removeEventListener("submit", read);
      resolve(typed);
    });
    field.addEventListener("input", () => field.setCustomValidity(""));
  });
}
