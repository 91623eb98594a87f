// DOM elements, and the formats of probabilities, counts, durations and tokens.

/** Create an element with properties (`class`, `role` and attributes with a dash among them) and children; strings become text nodes. */
export function createElement(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "class") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

/** Create an SVG element with attributes and children. */
export function createShape(name, attributes, ...children) {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
  shape.append(...children);
  return shape;
}

/** Format a probability: over 99.9 %, 38 %, 0.4 %, 1 in 12,000; never 100 %. */
export function share(probability) {
  if (probability > 0.999) return "over 99.9 %";
  if (probability > 0.99) return `${(100 * probability).toFixed(1)} %`;
  if (probability >= 0.0995) return `${Math.round(100 * probability)} %`;
  if (probability >= 0.001) return `${(100 * probability).toFixed(1)} %`;
  return `1 in ${rounded(1 / probability)}`;
}

/** Format a count, rounded to two significant digits. */
export function rounded(count) {
  if (!Number.isFinite(count)) return "very many";
  const scale = 10 ** Math.max(0, Math.floor(Math.log10(count)) - 1);
  return (Math.round(count / scale) * scale).toLocaleString("en");
}

/** Format a latency in milliseconds. */
export const milliseconds = (time) => (time < 10 ? `${time.toFixed(1)} ms` : `${Math.round(time)} ms`);

/** Format a waiting time given in seconds. */
export function duration(seconds) {
  if (seconds < 100) return `${seconds} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;
}

/** Describe a token of the corpus in words. */
export const tokenName = (token) => ({ "<eos>": "end of sentence", "<doc>": "end of the text", "\n": "line break", "<unk>": "a rarer word", N: "a number" })[token] ?? token;
