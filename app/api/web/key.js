// The key of a server that asks for one: kept for this tab, sent with every question.

const SLOT = "key";
const form = document.getElementById("key");
const field = document.getElementById("key-field");
const words = document.getElementById("key-words");
let given = null; // a promise, while the form is open

/** The key, or null. */
export const keyNow = () => sessionStorage.getItem(SLOT);

/** The headers, with the key if there is one. */
export const keyed = (headers, key) => (key ? { ...headers, Authorization: `Bearer ${key}` } : headers);

/** Waits for another key than `used`, which had this status; ends with `signal`. */
export async function newKey(status, used, signal) {
  if (used !== keyNow()) return; // it has come meanwhile
  given ??= asked(status).finally(() => (given = null));
  await Promise.race([given, ended(signal)]);
}

async function asked(status) {
  const refused = keyNow() !== null;
  sessionStorage.removeItem(SLOT);
  form.hidden = false;
  words.textContent = reason(status, refused);
  if ([document.body, null].includes(document.activeElement)) field.focus();
  sessionStorage.setItem(SLOT, await submitted());
  form.hidden = true;
  form.reset();
}

function reason(status, refused) {
  if (status === 403) return "That key may not ask this. Another one:";
  return refused ? "That key was not accepted. Another one:" : "This server asks for a key:";
}

function submitted() {
  return new Promise((resolve) => {
    form.addEventListener("submit", function read(event) {
      event.preventDefault();
      const key = field.value.trim();
      const fault = /^[\x21-\x7e]+$/.test(key) ? "" : "A key is made of letters, digits and signs, without spaces.";
      field.setCustomValidity(fault);
      if (!form.reportValidity()) return;
      form.removeEventListener("submit", read);
      resolve(key);
    });
    field.addEventListener("input", () => field.setCustomValidity(""));
  });
}

function ended(signal) {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
