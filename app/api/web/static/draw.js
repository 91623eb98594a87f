// Draw: strokes on a canvas, classified while they are drawn; or a photograph instead. Where the server has a number
// reader, several digits in a row are read as a number, each in its box.

import { createRequester, isAbort, notice, reportErrors } from "./api.js";
import { restore, store } from "./storage.js";
import { chooseAnother, IMAGE_ERRORS, uploadOptions, onImage, toUploadable } from "./images.js";
import { createElement, createShape, milliseconds, share } from "./format.js";

const INK = 0.07; // width of a stroke, as a fraction of the board's side
const SENT = 280; // side of the uploaded image, in pixels
const STEP = 0.05; // of an arrow key, as a fraction of the board's side
const NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
const at = (id) => document.getElementById(id);
const canvas = at("canvas");
const photo = at("digit-photo");
const bars = NAMES.map((name, digit) => bar(digit));
const notify = notice(at("draw-notice"));
const request = createRequester(notify, IMAGE_ERRORS);

let strokes = []; // lists of points [x, y, width], as fractions of the board's side
let stroke = null; // the stroke in progress
let pen = { x: 0.5, y: 0.3, down: false, shown: false }; // the pen moved by the keyboard
let file = null; // the photograph
let numbers = null; // whether the server reads numbers; null until the first drawing
let asking = false;
let outdated = false;

/** Initialise the view with the drawing from before a reload. */
export function open() {
  at("histogram").append(...bars);
  strokes = JSON.parse(restore("strokes") || "[]");
  canvas.addEventListener("pointerdown", begin);
  canvas.addEventListener("pointermove", go);
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, end);
  canvas.addEventListener("keydown", press);
  canvas.addEventListener("blur", () => ((pen.shown = false), lift(), paint()));
  at("draw-undo").addEventListener("click", undo);
  at("draw-clear").addEventListener("click", clear);
  onImage(at("view-draw"), [at("digit-file")], show);
  photo.addEventListener("error", () => lay(true)); // the server may decode what the browser can't show
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  new ResizeObserver(paint).observe(canvas);
  paint();
  if (strokes.length) read();
  else say(null);
}

/** Return whether the server has a number reader; false if its list of models can't be read. */
async function hasNumberReader() {
  try {
    const { models } = await (await request("models")).json();
    const found = models.some(({ family, ready }) => family === "numbers" && ready);
    at("number-help").hidden = !found;
    return found;
  } catch (error) {
    if (isAbort(error)) throw error; // the drawing was cleared
    return false;
  }
}

function bar(digit) {
  return createElement("div", { role: "listitem" }, createElement("span", { class: "share" }), createElement("span", { class: "column" }), createElement("span", { class: "label" }, String(digit)));
}

function begin(event) {
  if (event.button) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  pen.shown = false;
  put(point(event));
}

/** Start a stroke; if a photograph is shown, remove it and start a new drawing. */
function put(start) {
  if (file) {
    putAway();
    strokes = [];
  }
  stroke = [start];
  strokes.push(stroke);
  touched();
}

function go(event) {
  if (!stroke || !canvas.hasPointerCapture(event.pointerId)) return;
  const passed = event.getCoalescedEvents?.() ?? [];
  stroke.push(...(passed.length ? passed : [event]).map(point));
  touched();
}

function end() {
  stroke = null;
  keep();
  speak();
}

function point(event) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  const pressed = event.pointerType === "pen" ? 0.5 + event.pressure : 1;
  return [(event.clientX - left) / width, (event.clientY - top) / height, INK * pressed];
}

function press(event) {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (by) move(by);
  else if (event.key === " ") pen.down ? lift() : lower();
  else if (event.key === "Backspace") undo();
  else return;
  event.preventDefault();
  pen.shown = true;
  paint();
}

function move([dx, dy]) {
  pen.x = Math.min(1, Math.max(0, pen.x + STEP * dx));
  pen.y = Math.min(1, Math.max(0, pen.y + STEP * dy));
  if (!pen.down) return;
  stroke.push([pen.x, pen.y, INK]);
  touched();
}

function lower() {
  pen.down = true;
  put([pen.x, pen.y, INK]);
}

function lift() {
  if (pen.down) end();
  pen.down = false;
}

function undo() {
  takeBack(() => strokes.pop());
}

function clear() {
  takeBack(() => (strokes = []));
}

/** Undo or clear; a photograph is removed first, which restores the drawing before it. */
function takeBack(change) {
  lift();
  if (file) putAway();
  else change();
  request.cancel(); // a removed drawing must not be classified any more
  keep();
  touched();
}

function putAway() {
  request.cancel();
  file = null;
  URL.revokeObjectURL(photo.src);
  lay(true);
}

function show(chosen) {
  lift();
  file = chosen;
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  lay(false);
  request.cancel();
  say(null);
  read();
}

function lay(aside) {
  photo.hidden = at("photo-help").hidden = aside;
}

const keep = () => store("strokes", JSON.stringify(strokes.map((one) => one.map((p) => p.map((n) => Number(n.toFixed(4)))))));

