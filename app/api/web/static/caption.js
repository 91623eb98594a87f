// Caption: a photograph, and its caption, streamed word by word.

import { createRequester, RequestError, errorOf, isAbort, notice, reportErrors } from "./api.js";
import { copyText } from "./storage.js";
import { chooseAnother, IMAGE_ERRORS, uploadOptions, onImage, toUploadable } from "./images.js";
import { createElement, createShape, milliseconds, share } from "./format.js";

const FROM_LANGUAGE = 0.5; // share of the words before it from which a word is grey
const LABEL = 0.045; // height of a tag's label, as a part of the photograph's longer side
const at = (id) => document.getElementById(id);
const image = at("photo-image");
const sentence = at("caption-sentence");
const notify = notice(at("caption-notice"));
const request = createRequester(notify, IMAGE_ERRORS);

/** Initialise the view. */
export function open() {
  onImage(at("view-caption"), [at("photo-file"), at("photo-camera")], show);
  at("caption-copy").addEventListener("click", (event) => copyText(event.target, image.alt));
  for (const kind of ["pointerover", "focusin"]) sentence.addEventListener(kind, ({ target }) => look(target));
  sentence.addEventListener("pointerleave", () => look(document.activeElement));
  sentence.addEventListener("focusout", () => look(null));
  sentence.addEventListener("keydown", step);
  image.addEventListener("error", () => shown(false)); // the server may decode what the browser can't show
}

function show(file) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = "Your photograph";
  shown(true);
  notify();
  return reportErrors(notify, () => described(file), chooseAnother(at("photo-file")));
}

function shown(can) {
  image.hidden = !can;
  at("photo-empty").hidden = can;
}

function begin() {
  sentence.replaceChildren();
  sentence.removeAttribute("role");
  sentence.setAttribute("aria-hidden", "true");
  at("looks").replaceChildren();
  at("look-help").hidden = true;
  for (const id of ["caption-announcement", "caption-time"]) at(id).textContent = "";
  for (const id of ["caption-copy", "others"]) at(id).hidden = true;
}

/** Caption a photograph; clear a partial caption on errors. */
async function described(file) {
  begin();
  try {
    await describe(file);
  } catch (error) {
    if (!isAbort(error)) begin();
    throw error;
  }
}

async function describe(file) {
  let started = 0;
  let upload = null;
  const response = await request("captions?alternatives=4&people=neutral&attention=true", async () => {
    upload = await toUploadable(file);
    started = performance.now();
    return uploadOptions(upload, { Accept: "text/event-stream" });
  });
  let first = 0;
  let result = null;
  for await (const { event, data } of events(response.body)) {
    if (event === "error") throw errorOf(data.status, data, IMAGE_ERRORS);
    first ||= performance.now() - started;
    if (event === "word") add(data.word);
    if (event === "caption") finish((result = data.results[0]));
  }
  if (!result) throw new RequestError("The answer was cut off.");
  await showLooks(result, upload);
  at("caption-time").textContent = `First word after ${milliseconds(first)}, all of it after ${milliseconds(performance.now() - started)}.`;
}

/** Yield the server-sent events of a body as they arrive. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split(/\r?\n/).map((line) => line.split(/: ?(.*)/s)));
      if (fields.data) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

function add(word) {
  const piece = createElement("span", {}, word);
  piece.style.setProperty("--place", sentence.children.length);
  sentence.append(piece, " ");
}

function finish(result) {
  const labels = [...new Set(result.tags.map((tag) => tag.label))].join(", ");
  const text = result.caption ?? (labels ? `Unsure; may show: ${labels}` : "Unsure what this shows");
  if (sentence.textContent.trim() !== text) {
    sentence.replaceChildren();
    text.split(" ").forEach(add);
  }
  image.alt = text;
  at("caption-announcement").textContent = text;
  at("caption-copy").hidden = false;
  at("others").hidden = !result.alternatives.length;
  at("others-list").replaceChildren(...result.alternatives.map(other));
}

/** Show the objects that were detected, and let the words be stepped through: each shows the cells where it looked. */
async function showLooks({ tags, words, caption }, upload) {
  const size = await createImageBitmap(upload).catch(() => null);
  if (!size) return; // the browser can't show the photograph either
  const { width, height } = size;
  at("looks").setAttribute("viewBox", `0 0 ${width} ${height}`);
  at("looks").replaceChildren(createShape("g", {}), ...tags.map((tag) => outline(tag, LABEL * Math.max(width, height))));
  const attends = Boolean(words && caption);
  if (attends) {
    sentence.replaceChildren(...words.flatMap((word) => [option(word, size), " "]));
    sentence.firstElementChild.tabIndex = 0;
    sentence.removeAttribute("aria-hidden");
    sentence.setAttribute("role", "listbox");
    sentence.setAttribute("aria-label", "Words of the caption");
  }
  at("look-help").textContent = [
    tags.length ? "Boxes: objects that the detector saw." : "",
    attends ? "Point at a word to see the cells it looked at. Grey words follow from the words before them." : "",
  ].join(" ");
  at("look-help").hidden = !(tags.length || attends);
}

function outline({ label, box: [x, y, width, height] }, size) {
  const text = createShape("text", { x: x + size / 4, y: y + size, "font-size": size }, label);
  return createShape("g", { class: "tag" }, createShape("rect", { x, y, width, height }), text);
}

function option({ text, weights, language }, { width, height }) {
  const word = createElement("span", { role: "option", tabIndex: -1, class: language > FROM_LANGUAGE ? "from-language" : "" }, text);
  const largest = Math.max(...weights.flat());
  const [down, across] = [height / weights.length, width / weights[0].length];
  word.cells = weights.flatMap((row, y) =>
    row.map((weight, x) => createShape("rect", { x: x * across, y: y * down, width: across, height: down, "fill-opacity": (0.7 * weight) / largest })),
  );
  return word;
}

/** Show the cells of a word; none for another element. */
function look(word) {
  at("looks").firstElementChild?.replaceChildren(...(word?.cells ?? []));
}

function step(event) {
  const { target } = event;
  const to = { ArrowRight: target.nextElementSibling, ArrowLeft: target.previousElementSibling }[event.key];
  if (!to) return;
  event.preventDefault();
  target.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

function other({ caption, log_probability }) {
  const copy = createElement("button", { "aria-label": `Copy: ${caption}` }, "Copy");
  copy.addEventListener("click", () => copyText(copy, caption));
  return createElement("li", {}, createElement("span", {}, caption), createElement("span", { class: "share", title: "probability of this exact sentence" }, share(Math.exp(log_probability))), copy);
}
