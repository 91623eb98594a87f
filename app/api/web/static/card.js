// A model card's Markdown as elements: headings, paragraphs, lists, tables and pictures; its text stays text.

import { made } from "./shown.js";

/** The sections of a card, in their order: their heading ("" for what comes first) and their blocks. */
export function sections(markdown) {
  const found = [{ heading: "", blocks: [] }];
  for (const block of markdown.split(/\n{2,}/).flatMap(parted)) {
    const [, level, words] = block.match(/^(#+) (.*)/) ?? [];
    if (level === "##") found.push({ heading: words, blocks: [] });
    else if (level !== "#") found.at(-1).blocks.push(block);
  }
  return found;
}

/** Headings and pictures need no empty line around them. */
const parted = (block) => block.trim().split(/\n(?=!\[|#)|(?<=^#.*)\n/).filter(Boolean);

/** A block as an element; `picture(name, words)` makes a picture. */
export function element(block, picture) {
  const [, words, name] = block.match(/^!\[(.*)\]\((.*)\)$/) ?? [];
  if (name) return picture(name, words);
  if (block.startsWith("|")) return table(block.split("\n").map(cells));
  if (block.startsWith("- ")) return made("ul", {}, ...block.slice(2).split(/\n- /).map((item) => made("li", {}, ...inline(item))));
  if (block.startsWith("#")) return made("h3", {}, ...inline(block.replace(/^#+ /, "")));
  return made("p", {}, ...inline(block));
}

const cells = (row) => row.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table([head, , ...rows]) {
  const titles = made("tr", {}, ...head.map((cell) => (cell ? made("th", { scope: "col" }, ...inline(cell)) : made("td"))));
  const body = rows.map(([first, ...others]) =>
    made("tr", {}, made("th", { scope: "row" }, ...inline(first)), ...others.map((cell) => made("td", {}, ...inline(cell)))),
  );
  const grid = made("table", {}, made("thead", {}, titles), made("tbody", {}, ...body));
  return made("div", { class: "wide", tabIndex: 0, role: "region", "aria-label": `Table: ${head.filter(Boolean).join(", ")}` }, grid);
}

/** `code` and **strong**; all else is text. */
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((piece) => {
    if (piece.startsWith("`")) return made("code", {}, piece.slice(1, -1));
    if (piece.startsWith("**")) return made("strong", {}, piece.slice(2, -2));
    return piece.replaceAll("\n", " ");
  });
}