function touched() {
  paint();
  read();
}

function paint() {
  const side = Math.round(canvas.clientWidth * devicePixelRatio);
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const colours = getComputedStyle(canvas);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, side, side);
  trace(context, side, colours.color);
  if (pen.shown) mark(context, side, colours.getPropertyValue("--accent"));
}

function mark(context, side, colour) {
  context.beginPath();
  context.arc(pen.x * side, pen.y * side, (pen.down ? 0.6 : 1) * INK * side * 0.6, 0, 7);
  context.lineWidth = 0.008 * side;
  context.strokeStyle = context.fillStyle = colour;
  pen.down ? context.fill() : context.stroke();
}

/** Draw each stroke as curves through the midpoints of its points; one path where the width is constant. */
function trace(context, side, colour) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const points of strokes) {
    let [fromX, fromY] = points[0];
    points.forEach(([x, y, width], index) => {
      const [toX, toY] = middle([x, y], points[index + 1] ?? [x, y]);
      if (width !== points[index - 1]?.[2]) {
        context.beginPath();
        context.lineWidth = width * side;
        context.moveTo(fromX * side, fromY * side);
      }
      context.quadraticCurveTo(x * side, y * side, toX * side, toY * side);
      if (width !== points[index + 1]?.[2]) context.stroke();
      [fromX, fromY] = [toX, toY];
    });
  }
}

const middle = ([x, y], [nextX, nextY]) => [(x + nextX) / 2, (y + nextY) / 2];

/** Send one request at a time; changes meanwhile are sent next, so that the bars keep pace with the pen. */
async function read() {
  outdated = true;
  if (asking) return;
  asking = true;
  while (outdated) {
    outdated = false;
    await reportErrors(notify, once, chooseAnother(at("digit-file")));
  }
  asking = false;
}

async function once() {
  if (!file && !strokes.length) {
    notify();
    return say(null);
  }
  numbers ??= await hasNumberReader();
  try {
    return await answered();
  } catch (error) {
    if (error.permanent && file) putAway();
    throw error;
  }
}

async function answered() {
  let started = 0;
  let upload = null;
  const response = await request(`digits?framed=true${numbers ? "&number=true" : ""}`, async () => {
    outdated = false; // all changes until now are included
    upload = file ? await toUploadable(file) : await drawn();
    started = performance.now();
    return uploadOptions(upload);
  });
  const [result] = (await response.json()).results;
  at("draw-time").textContent = milliseconds(performance.now() - started);
  const several = isNumber(result);
  const size = several && (await createImageBitmap(upload).catch(() => null));
  say(several ? numberOf(result) : result);
  box(size ? result.digits : [], size);
}

/** Return whether several digits are read, and with more confidence than one. */
const isNumber = ({ number, number_confidence, digit, confidence }) => number?.length > 1 && (digit === null || number_confidence > confidence);

const numberOf = ({ number, number_confidence }) => ({ digit: number, confidence: number_confidence, probabilities: Array(10).fill(0), rejected: false });

/** Show boxes in pixels of an image of `width` and `height`, which fills the board as the photograph does. */
function box(digits, { width, height } = {}) {
  at("boxes").setAttribute("viewBox", `0 0 ${width ?? 1} ${height ?? 1}`);
  at("boxes").replaceChildren(...digits.map(({ box: [x, y, width, height] }) => createShape("rect", { x, y, width, height })));
}

function drawn() {
  const sheet = new OffscreenCanvas(SENT, SENT);
  const context = sheet.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, SENT, SENT);
  trace(context, SENT, "black");
  return sheet.convertToBlob({ type: "image/png" });
}

function say(result) {
  const sure = result && !result.rejected;
  const found = (digit) => (result ? result.probabilities[digit] : 0);
  at("digit").textContent = sure ? result.digit : "";
  at("digit").style.setProperty("--digits", at("digit").textContent.length || 1);
  at("digit-words").textContent = inWords(result);
  at("framed").hidden = !result?.framed;
  if (result?.framed) at("framed-image").src = result.framed;
  if (!result) {
    at("draw-time").textContent = "";
    box([]);
  }
  bars.forEach((one, digit) => {
    one.style.setProperty("--share", found(digit));
    one.classList.toggle("first", Boolean(sure) && result.digit === digit);
    one.firstChild.textContent = found(digit) >= 0.01 ? Math.round(100 * found(digit)) : "";
    one.setAttribute("aria-label", `${digit}: ${share(found(digit)).replace(/^1 in .*/, "under 0.1 %")}`);
  });
  if (!stroke) speak();
}

function inWords(result) {
  if (!result) return "The bars move as you draw.";
  if (result.rejected) return `No digit: ${result.reason}.`;
  return `${share(result.confidence)} sure`;
}

function speak() {
  const digits = [...at("digit").textContent].map((digit) => NAMES[digit]).join(" ");
  at("draw-announcement").textContent = [digits, at("digit-words").textContent].filter(Boolean).join(", ");
}
