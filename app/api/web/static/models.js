// Models: the cards. What each was trained on, its figures and pictures, and what it is not good at.

import { asker, notice, told } from "./api.js";
import { element, sections } from "./card.js";
import { made } from "./shown.js";

const FAMILIES = {
  language_model: {
    title: "The one that writes and reads",
    figure: ({ test_perplexity }) => [test_perplexity?.toFixed(1), "perplexity on the test text; lower is better"],
  },
  digits: {
    title: "The one that reads digits",
    figure: ({ test_accuracy }) => [test_accuracy && `${(100 * test_accuracy).toFixed(2)} %`, "of the test digits read rightly"],
  },
  captions: {
    title: "The one that tells photographs",
    figure: ({ test_cider }) => [test_cider?.toFixed(1), "CIDEr on the test photographs; higher is better"],
  },
};
const ORDER = Object.keys(FAMILIES);
const LIMITS = "What it is not good at";
const FIGURES = "Figures";
const tell = notice(document.getElementById("models-notice"));

/** Begins: all cards are asked for at once. */
export function open() {
  return told(tell, async () => {
    const { models } = await get("/models");
    models.sort((a, b) => ORDER.indexOf(a.family) - ORDER.indexOf(b.family) || a.name.localeCompare(b.name));
    const cards = await Promise.all(models.map((one) => (one.ready ? ready(one) : refused(one))));
    document.getElementById("cards").replaceChildren(...cards);
  });
}

const get = async (path) => (await asker(tell)(path)).json();

async function ready({ name }) {
  const model = await get(`/models/${encodeURIComponent(name)}`);
  const family = FAMILIES[model.family] ?? { title: name, figure: () => [] };
  const [value, unit] = family.figure(model.metrics);
  const [first, ...rest] = sections(model.card ?? "");
  const shown = (section) => section.blocks.map((block) => element(block, (file, words) => picture(model, file, words)));
  return made(
    "article",
    { class: "card" },
    made("header", {}, made("h2", {}, family.title), made("p", { class: "measure" }, facts(model))),
    made("p", { class: "figure" }, ...(value ? [made("strong", {}, value), made("span", {}, unit)] : [])),
    made("div", { class: "about" }, ...shown(first), ...aside(rest, shown)),
    ...rest.filter(({ heading }) => heading === LIMITS).map((section) => made("section", { class: "limits" }, made("h3", {}, section.heading), ...shown(section))),
    ...rest.filter(({ heading }) => heading === FIGURES).flatMap((section) => figures(section, shown)),
  );
}

const aside = (rest, shown) =>
  rest.filter(({ heading }) => ![LIMITS, FIGURES].includes(heading)).flatMap((section) => [made("h3", {}, section.heading), ...shown(section)]);

/** The pictures in the open, what is said of them and the tables behind a click. */
function figures(section, shown) {
  const parts = shown(section);
  const pictures = parts.filter((part) => part.tagName === "FIGURE");
  const rest = parts.filter((part) => part.tagName !== "FIGURE");
  return [
    made("div", { class: "pictures" }, ...pictures),
    ...(rest.length ? [made("details", {}, made("summary", {}, "All figures"), ...rest)] : []),
  ];
}

const facts = (model) =>
  [
    `${model.name} ${model.version}`,
    `${millions(model.parameters)} parameters`,
    `${millions(model.sizes.total)}B on disk`,
    `answers in ${model.served}`,
    `made on ${model.created.slice(0, 10)}`,
  ].join(" · ");

const millions = (count) => (count < 1e6 ? `${Math.round(count / 1e3)} k` : `${(count / 1e6).toFixed(1)} M`);

function refused({ name, reason }) {
  return made("article", { class: "card" }, made("header", {}, made("h2", {}, name)), made("p", { class: "notice" }, `Does not answer now: ${reason}`));
}

function picture(model, file, words) {
  const address = `/models/${encodeURIComponent(model.name)}/files/${encodeURIComponent(file)}`;
  const image = made("img", { loading: "lazy", alt: words, src: address });
  return made("figure", {}, made("a", { href: address, target: "_blank", rel: "noopener", "aria-label": `${words}, in full size, in a new tab` }, image), made("figcaption", {}, words));
}
