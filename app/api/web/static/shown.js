// How things are shown: elements, shares, counts, durations and the corpus's tokens, as a person reads them.

/** An element with its properties (`class`, `dataset` and attributes among them) and children; text stays text. */
export function made(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "class") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

/** A share as a person reads it: over 99.9 %, 38 %, 0.4 %, 1 in 12,000. Nothing is ever quite certain. */
export function share(probability) {
  if (probability > 0.999) return "over 99.9 %";
  if (probability > 0.99) return `${(100 * probability).toFixed(1)} %`;
  if (probability >= 0.0995) return `${Math.round(100 * probability)} %`;
  if (probability >= 0.001) return `${(100 * probability).toFixed(1)} %`;
  return `1 in ${rounded(1 / probability)}`;
}

/** A count, to two digits if it is a large one. */
export function rounded(count) {
  if (!Number.isFinite(count)) return "ever so many";
  const scale = 10 ** Math.max(0, Math.floor(Math.log10(count)) - 1);
  return (Math.round(count / scale) * scale).toLocaleString("en");
}

/** A duration as the page shows it. */
export const milliseconds = (time) => (time < 10 ? `${time.toFixed(1)} ms` : `${Math.round(time)} ms`);

/** A wait as a person counts it. */
export function duration(seconds) {
  if (seconds < 100) return `${seconds} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;
}

/** A token of the corpus, in words. */
export const spoken = (token) => ({ "<eos>": "end of sentence", "<unk>": "a rarer word", N: "a number" })[token] ?? token;
