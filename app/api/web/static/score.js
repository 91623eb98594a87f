// Score: each word of a text over a bar of its surprisal, a curve of the surprisal, and details of one word.

import { createRequester, json, languageModel, notice, offerModels, reportErrors } from "./api.js";
import { restore, store } from "./storage.js";
import { createElement, milliseconds, rounded, share, tokenName } from "./format.js";

const EAGER = 2000; // characters up to which a text is scored while it is typed
const QUIET = 300; // ms without a key before that
const SHOWN = 4000; // tokens that are drawn
const LONG = 100_000; // characters; for a longer text no alternatives are requested: they would be most of the answer
const TALLEST = 15; // bits: 1 in 32,768
const BARS = 480; // of the curve
const SAMPLES = {
  "a message": "Hi Anna,\nThanks for sending the report so quickly. I'll read it tonight and call you tomorrow morning.",
  "two slips": "We had a wonderful time at the beach last weekend, and the whether was perfect. I can't weight to go again.",
  "a headline": "The company said third-quarter net income rose 12% on higher sales.\nAnalysts had expected a decline.",
  "a soliloquy": "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\nThe slings and arrows of outrageous fortune,\nOr to take arms against a sea of troubles.",
  "a jumble": "Sales higher on 12% rose income net third-quarter said company the.",
};
const at = (id) => document.getElementById(id);
const passage = at("passage");
const heat = at("heat");
const notify = notice(at("score-notice"));
const request = createRequester(notify);

let answer = null; // the last answer, and
let scoredCharacters = []; // the characters of its text; offsets count these, not UTF-16 units
let words = []; // the elements drawn; words[i] shows tokens[i]
let tokens = []; // or words of several pieces, each with its `pieces`
let chosen = 0;
let pause = 0;

/** Initialise the view with the text from before a reload. */
export async function open() {
  await offerModels(at("score-models"), score);
  for (const [name, text] of Object.entries(SAMPLES)) {
    at("samples").append(createElement("button", { onclick: () => replace(text) }, name));
  }
  passage.value = restore("passage");
  passage.addEventListener("input", changed);
  passage.addEventListener("paste", () => setTimeout(score));
  passage.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) score();
  });
  at("score-now").addEventListener("click", score);
  at("passage-file").addEventListener("change", (event) => read(event.target.files[0]));
  at("view-score").addEventListener("drop", dropped);
  at("export-csv").addEventListener("click", () => save(csv(), "text/csv", "scores.csv"));
  at("export-json").addEventListener("click", () => save(JSON.stringify(answer, null, 1), "application/json", "scores.json"));
  heat.addEventListener("keydown", step);
  for (const kind of ["click", "focusin"]) heat.addEventListener(kind, (event) => choose(event.target));
  heat.addEventListener("pointerover", (event) => preview(event.target));
  heat.addEventListener("pointerleave", () => describe(chosen));
  at("curve").addEventListener("pointermove", along);
  at("curve").addEventListener("pointerleave", () => describe(chosen));
  if (passage.value) score();
}

function replace(text) {
  passage.value = text;
  keep();
  return score();
}

function keep() {
  if (!store("passage", passage.value)) notify("This text is too long to be kept across a reload of the page.");
}

function changed() {
  keep();
  clearTimeout(pause);
  if (passage.value.length <= EAGER) pause = setTimeout(score, QUIET);
}

async function read(file) {
  if (!file) return;
  const text = await file.text();
  if (text.includes("\0")) notify("This file is not a text file.");
  else replace(text);
}

function dropped(event) {
  const [file] = event.dataTransfer.files;
  if (!file) return; // dropped text is handled by the field itself
  event.preventDefault();
  read(file);
}

function score() {
  clearTimeout(pause);
  const text = passage.value;
  if (!text.trim()) {
    request.cancel();
    at("scored").hidden = true;
    return null;
  }
  at("scored").classList.add("stale");
  if (text.length > 10 * EAGER) notify("Reading. A long text takes a while: about a second for 10,000 words.");
  return reportErrors(notify, async () => {
    const started = performance.now();
    const found = await json(request, "perplexity", { text, per_token: true, alternatives: text.length > LONG ? 0 : 5, ...languageModel() });
    show(found, text);
    at("score-time").textContent = `${milliseconds(performance.now() - started)} for ${tokens.length} words and marks.`;
  });
}

function show(found, text) {
  answer = found;
  scoredCharacters = Array.from(text);
  tokens = wholeWords(found.results[0].token_scores.map((token) => ({ ...token, bits: -token.log_probability / Math.LN2 })));
  at("scored").hidden = !tokens.length;
  at("scored").classList.remove("stale");
  if (!tokens.length) return notify("There is nothing to score in this text.");
  showTotals(found.results[0]);
  showCurve();
  showWords(text);
  chosen = mostSurprising();
  words[chosen].tabIndex = 0;
  describe(chosen, "Most surprising");
}

