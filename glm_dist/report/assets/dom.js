// Elements and numbers. Every text of a run becomes a text node, so nothing in it is markup.
"use strict";

function h(tag, attributes = {}, ...children) {
  const isSvg = h.svgTags.has(tag);
  const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
h.svgTags = new Set(["svg", "rect", "path", "line", "g", "text", "polyline"]);

// The mark of a line in a legend; striped if the line is dashed.
function swatch(color, isDashed = false) {
  const node = h("span", { class: "swatch", "aria-hidden": "true" });
  node.style.background = isDashed ? `repeating-linear-gradient(90deg, ${color} 0 3px, transparent 3px 5px)` : color;
  return node;
}

const Format = {
  // Four digits, whatever the size.
  number(x) {
    if (x === null || x === undefined || Number.isNaN(x)) return "–";
    const size = Math.abs(x);
    if (size !== 0 && (size < 1e-3 || size >= 1e9)) return x.toExponential(3).replace("e+", "e");
    if (size >= 1000) return Math.round(x).toLocaleString("en-US");
    return String(Number(x.toPrecision(size < 1 ? 4 : 5)));
  },
  count(x) { return x === null || x === undefined ? "–" : Math.round(x).toLocaleString("en-US"); },
  percent(x) { return x === null || x === undefined ? "–" : `${Number((100 * x).toPrecision(3))}%`; },
  // As short as it gets: ticks, and counts of tokens.
  short(x) {
    if (x === null || x === undefined) return "–";
    const size = Math.abs(x);
    if (size === 0) return "0";
    for (const [unit, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
      if (size >= unit) return `${Number((x / (name === "k" ? 1e3 : unit)).toPrecision(4))}${name}`;
    }
    return size < 1e-3 ? x.toExponential(1).replace(".0", "").replace("e+", "e") : String(Number(x.toPrecision(4)));
  },
  bytes(x) {
    if (x === null || x === undefined) return "–";
    for (const [unit, name] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
      if (x >= unit) return `${(x / unit).toPrecision(3)} ${name}`;
    }
    return `${x} B`;
  },
  duration(seconds) {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds < 120) return `${Number(seconds.toFixed(seconds < 10 ? 1 : 0))} s`;
    const minutes = Math.round(seconds / 60);
    if (minutes < 60) return `${minutes} min`;
    const hours = Math.floor(minutes / 60);
    return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
  },
  // Ticks of a date axis: the time, and the date where it changes.
  dates(ticks) {
    const isFine = ticks.length > 1 && ticks[1] - ticks[0] < 60, isCoarse = ticks.length > 1 && ticks[1] - ticks[0] >= 86400;
    let before = "";
    return ticks.map((tick) => {
      const [date, time] = Format.time(tick).split(" ");
      const shown = isCoarse ? date.slice(5) : isFine ? time : time.slice(0, 5);
      const second = isCoarse ? date.slice(0, 4) : date.slice(5);
      const isNew = second !== before;
      before = second;
      return isNew ? `${shown}\n${second}` : shown;
    });
  },
  time(seconds) {
    if (!seconds) return "–";
    const date = new Date(seconds * 1000), two = (x) => String(x).padStart(2, "0");
    return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  },
};
