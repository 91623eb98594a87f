// Write: suggestions while one types. The first stands as a ghost in the text, all five below it.

import { asker, json, notice, told } from "./api.js";
import { copied, recalled, remember } from "./kept.js";
import { made, milliseconds, share } from "./shown.js";

const MOST = 5;
const QUIET = 700; // ms without a key, after which a screen reader is told the suggestions
const FIGURES = 400; // ms within which a second figure tells that the first was no choice: nobody reads so fast
const draft = document.getElementById("draft");
const typed = document.getElementById("typed");
const ghost = document.getElementById("ghost");
const chips = Array.from({ length: MOST }, (_, place) => chip(place));
const row = document.getElementById("chips"); // busy while its chips are of an older text: then they can't be taken
const tell = notice(document.getElementById("write-notice"));
const ask = asker(tell);

let offers = []; // {label, probability, text, from}: `text` replaces what stands from `from` on
let inviting = false; // Tab takes the first only after a key or a click in the text: nobody is kept in it
let spaced = false; // whether the last character is a space that a taken word brought
let chosen = null; // {key, from, replaced, time} of the last choice by a figure
let pause = 0;

/** Begins, with what was written before a reload. */
export function open() {
  row.append(...chips);
  draft.value = recalled("draft");
  draft.addEventListener("input", changed);
  draft.addEventListener("keydown", pressed);
  draft.addEventListener("beforeinput", closedUp);
  draft.addEventListener("pointerdown", () => (inviting = true));
  draft.addEventListener("blur", () => (inviting = false));
  document.addEventListener("selectionchange", showGhost);
  document.getElementById("draft-copy").addEventListener("click", (event) => copied(event.target, draft.value));
  document.getElementById("draft-clear").addEventListener("click", cleared);
  if (matchMedia("(hover: hover)").matches) draft.focus();
  changed();
}

function chip(place) {
  const word = made("span", { class: "word" });
  const bar = made("span", { class: "bar" });
  const button = made("button", { hidden: true }, made("kbd", {}, String(place + 1)), word, bar, made("span", { class: "share" }));
  button.addEventListener("pointerdown", (event) => event.preventDefault()); // the text keeps the focus
  button.addEventListener("click", () => take(place));
  return button;
}

function changed(event) {
  if (event) inviting = true;
  spaced = false;
  remember("draft", draft.value);
  offers = kept(typed.textContent, draft.value);
  typed.textContent = draft.value;
  showGhost();
  row.setAttribute("aria-busy", "true");
  told(tell, suggest);
}

/** Whoever types what the ghost says keeps it until the answer is there. */
function kept(before, now) {
  const [first] = offers;
  if (!first || !now.startsWith(before) || !continuation(first, before).startsWith(now.slice(before.length))) return [];
  return [first];
}

async function suggest() {
  const text = draft.value;
  const started = performance.now();
  const answer = await suggestions(text);
  offers = answer.offers;
  showChips();
  showGhost();
  const read = answer.context_tokens ? `, ${answer.cached_tokens} of ${answer.context_tokens} words remembered` : "";
  const strange = answer.unknown_words.length ? ` Unknown to it: ${answer.unknown_words.slice(-3).join(", ")}.` : "";
  document.getElementById("write-time").textContent = `${milliseconds(performance.now() - started)}${read}.${strange}`;
  clearTimeout(pause);
  pause = setTimeout(speak, QUIET);
}

