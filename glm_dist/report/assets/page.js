// The page as a whole: its head, its controls, its sections, and news of runs that go on.
"use strict";

(() => {
  const facts = JSON.parse(document.getElementById("data").textContent);
  const runs = facts.runs.map((run, index) => new Series.Run(run, index));
  const { shared } = Charts;
  let now = facts.generated;
  let metrics = "";

  const sections = new Map();
  const holder = document.getElementById("page");
  const chartHolder = h("div", { id: "charts" });
  const liveMark = h("span", { class: "live", role: "status" });

  function section(id, title, build) {
    const body = h("div", {});
    const node = h("section", { id, class: "part" }, h("h2", {}, title), body);
    const link = h("a", { href: `#${id}` }, title);
    sections.set(id, { node, body, build, link, shown: null });
    return node;
  }

  // Draw the sections whose content has changed; what a reader has opened stays open elsewhere.
  function drawSections(force = false) {
    for (const [id, part] of sections) {
      const state = force ? null : JSON.stringify(runs.map((run) => essence(id, run)));
      if (state !== null && state === part.shown) continue;
      part.shown = state;
      const nodes = [attempt(part.build)].flat().filter(Boolean);
      part.node.hidden = part.link.hidden = nodes.length === 0;
      part.body.replaceChildren(...nodes);
    }
  }

  // A file that somebody changed must not take the rest of the page with it.
  function attempt(build) {
    try {
      return build();
    } catch (error) {
      console.error(error);
      return h("p", { class: "notes" }, `This section cannot be drawn: ${error.message}`);
    }
  }

  function essence(id, run) {
    const { facts: known } = run;
    const by = {
      summary: [known.state, known.last_sign, known.offset, run.visible],
      goodput: known.goodput, events: known.events, checkpoints: known.checkpoints,
      results: known.results, attempts: [known.attempts, known.changes], row: known.row !== null, config: known.config, notes: known.notes,
    };
    return by[id];
  }

  function row() {
    const having = runs.filter((run) => run.facts.row);
    if (!having.length) return null;
    const drawn = h("div", {}, RowView.draw(having[0].facts.row));
    if (having.length === 1) return drawn;
    const choose = (event) => drawn.replaceChildren(RowView.draw(having[event.target.value].facts.row));
    const select = h("select", { onchange: choose }, ...having.map((run, i) => h("option", { value: i }, run.facts.label)));
    return [h("p", { class: "chips" }, h("label", { class: "chip" }, "run", select)), drawn];
  }

  function notes() {
    const lines = runs.flatMap((run) => run.facts.notes.map((note) => `${runs.length > 1 ? `${run.facts.label}: ` : ""}${note}`));
    const thinned = runs.flatMap((run) => run.tables.map((table) => table.recorded - table.steps.length)).some((count) => count > 0);
    if (thinned) lines.push("Metrics with many records are thinned out; the least and greatest values stay. --points 0 keeps all.");
    return lines.length ? h("ul", { class: "notes" }, ...lines.map((line) => h("li", {}, line))) : null;
  }

  function segmented(name, label, choices, chosen, onchoose) {
    return h("fieldset", { class: "segmented" }, h("legend", {}, label), ...choices.map(([value, title]) =>
      h("label", {}, h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchoose(value) }), h("span", {}, title))));
  }

  function toolbar() {
    const hasTokens = runs.some((run) => run.facts.shape.tokens_per_step);
    const axes = Object.entries(Series.AXES).filter(([name]) => name !== "tokens" || hasTokens).map(([name, { title }]) => [name, title]);
    const output = h("output", {}, shared.smoothing.toFixed(2));
    const slider = h("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: String(shared.smoothing), "aria-label": "Smoothing",
      oninput: (event) => { shared.smoothing = Number(event.target.value); output.textContent = shared.smoothing.toFixed(2); Charts.schedule("build"); } });
    const all = h("button", { type: "button", disabled: true, title: "Show all (double click, or 0)", onclick: () => Charts.zoomTo(null) }, "all");
    shared.onRange = (range) => { all.disabled = range === null; };
    return h("div", { class: "toolbar", role: "toolbar", "aria-label": "Charts" },
      segmented("axis", "Over", axes, shared.axis, (axis) => { shared.axis = axis; shared.range = null; shared.onRange(null); Charts.schedule("build"); }),
      h("label", { class: "slider" }, h("span", {}, "Smoothing"), slider, output),
      h("label", { class: "chip" }, h("input", { type: "checkbox", checked: shared.events, onchange: (event) => { shared.events = event.target.checked; Charts.schedule("build"); } }), "events"),
      h("span", { class: "zoom", role: "group", "aria-label": "Zoom" },
        h("button", { type: "button", title: "Earlier", "aria-label": "Earlier", onclick: () => Charts.pan(-0.3) }, "‹"),
        h("button", { type: "button", title: "Zoom out", "aria-label": "Zoom out", onclick: () => Charts.zoom(1.6) }, "−"),
        h("button", { type: "button", title: "Zoom in", "aria-label": "Zoom in", onclick: () => Charts.zoom(0.6) }, "+"),
        h("button", { type: "button", title: "Later", "aria-label": "Later", onclick: () => Charts.pan(0.3) }, "›"), all));
  }

  function placeCharts() {
    metrics = Charts.names(runs);
    Charts.place(runs, chartHolder);
  }

  function toggle(run, isVisible) {
    run.visible = isVisible;
    Charts.schedule("build");
  }

  function build() {
    Charts.readTheme();
    const isFew = runs.length <= 4;
    const title = isFew ? runs.map((run) => run.facts.label).join("  ·  ") : `${runs.length} runs`;
    const path = runs.length === 1 ? runs[0].facts.path : "";
    const redrawEvents = () => { sections.get("events").body.replaceChildren(Tables.events(runs, redrawEvents)); };
    const parts = [
      section("summary", "Summary", () => Tables.summary(runs, now, toggle)),
      section("results", "Results", () => Tables.results(runs)),
      h("section", { class: "part", id: "metrics" }, h("h2", {}, "Metrics"), toolbar(), chartHolder),
      section("goodput", "Goodput", () => Tables.goodput(runs)),
      section("events", "Events", () => Tables.events(runs, redrawEvents)),
      section("checkpoints", "Checkpoints", () => Tables.checkpoints(runs)),
      section("row", "A training row", row),
      section("config", "Configuration", () => Tables.config(runs)),
      section("attempts", "Attempts", () => [Tables.attempts(runs), Tables.changes(runs)].flat()),
      section("notes", "Notes", notes),
    ];
    const links = [...sections.values()].map((part) => part.link);
    links.splice(2, 0, h("a", { href: "#metrics" }, "Metrics"));
    holder.replaceChildren(
      h("header", {}, h("div", {}, h("h1", {}, title), h("p", { class: "unit" }, path)),
        h("p", { class: "unit made" }, liveMark, h("span", {}, `${facts.program}, ${Format.time(facts.generated)}`))),
      h("nav", { "aria-label": "Sections" }, ...links),
      h("main", {}, ...parts));
    drawSections();
    placeCharts();
  }

  function recolor() {
    Charts.readTheme();
    drawSections(true);
    Charts.schedule("build");
  }

  async function ask() {
    if (!document.hidden) {
      try {
        const offsets = runs.map((run) => run.facts.offset).join(",");
        const answer = await fetch(`news?offsets=${offsets}`, { cache: "no-store", signal: AbortSignal.timeout(60000) });
        if (!answer.ok) throw new Error(answer.statusText);
        take(await answer.json());
        mark("live", "live");
      } catch {
        mark("lost", "no connection to glm-dist report");
      }
    }
    setTimeout(ask, 1000 * facts.refresh_seconds);
  }

  function mark(kind, text) {
    if (liveMark.textContent === text) return;
    liveMark.className = `live ${kind}`;
    liveMark.textContent = text;
  }

  function take(news) {
    now = news.time;
    let hasNew = false;
    news.runs.forEach((each, i) => {
      const run = runs[i];
      hasNew ||= Boolean(each.run) || each.records.length > 0;
      if (each.run) run.replace({ label: run.facts.label, ...each.run }); else run.update(each);
      run.marks = null;
    });
    drawSections();
    if (!hasNew) return;
    if (Charts.names(runs) !== metrics) placeCharts(); else Charts.schedule("refresh");
  }

  build();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
  addEventListener("dblclick", (event) => { if (event.target.closest(".canvas")) Charts.zoomTo(null); });
  matchMedia("print").addEventListener("change", () => {
    recolor();
    for (const chart of shared.all) chart.build(); // now: the printer does not wait for a frame
  });
  if (facts.refresh_seconds > 0) {
    mark("live", "live");
    setTimeout(ask, 1000 * facts.refresh_seconds);
  }
})();
