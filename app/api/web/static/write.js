// Write: suggestions while typing. The first is shown as ghost text, all five below the text.

import { createRequester, json, languageModel, notice, offerModels, reportErrors } from "./api.js";
import { copyText, restore, store } from "./storage.js";
import { createElement, milliseconds, share } from "./format.js";

const MOST = 5;
const QUIET = 700; // ms without a key, after which the suggestions are announced to screen readers
const NUMBER_WINDOW = 400; // ms within which a second digit means that the first was typed, not a choice
const draft = document.getElementById("draft");
const typed = document.getElementById("typed");
const ghost = document.getElementById("ghost");
const chips = Array.from({ length: MOST }, (_, index) => chip(index));
const row = document.getElementById("chips"); // aria-busy while its chips belong to an older text and can't be accepted
const notify = notice(document.getElementById("write-notice"));
const request = createRequester(notify);

let offers = []; // {label, probability, text, from}: `text` replaces the draft from `from` to its end
let inviting = false; // Tab accepts the first only after a key or a click in the text, so that it never traps the focus
let spaced = false; // the last character is a space inserted with an accepted word
let chosen = null; // {key, from, replaced, time} of the last choice by a digit key
let pause = 0;

/** Initialise the view with the draft from before a reload. */
export async function open() {
  row.append(...chips);
  await offerModels(document.getElementById("write-models"), changed);
  draft.value = restore("draft");
  draft.addEventListener("input", changed);
  draft.addEventListener("keydown", pressed);
  draft.addEventListener("beforeinput", closedUp);
  draft.addEventListener("pointerdown", () => (inviting = true));
  draft.addEventListener("blur", () => (inviting = false));
  document.addEventListener("selectionchange", showGhost);
  document.getElementById("draft-copy").addEventListener("click", (event) => copyText(event.target, draft.value));
  document.getElementById("draft-clear").addEventListener("click", cleared);
  if (matchMedia("(hover: hover)").matches) draft.focus();
  changed();
}

function chip(index) {
  const word = createElement("span", { class: "word" });
  const bar = createElement("span", { class: "bar" });
  const button = createElement("button", { hidden: true }, createElement("kbd", {}, String(index + 1)), word, bar, createElement("span", { class: "share" }));
  button.addEventListener("pointerdown", (event) => event.preventDefault()); // the text keeps the focus
  button.addEventListener("click", () => take(index));
  return button;
}

function changed(event) {
  if (event) inviting = true;
  spaced = false;
  store("draft", draft.value);
  offers = kept(typed.textContent, draft.value);
  typed.textContent = draft.value;
  showGhost();
  row.setAttribute("aria-busy", "true");
  reportErrors(notify, suggest);
}

/** Keep the ghost text while the visitor types exactly it. */
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
  const [run] = text.match(/\S*$/); // the word and what is written to it, such as a bracket, which the answers repeat
  const answer = await json(request, "next-word", { text, complete: true, top_k: MOST, ...languageModel() });
  if (answer.suggestions[0]?.text.toLowerCase() === run.toLowerCase()) return following(text);
  return { ...answer, offers: answer.suggestions.map((one) => offer(one, one.text, text.length - run.length)) };
}

async function following(text) {
  const answer = await json(request, "next-word", { text, top_k: MOST, ...languageModel() });
  return { ...answer, offers: answer.suggestions.map((one) => joined(one, text)) };
}

/** Insert a space before a next word unless the text ends with one, or with an opening sign; a clitic (n't, 's) attaches to the word before. */
function joined(one, text) {
  const bare = text.trimEnd();
  if (/^('|n't)/.test(one.text)) return offer(one, one.text, bare.length);
  return offer(one, /[^\s([{“‘]$/.test(text) ? ` ${one.text}` : one.text, text.length);
}

const offer = (one, text, from) => ({ label: one.text, probability: one.probability, text: `${text} `, from });

/** Return the text that accepting this offer would append; empty if it removes a space. */
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
  chips.forEach((button, index) => {
    const one = offers[index];
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
  document.getElementById("write-announcement").textContent = words ? `Suggestions: ${words}` : "No suggestions";
}

function pressed(event) {
  if (event.isComposing || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return null;
  if (event.key === "Escape" && offers.length) return dismiss();
  if (numberBegun(event.key)) return null;
  const index = event.key === "Tab" ? (inviting ? 0 : -1) : numbered(event.key);
  if (!offers[index] || !atEnd()) return null;
  event.preventDefault();
  const { from } = offers[index];
  chosen = { key: event.key, from, replaced: draft.value.slice(from), time: performance.now() };
  return take(index);
}

/** Undo a choice whose key turns out to be the first digit of a number: insert the digits instead. */
function numberBegun(key) {
  const begun = chosen && /^[\d%]$/.test(key) && atEnd() && performance.now() - chosen.time < NUMBER_WINDOW;
  if (begun) put(chosen.replaced + chosen.key, chosen.from);
  chosen = null;
  return begun;
}

/** Map the keys 1 to 5 to a suggestion, except inside a number. */
const numbered = (key) => (/^[1-5]$/.test(key) && !/[\p{N}$£€#.,-]$/u.test(draft.value) ? Number(key) - 1 : -1);

function dismiss() {
  request.cancel();
  offers = [];
  inviting = false;
  showChips();
  showGhost();
}

function take(index) {
  if (!offers[index]) return;
  const { text, from } = offers[index];
  put(text, from);
  inviting = document.activeElement === draft;
  spaced = true;
}

/** Replace the draft from `from` to its end by `text`. */
function put(text, from) {
  draft.setSelectionRange(from, draft.value.length);
  // the only insertion that the browser's undo covers
  if (document.activeElement === draft && document.execCommand("insertText", false, text)) return;
  draft.setRangeText(text, from, draft.value.length, "end");
  changed();
}

/** Replace the space after an accepted word by a punctuation mark typed next. */
function closedUp(event) {
  if (!spaced || !atEnd() || !/^[.,;:!?)]$/.test(event.data ?? "")) return;
  draft.setSelectionRange(draft.value.length - 1, draft.value.length);
}

function cleared() {
  draft.value = "";
  draft.focus();
  changed();
}