async function suggestions(text) {
  const [word] = text.match(/[\p{L}\p{N}][\p{L}\p{N}'’.&-]*$/u) ?? [""];
  if (!word || word.endsWith(".")) return following(text);
  const from = text.length - word.length;
  const apart = from && /\S/.test(text[from - 1]) ? " " : ""; // "(comp" is a bracket and a word being typed
  const answer = await json(ask, "/next-word", { text: text.slice(0, from) + apart + word, complete: true, top_k: MOST });
  if (answer.suggestions[0]?.text.toLowerCase() === word.toLowerCase()) return following(text);
  return { ...answer, offers: answer.suggestions.map((one) => offer(one, ending(word, one.text), from)) };
}

async function following(text) {
  const answer = await json(ask, "/next-word", { text, top_k: MOST });
  return { ...answer, offers: answer.suggestions.map((one) => joined(one, text)) };
}

/** The word, spelt as it was begun. */
const ending = (word, whole) => (whole.toLowerCase().startsWith(word.toLowerCase()) ? word + whole.slice(word.length) : whole);

/** A next word after the text's last space, or with one; a clitic (n't, 's) belongs to the word before it. */
function joined(one, text) {
  const bare = text.trimEnd();
  if (/^('|n't)/.test(one.text)) return offer(one, one.text, bare.length);
  return offer(one, text && bare.length === text.length ? ` ${one.text}` : one.text, text.length);
}

const offer = (one, text, from) => ({ label: one.text, probability: one.probability, text: `${text} `, from });

/** What the text goes on with, if this offer is taken: nothing if it takes a space away. */
function continuation({ text, from }, before) {
  const replaced = before.slice(from);
  return text.startsWith(replaced) ? text.slice(replaced.length) : "";
}

const atEnd = () => draft.selectionStart === draft.value.length && draft.selectionEnd === draft.value.length;

function showGhost() {
  const shown = offers.length > 0 && draft.value !== "" && (atEnd() || document.activeElement !== draft);
  ghost.textContent = shown ? continuation(offers[0], draft.value).trimEnd() : "";
}

function showChips() {
  row.setAttribute("aria-busy", "false");
  chips.forEach((button, place) => {
    const one = offers[place];
    button.hidden = !one;
    if (!one) return;
    const [, word, bar, chance] = button.children;
    word.textContent = one.label === "N" ? "N, a number" : one.label;
    bar.style.setProperty("--share", one.probability);
    chance.textContent = share(one.probability);
  });
}

function speak() {
  const words = offers.map((one) => one.label).join(", ");
  document.getElementById("write-told").textContent = words ? `Suggestions: ${words}` : "No suggestions";
}

function pressed(event) {
  if (event.isComposing || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return null;
  if (event.key === "Escape" && offers.length) return dismiss();
  if (numberBegun(event.key)) return null;
  const place = event.key === "Tab" ? (inviting ? 0 : -1) : numbered(event.key);
  if (!offers[place] || !atEnd()) return null;
  event.preventDefault();
  const { from } = offers[place];
  chosen = { key: event.key, from, replaced: draft.value.slice(from), time: performance.now() };
  return take(place);
}

/** What was taken for a choice was the first figure of a number: it stands where the word was put. */
function numberBegun(key) {
  const begun = chosen && /^[\d%]$/.test(key) && atEnd() && performance.now() - chosen.time < FIGURES;
  if (begun) put(chosen.replaced + chosen.key, chosen.from);
  chosen = null;
  return begun;
}

/** 1 to 5 choose, but within a number they are figures. */
const numbered = (key) => (/^[1-5]$/.test(key) && !/[\p{N}$£€#.,-]$/u.test(draft.value) ? Number(key) - 1 : -1);

function dismiss() {
  ask.stop();
  offers = [];
  inviting = false;
  showChips();
  showGhost();
}

function take(place) {
  if (!offers[place]) return;
  const { text, from } = offers[place];
  put(text, from);
  inviting = document.activeElement === draft;
  spaced = true;
}

/** Writes `text` in place of what stands from `from` on. */
function put(text, from) {
  draft.setSelectionRange(from, draft.value.length);
  // the one way in which the browser can undo it
  if (document.activeElement === draft && document.execCommand("insertText", false, text)) return;
  draft.setRangeText(text, from, draft.value.length, "end");
  changed();
}

/** A mark that follows a taken word takes the place of the space after it. */
function closedUp(event) {
  if (!spaced || !atEnd() || !/^[.,;:!?)]$/.test(event.data ?? "")) return;
  draft.setSelectionRange(draft.value.length - 1, draft.value.length);
}

function cleared() {
  draft.value = "";
  draft.focus();
  changed();
}
