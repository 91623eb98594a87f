// Draw: strokes on a canvas, read while they are drawn; or a photograph in their place.

import { asker, notice, told } from "./api.js";
import { recalled, remember } from "./kept.js";
import { anotherIn, PICTURE_WORDS, posted, received, sendable } from "./pictures.js";
import { made, milliseconds, share } from "./shown.js";

const INK = 0.07; // width of a stroke, of the board's side
const SENT = 280; // pixels of the picture's side
const STEP = 0.05; // of a key, of the board's side
const NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
const at = (id) => document.getElementById(id);
const canvas = at("canvas");
const photo = at("digit-photo");
const bars = NAMES.map((name, digit) => bar(digit));
const tell = notice(at("draw-notice"));
const ask = asker(tell, PICTURE_WORDS);

let strokes = []; // of points [x, y, width], in parts of the board's side
let stroke = null; // the one under the pen
let pen = { x: 0.5, y: 0.3, down: false, shown: false }; // of the keyboard
let file = null; // the photograph
let asking = false;
let outdated = false;

/** Begins, with the drawing of before a reload. */
export function open() {
  at("histogram").append(...bars);
  strokes = JSON.parse(recalled("strokes") || "[]");
  canvas.addEventListener("pointerdown", begin);
  canvas.addEventListener("pointermove", go);
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, end);
  canvas.addEventListener("keydown", press);
  canvas.addEventListener("blur", () => ((pen.shown = false), lift(), paint()));
  at("draw-undo").addEventListener("click", undo);
  at("draw-clear").addEventListener("click", clear);
  received(at("view-draw"), [at("digit-file")], show);
  photo.addEventListener("error", () => lay(true)); // what the browser can't show, the server may yet read
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  new ResizeObserver(paint).observe(canvas);
  paint();
  if (strokes.length) read();
  else say(null);
}

function bar(digit) {
  return made("div", { role: "listitem" }, made("span", { class: "share" }), made("span", { class: "column" }), made("span", { class: "label" }, String(digit)));
}

function begin(event) {
  if (event.button) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  pen.shown = false;
  put(point(event));
}

/** Begins a stroke; on a photograph, which goes, also a new drawing. */
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

/** A photograph goes first: what was drawn before it comes back. */
function takeBack(change) {
  lift();
  if (file) putAway();
  else change();
  ask.stop(); // what is gone is no more to be read
  keep();
  touched();
}

function putAway() {
  ask.stop();
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
  ask.stop();
  say(null);
  read();
}

function lay(aside) {
  photo.hidden = at("photo-help").hidden = aside;
}

const keep = () => remember("strokes", JSON.stringify(strokes.map((one) => one.map((p) => p.map((n) => Number(n.toFixed(4)))))));

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

/** Each stroke as curves through the middles of its points; where its width stays, as one line without seams. */
function trace(context, side, colour) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const points of strokes) {
    let [fromX, fromY] = points[0];
    points.forEach(([x, y, width], place) => {
      const [toX, toY] = middle([x, y], points[place + 1] ?? [x, y]);
      if (width !== points[place - 1]?.[2]) {
        context.beginPath();
        context.lineWidth = width * side;
        context.moveTo(fromX * side, fromY * side);
      }
      context.quadraticCurveTo(x * side, y * side, toX * side, toY * side);
      if (width !== points[place + 1]?.[2]) context.stroke();
      [fromX, fromY] = [toX, toY];
    });
  }
}

const middle = ([x, y], [nextX, nextY]) => [(x + nextX) / 2, (y + nextY) / 2];

/** One question at a time; what changes meanwhile is asked next, so that the bars keep pace with the pen. */
async function read() {
  outdated = true;
  if (asking) return;
  asking = true;
  while (outdated) {
    outdated = false;
    await told(tell, once, anotherIn(at("digit-file")));
  }
  asking = false;
}

async function once() {
  if (!file && !strokes.length) {
    tell();
    return say(null);
  }
  try {
    return await answered();
  } catch (error) {
    if (error.hopeless && file) putAway();
    throw error;
  }
}

async function answered() {
  let started = 0;
  const response = await ask("/digits?framed=true", async () => {
    outdated = false; // whatever waited until now goes with it
    const picture = file ? await sendable(file) : await drawn();
    started = performance.now();
    return posted(picture);
  });
  const [result] = (await response.json()).results;
  at("draw-time").textContent = milliseconds(performance.now() - started);
  return say(result);
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
  at("digit-words").textContent = inWords(result);
  at("framed").hidden = !result;
  if (result) at("framed-image").src = result.framed;
  else at("draw-time").textContent = "";
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
  const digit = at("digit").textContent;
  at("draw-told").textContent = [digit && NAMES[digit], at("digit-words").textContent].filter(Boolean).join(", ");
}
