// A training row: its text with blanks, and below it who sees whom and the two positions.
"use strict";

const RowView = (() => {
  const SIDE = 260;

  function draw(row) {
    const what = row.index >= 0 ? `Row ${Format.count(row.index)} of ${row.corpus}, objective ${row.objective}` : "First example";
    const predicted = `${Format.count(row.real)} tokens of ${Format.count(row.length)}, ${Format.count(row.predicted)} predicted`;
    return h("div", { class: "row" },
      h("p", { class: "unit" }, `${what}: ${predicted}.`),
      h("div", { class: "row-parts" },
        h("div", { class: "row-text" }, ...row.segments.map((segment, number) => words(segment, number, row.segments.length))),
        h("div", { class: "row-pictures" }, mask(row), positions(row))));
  }

  function words(segment, number, count) {
    const name = count > 1 ? `Part A of segment ${number + 1}` : "Part A";
    const partA = segment.part_a.map(([text, blank]) => (blank === null ? text : h("b", { class: `blank b${color(blank)}` }, `${text}${sub(blank)}`)));
    const partB = segment.blanks.map((blank) => h("li", {},
      h("b", { class: `blank b${color(blank.number)}` }, sub(blank.number)), " ",
      h("span", { class: "targets" }, blank.targets), " ",
      h("span", { class: "unit" }, `position ${blank.position}, block positions 1 to ${blank.length}`)));
    return h("div", {},
      h("h4", {}, name), h("p", { class: "words" }, ...partA),
      partB.length ? [h("h4", {}, "Part B: blanks in the order in which they are filled"), h("ul", { class: "blanks" }, ...partB)] : null,
      segment.predicted ? [h("h4", {}, "Predicted"), h("p", { class: "words" }, segment.predicted)] : null);
  }

  function color(number) { return ((number - 1) % 6) + 1; }
  function sub(number) { return [...String(number)].map((digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]).join(""); }

  // Queries downwards, keys to the right. All of Part A is seen by the whole segment; Part B is
  // causal.
  function mask(row) {
    const size = row.length, unit = SIDE / size, at = (x) => (x * unit).toFixed(2);
    const shapes = [];
    for (const { begin, length, prefix_length: prefix, blanks } of row.segments) {
      const middle = begin + prefix, end = begin + length;
      shapes.push(h("rect", { class: "sees-a", x: at(begin), y: at(begin), width: at(prefix), height: at(length) }));
      shapes.push(h("path", { class: "sees-b", d: stairs(middle, end, unit) }));
      for (const blank of blanks) {
        shapes.push(h("rect", { class: `mark b${color(blank.number)}`, x: SIDE + 4, y: at(blank.begin), width: 5, height: at(blank.length) }));
        shapes.push(h("rect", { class: `mark b${color(blank.number)}`, x: at(blank.begin), y: SIDE + 4, width: at(blank.length), height: 5 }));
      }
      if (prefix > 0) shapes.push(label("A", begin + prefix / 2, unit));
      if (end > middle) shapes.push(label("B", (middle + end) / 2, unit));
    }
    const svg = h("svg", { viewBox: `-20 -18 ${SIDE + 34} ${SIDE + 32}`, role: "img", "aria-label": "Attention mask: every token sees all of Part A; a token of Part B also sees what stands before it in Part B." },
      h("rect", { class: "frame", x: 0, y: 0, width: SIDE, height: SIDE }), ...shapes);
    return h("figure", {}, h("figcaption", {}, h("span", { class: "title" }, "Attention"), h("span", { class: "unit" }, "a query (down) sees a key (right)")), svg);
  }

  function label(name, place, unit) {
    const middle = (place * unit).toFixed(1);
    return h("g", { class: "letter" },
      h("text", { x: middle, y: -6, "text-anchor": "middle" }, name),
      h("text", { x: -10, y: middle, "text-anchor": "middle", "dominant-baseline": "middle" }, name));
  }

  function stairs(from, to, unit) {
    let path = `M${(from * unit).toFixed(2)} ${(from * unit).toFixed(2)}`;
    for (let i = from; i < to; i++) path += `H${((i + 1) * unit).toFixed(2)}V${((i + 1) * unit).toFixed(2)}`;
    return `${path}H${(from * unit).toFixed(2)}Z`;
  }

  function positions(row) {
    const height = 110, unit = SIDE / row.length;
    const most = Math.max(1, ...row.positions, ...row.block_positions);
    const y = (value) => (height - (value / most) * height).toFixed(1);
    const line = (values, kind) => {
      let path = "";
      values.forEach((value, i) => { path += `${i ? "V" : "M0 "}${y(value)}H${((i + 1) * unit).toFixed(2)}`; });
      return h("path", { class: kind, d: path });
    };
    const middle = (row.segments[0].prefix_length * unit).toFixed(2);
    const svg = h("svg", { viewBox: `-20 -6 ${SIDE + 34} ${height + 12}`, role: "img", "aria-label": "The two positions of each token: in Part B the first stays at its blank, the second counts within the blank." },
      row.segments.length === 1 ? h("line", { class: "border", x1: middle, y1: 0, x2: middle, y2: height }) : null,
      line(row.positions, "first"), line(row.block_positions, "second"));
    return h("figure", {}, h("figcaption", {}, h("span", { class: "title" }, "Positions"),
      h("span", { class: "unit" }, h("i", { class: "key first" }), ` position, up to ${most} `, h("i", { class: "key second" }), " block position")), svg);
  }

  return { draw };
})();