/** Join the pieces of a word: what goes on with letters, without a space before them. A token of a closed vocabulary stays one. */
function wholeWords(pieces) {
  const open = pieces.some(({ token }) => token.startsWith(" "));
  const found = [];
  for (const piece of pieces) {
    const last = found.at(-1);
    const goesOn = open && last && (last.start === last.end || /^ +$/.test(last.token) || (/[\p{L}\p{N}\p{M}]$/u.test(last.token) && /^['’]?[\p{L}\p{N}\p{M}\ufffd]/u.test(piece.token)));
    if (goesOn && piece.token !== "<doc>") found[found.length - 1] = joined(last, piece);
    else found.push({ ...piece, pieces: [piece] });
  }
  return found;
}

function joined(word, piece) {
  const bits = word.bits + piece.bits;
  const log_probability = word.log_probability + piece.log_probability;
  return { ...word, token: word.token + piece.token, end: piece.end, bits, log_probability, pieces: [...word.pieces, piece] };
}

function showTotals(total) {
  const figures = tokens.at(-1).token === "<doc>" ? openTotals(total) : closedTotals(total);
  at("totals").replaceChildren(
    ...figures.map(([name, value, more]) => createElement("div", {}, createElement("dt", {}, name), createElement("dd", {}, value, createElement("small", {}, more)))),
  );
}

function openTotals(total) {
  const pieces = total.tokens.toLocaleString("en");
  return [
    ["Word perplexity", figure(total.word_perplexity), `as if each word were one of ${rounded(total.word_perplexity)}`],
    ["Bits a byte", total.bits_per_byte.toFixed(2), "few for English, many for anything else"],
    ["Bits a word", Math.log2(total.word_perplexity).toFixed(2), `${total.bits_per_character.toFixed(2)} a character`],
    ["Words", total.words.toLocaleString("en"), `${pieces} pieces`],
  ];
}

function closedTotals(total) {
  const unknown = total.unknown_tokens.toLocaleString("en");
  return [
    ["Perplexity", figure(total.perplexity), `as if each word were one of ${rounded(total.perplexity)}`],
    ["Unknown words spelled", figure(total.perplexity_open), `${unknown} unknown, by their letters`],
    ["Bits a word", total.cross_entropy.toFixed(2), `${total.bits_per_character.toFixed(2)} a character`],
    ["Words", total.tokens.toLocaleString("en"), `line ends among them: ${total.sentences.toLocaleString("en")}`],
  ];
}

const figure = (value) => (value < 1000 ? value.toFixed(1) : rounded(value));

function mostSurprising() {
  let most = 0;
  words.forEach((word, index) => {
    if (!tokens[index].unknown && tokens[index].bits > tokens[most].bits) most = index;
  });
  return most;
}

/** Show the text with its tokens as elements and the rest unchanged. Offsets count characters, not UTF-16 units. */
function showWords(text) {
  const characters = Array.from(text);
  const lines = [createElement("div", { role: "group" })];
  let reached = 0;
  words = tokens.slice(0, SHOWN).map((token) => {
    const start = Math.max(reached, token.start);
    lines.at(-1).append(characters.slice(reached, start).join("").replaceAll("\n", " "));
    reached = Math.max(start, token.end);
    const [, space, shown] = characters.slice(start, reached).join("").match(/^(\s*)(.*)$/s);
    const word = element(token, shown || "␣");
    lines.at(-1).append(shown ? space : "", word);
    if (breaksLine(token)) lines.push(createElement("div", { role: "group" }));
    return word;
  });
  heat.replaceChildren(...lines.filter((line) => line.querySelector("[role=option]")));
  const rest = tokens.length - words.length;
  at("heat-rest").textContent = rest ? `${rest.toLocaleString("en")} more are counted in the totals and included in the export.` : "";
}

function element(token, text) {
  const ends = breaksLine(token);
  const word = createElement("span", { role: "option", tabIndex: -1, "aria-selected": "false" }, ends ? "¶" : text);
  if (ends) word.setAttribute("aria-label", tokenName(token.token));
  if (ends) word.classList.add("end");
  if (token.unknown) word.classList.add("unknown");
  word.style.setProperty("--tall", Math.min(token.bits / TALLEST, 1).toFixed(3));
  return word;
}

const breaksLine = ({ token }) => ["<eos>", "<doc>", "\n"].includes(token);

function showCurve() {
  const width = Math.ceil(tokens.length / BARS);
  const count = Math.ceil(tokens.length / width);
  let sum = 0;
  let bars = "";
  let mean = "";
  for (let bar = 0; bar < count; bar++) {
    const piece = tokens.slice(bar * width, (bar + 1) * width);
    const bits = piece.reduce((all, token) => all + token.bits, 0);
    sum += bits;
    const soFar = sum / Math.min((bar + 1) * width, tokens.length);
    bars += `M${bar + 0.5} ${TALLEST}V${(TALLEST - Math.min(bits / piece.length, TALLEST)).toFixed(2)}`;
    mean += `${bar ? "L" : "M"}${bar + 0.5} ${(TALLEST - Math.min(soFar, TALLEST)).toFixed(2)}`;
  }
  at("curve").setAttribute("viewBox", `0 0 ${count} ${TALLEST}`);
  at("curve").style.setProperty("--bar", `${Math.max(1, Math.min(22, (0.7 * at("curve").clientWidth) / count))}px`);
  at("curve").replaceChildren(path(bars, "bars"), path(mean, "mean"), path("", "here"));
  at("curve").dataset.width = width;
  at("curve-step").textContent = width === 1 ? "each word" : `each ${width} words`;
}

function path(course, name) {
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", course);
  line.setAttribute("class", name);
  line.setAttribute("vector-effect", "non-scaling-stroke");
  return line;
}

function along(event) {
  const { left, width } = at("curve").getBoundingClientRect();
  const index = Math.floor(((event.clientX - left) / width) * tokens.length);
  describe(Math.max(0, Math.min(index, tokens.length - 1)));
}

function preview(target) {
  const index = words.indexOf(target);
  if (index >= 0) describe(index);
}

function choose(target) {
  const index = words.indexOf(target);
  if (index < 0) return;
  words[chosen].tabIndex = -1;
  chosen = index;
  words[chosen].tabIndex = 0;
  describe(chosen);
}

function step(event) {
  const index = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, ArrowDown: chosen + 1, ArrowUp: chosen - 1, Home: 0, End: words.length - 1 }[event.key];
  if (!words[index]) return;
  event.preventDefault();
  words[index].focus();
}

function describe(index, title = "") {
  const token = tokens[index];
  if (!token) return;
  heat.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
  words[index]?.setAttribute("aria-selected", "true");
  at("curve").querySelector(".here").setAttribute("d", `M${Math.floor(index / at("curve").dataset.width) + 0.5} 0V${TALLEST}`);
  const probability = Math.exp(token.log_probability);
  at("detail").replaceChildren(
    createElement("p", { class: "small" }, title || (token.unknown ? "Not in its vocabulary" : "Chosen word")),
    createElement("p", { class: "chosen" }, token.unknown ? written(token) : tokenName(token.token)),
    createElement("p", {}, createElement("strong", {}, share(probability)), ` · ${token.bits.toFixed(1)} bits`, ranked(token)),
    ...ofPieces(token),
    ...expected(token),
  );
}

/** List the pieces of a word on demand, each with its surprisal. */
function ofPieces({ pieces }) {
  if (pieces.length < 2) return [];
  const rows = pieces.map((piece) => createElement("li", {}, createElement("span", { class: "word" }, piece.token), createElement("span", { class: "share" }, `${piece.bits.toFixed(1)} bits`)));
  return [createElement("details", { class: "pieces" }, createElement("summary", {}, `${pieces.length} pieces`), createElement("ol", { class: "rows" }, ...rows))];
}

const written = ({ start, end }) => scoredCharacters.slice(start, end).join("");

/** Describe the rank of a token; a word of several pieces has none. */
function ranked({ rank, pieces }) {
  if (pieces.length > 1) return "";
  return rank === 1 ? " · its first guess" : ` · its guess no. ${rank.toLocaleString("en")}`;
}

function expected(token) {
  if (!token.alternatives.length) return [];
  const rows = token.alternatives.map((other) => {
    const probability = Math.exp(other.log_probability);
    const bar = createElement("span", { class: "bar" });
    bar.style.setProperty("--share", probability);
    const row = createElement("li", {}, createElement("span", { class: "word" }, tokenName(other.token)), bar, createElement("span", { class: "share" }, share(probability)));
    if (other.token === token.pieces[0].token) row.classList.add("hit");
    return row;
  });
  return [createElement("p", { class: "small" }, "Expected here"), createElement("ol", { class: "rows" }, ...rows)];
}

function csv() {
  const head = ["token", "text", "start", "end", "log_probability", "bits", "rank", "unknown", "expected"];
  const rows = tokens.flatMap(({ pieces }) => pieces).map((token) => [
    token.token,
    written(token),
    token.start,
    token.end,
    token.log_probability,
    token.bits,
    token.rank,
    token.unknown,
    token.alternatives.map((other) => other.token).join(" "),
  ]);
  return [head, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

/** Quote a CSV field (RFC 4180); text that a spreadsheet would run as a formula is escaped. */
function quoted(value) {
  const text = typeof value === "string" && /^[=+@-]./.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save(content, type, name) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  createElement("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
