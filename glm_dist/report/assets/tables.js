// What is not a chart: summary, goodput, events, checkpoints, results, attempts, configuration.
"use strict";

const Tables = (() => {
  const TROUBLE = /non_finite|spike|skipped_rows|rewound|failed|differ|straggler|lost/;
  const ATTEMPT = /^(started|ended|stopped|finished_early|initialized)$/;
  const SAVE = /^(checkpoint|uploaded|best)$/;

  function kindOf(event) {
    if (TROUBLE.test(event.kind)) return "trouble";
    if (ATTEMPT.test(event.kind)) return event.kind === "ended" ? "other" : "attempt";
    return SAVE.test(event.kind) ? "save" : "other";
  }

  function table(caption, heads, rows, numeric = []) {
    const cells = (row) => row.map((cell, i) => h("td", { class: numeric.includes(i) ? "number" : null }, ...[cell].flat()));
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      h("table", {}, h("caption", {}, caption),
        h("thead", {}, h("tr", {}, ...heads.map((head, i) => h("th", { scope: "col", class: numeric.includes(i) ? "number" : null }, head)))),
        h("tbody", {}, ...rows.map((row) => h("tr", {}, ...cells(row))))));
  }

  function pill(text, kind) { return h("span", { class: `pill ${kind}` }, text); }

  function state(run, now) {
    const { state: found, last_sign: sign } = run.facts;
    const age = Math.max(0, now - sign);
    if (found.kind === "finished") return pill("finished", "good");
    if (found.kind === "stopped") return [pill("stopped", "warn"), h("span", { class: "unit" }, ` ${found.reason}`)];
    if (!sign) return pill("no records", "idle");
    if (found.kind === "ended") return pill("ended", "idle");
    return age < 300 ? pill("running", "live") : [pill("silent", "warn"), h("span", { class: "unit" }, ` no sign of life for ${Format.duration(age)}`)];
  }

  function validation(run, choose) {
    const names = run.names.filter((name) => /^valid\/loss(_[^/]+)?$/.test(name));
    const found = names.map(choose).filter((value) => value !== null);
    return found.length ? found.reduce((sum, value) => sum + value, 0) / found.length : null;
  }

  function useful(run) {
    let all = 0, good = 0;
    for (const { seconds } of run.facts.goodput.attempts) {
      for (const [name, value] of Object.entries(seconds)) {
        all += value;
        if (name === run.facts.goodput.useful) good += value;
      }
    }
    return { all, share: all > 0 ? good / all : null };
  }

  // Figures of a run, by name; what it did not record is left out.
  function figures(run) {
    const { shape, state: found, attempts } = run.facts;
    const { all, share } = useful(run);
    const last = attempts[attempts.length - 1] || {};
    const tokens = shape.tokens_per_step ? found.step * shape.tokens_per_step : null;
    const eta = found.kind === "open" ? run.last("speed/eta_seconds") : null;
    const list = [
      ["training loss", Format.number(run.last("train/loss"))],
      ["validation loss", Format.number(validation(run, (name) => run.last(name)))],
      ["accuracy", Format.percent(run.last("valid/accuracy"))],
      ["tokens", Format.short(tokens)],
      ["tokens/s", Format.short(run.median("speed/tokens_per_second"))],
      ["TFLOP/s", Format.short(run.median("speed/useful_tflops_per_gpu"))],
      ["MFU", Format.percent(run.median("speed/mfu"))],
      ["peak memory", run.has("memory/peak_gib") ? `${Format.number(run.greatest("memory/peak_gib"))} GiB` : "–"],
      ["goodput", Format.percent(share)],
      ["wall time", all ? Format.duration(all) : "–"],
      ["to the end", Format.duration(eta)],
      ["parameters", Format.short(shape.parameters)],
      ["processes", last.world_size ? Format.count(last.world_size) : "–"],
    ];
    return list;
  }

  function progress(run) {
    const { step, planned } = run.facts.state;
    const bar = h("progress", { max: planned || 1, value: planned ? Math.min(step, planned) : 0, "aria-label": "steps done" });
    return h("div", { class: "progress" }, bar, h("span", {}, `step ${Format.count(step)}${planned ? ` of ${Format.count(planned)}` : ""}`));
  }

  function swatchOf(run, runs) {
    const { color, dash } = Charts.look(run.index);
    return runs.length > 1 ? swatch(color, dash.length > 0) : null;
  }

  function summary(runs, now, toggle) {
    if (runs.length === 1) {
      const [run] = runs, { shape } = run.facts;
      const about = [shape.task ? `finetuned on ${shape.task}` : null, shape.model, shape.dtype, shape.zero === undefined ? null : `ZeRO ${shape.zero}`, layout((run.facts.attempts[run.facts.attempts.length - 1] || {}).layout), hardware(run)];
      return h("div", { class: "card" },
        h("div", { class: "head" }, h("span", {}, state(run, now)), progress(run)),
        h("dl", { class: "figures" }, ...figures(run).filter(([, value]) => value !== "–").map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
        h("p", { class: "unit" }, about.filter(Boolean).join(" · ")));
    }
    const all = runs.map(figures);
    const kept = all[0].map((_, i) => i).filter((i) => all.some((list) => list[i][1] !== "–"));
    const rows = runs.map((run, n) => [
      h("label", { class: "run" }, h("input", { type: "checkbox", checked: run.visible, onchange: (event) => toggle(run, event.target.checked) }), swatchOf(run, runs), h("span", {}, run.facts.label)),
      state(run, now), progress(run), ...kept.map((i) => all[n][i][1]),
    ]);
    return table("Runs", ["run", "state", "progress", ...kept.map((i) => all[0][i][0])], rows, kept.map((_, i) => i + 3));
  }

  function layout(sizes) {
    const short = { tensor_parallel_size: "tp", pipeline_parallel_size: "pp", data_parallel_size: "dp" };
    return Object.entries(sizes || {}).map(([name, size]) => `${short[name] || words(name)} ${size}`).join(" · ");
  }

  function hardware(run) {
    const last = run.facts.attempts[run.facts.attempts.length - 1] || {};
    return Object.values(last.hardware || {}).filter(Boolean).join(", ") || null;
  }

  const moment = (seconds) => h("span", { class: "moment" }, Format.time(seconds));
  const words = (name) => name.replaceAll("_", " ");

  function goodput(runs) {
    const parts = runs.filter((run) => run.facts.goodput.attempts.length).map((run) => {
      const { attempts, buckets } = run.facts.goodput;
      const sum = (seconds) => Object.values(seconds).reduce((total, x) => total + x, 0);
      const total = Object.fromEntries(buckets.map((name) => [name, attempts.reduce((all, each) => all + each.seconds[name], 0)]));
      const longest = Math.max(...attempts.map((each) => sum(each.seconds)));
      const shown = attempts.length > 40 ? attempts.slice(-40) : attempts;
      const bars = attempts.length > 1 ? shown.map((each, i) => bar(`attempt ${attempts.length - shown.length + i + 1}`, each.seconds, longest, buckets)) : [];
      const whole = sum(total);
      const rows = buckets.filter((name) => Math.abs(total[name]) >= 0.0005).map((name) => [
        [key(name, buckets), words(name)], Format.duration(total[name]), Format.percent(whole > 0 ? total[name] / whole : null)]);
      return h("div", { class: "goodput" }, runs.length > 1 ? h("h4", {}, swatchOf(run, runs), run.facts.label) : null,
        bar("all attempts", total, whole, buckets), ...bars,
        table("Wall time by use", ["use", "time", "share"], rows, [1, 2]));
    });
    return parts.length ? h("div", { class: "sides" }, ...parts) : null;
  }

  function key(name, buckets) { return h("span", { class: `swatch use${buckets.indexOf(name)}`, "aria-hidden": "true" }); }

  function bar(label, seconds, longest, buckets) {
    const parts = buckets.filter((name) => seconds[name] > 0).map((name) => {
      const part = h("span", { class: `use use${buckets.indexOf(name)}`, title: `${words(name)}: ${Format.duration(seconds[name])}` });
      part.style.width = `${(100 * seconds[name]) / longest}%`;
      return part;
    });
    const total = Object.values(seconds).reduce((sum, x) => sum + x, 0);
    return h("div", { class: "bar" }, h("span", { class: "bar-label" }, `${label}, ${Format.duration(total)}`), h("span", { class: "bar-parts" }, ...parts));
  }

  const MOST_ROWS = 100;
  const hidden = new Set(["started", "ended"]);
  let isComplete = false;

  function events(runs, redraw) {
    const all = runs.flatMap((run) => run.facts.events.map((event) => ({ run, event }))).sort((a, b) => b.event.time - a.event.time);
    if (!all.length) return null;
    const counts = new Map();
    for (const { event } of all) counts.set(event.kind, (counts.get(event.kind) || 0) + 1);
    const filters = [...counts].sort().map(([kind, count]) => h("label", { class: "chip" },
      h("input", { type: "checkbox", checked: !hidden.has(kind), onchange: (change) => { if (change.target.checked) hidden.delete(kind); else hidden.add(kind); redraw(); } }),
      `${words(kind)} ${count}`));
    const shown = all.filter(({ event }) => !hidden.has(event.kind));
    const listed = isComplete ? shown : shown.slice(0, MOST_ROWS);
    const rows = listed.map(({ run, event }) => [
      ...(runs.length > 1 ? [[swatchOf(run, runs), run.facts.label]] : []),
      Format.count(event.step), moment(event.time), Format.count(event.attempt), pill(words(event.kind), kindOf(event)), h("div", { class: "wide" }, ...details(event.details))]);
    const first = runs.length > 1 ? ["run"] : [];
    const more = shown.length > listed.length ? h("button", { type: "button", onclick: () => { isComplete = true; redraw(); } }, `Show all ${Format.count(shown.length)}`) : null;
    return h("div", {}, h("div", { class: "chips", role: "group", "aria-label": "Kinds of events" }, ...filters),
      table("Events, newest first", [...first, "step", "time", "attempt", "event", "details"], rows, runs.length > 1 ? [1, 3] : [0, 2]), more);
  }

  function details(values) {
    return Object.entries(values || {}).map(([name, value]) => {
      const shown = name === "bytes" ? Format.bytes(value) : name === "path" ? String(value).split("/").pop() : typeof value === "number" ? Format.number(value) : String(value);
      return h("span", { class: "detail" }, h("span", { class: "unit" }, `${words(name)} `), shown, " ");
    });
  }

  function checkpoints(runs) {
    const rows = runs.flatMap((run) => run.facts.checkpoints.map((each) => [
      ...(runs.length > 1 ? [[swatchOf(run, runs), run.facts.label]] : []),
      Format.count(each.step), each.bytes === undefined ? "–" : Format.bytes(each.bytes), each.holds || "–", layout(each.layout) || "–",
      [pill(each.is_sound ? each.verdict : "not usable", each.is_sound ? "good" : "trouble"), each.is_sound ? null : ` ${each.verdict}`, each.is_best ? pill("best", "save") : null]]));
    const first = runs.length > 1 ? ["run"] : [];
    return rows.length ? table("Checkpoints on disk", [...first, "step", "size", "holds", "written by", "files"], rows, runs.length > 1 ? [1, 2] : [0, 1]) : null;
  }

  function results(runs) {
    const rows = runs.flatMap((run) => {
      const found = run.facts.results;
      if (!found || typeof found !== "object") return [];
      return ["valid", "test"].filter((split) => found[split] && found[split].metrics).flatMap((split) =>
        Object.entries(found[split].metrics).map(([name, { value, low, high }]) => [
          ...(runs.length > 1 ? [[swatchOf(run, runs), run.facts.label]] : []),
          `${found.task} ${split}`, Format.count(found.step), words(name), Format.number(value),
          low === null || low === undefined ? "–" : `${Format.number(low)} to ${Format.number(high)}`, Format.count(found[split].examples)]));
    });
    const first = runs.length > 1 ? ["run"] : [];
    const at = first.length;
    return rows.length ? table("Results, with 95% intervals", [...first, "examples of", "step", "metric", "value", "interval", "examples"], rows, [at + 1, at + 3, at + 4, at + 5]) : null;
  }

  function attempts(runs) {
    const rows = runs.flatMap((run) => run.facts.attempts.map((each, i) => [
      ...(runs.length > 1 ? [[swatchOf(run, runs), run.facts.label]] : []),
      Format.count(i + 1), moment(Date.parse(each.started) / 1000), Format.count(each.world_size), [each.hosts ?? []].flat().join(", "),
      `${each.commit ? String(each.commit).slice(0, 10) : "–"}${each.is_dirty ? " modified" : ""}`,
      [each.launcher, ...Object.entries(each.job || {}).map(([name, value]) => `${name}=${value}`)].filter(Boolean).join(" "),
      h("details", { class: "wide" }, h("summary", {}, "show"), h("code", {}, [each.command ?? []].flat().join(" ")), h("br"),
        h("span", { class: "unit" }, Object.entries({ ...each.versions, ...each.hardware }).filter(([, value]) => value).map(([name, value]) => `${name} ${value}`).join(", ")))]));
    const first = runs.length > 1 ? ["run"] : [];
    return rows.length ? table("Starts of the runs", [...first, "attempt", "started", "processes", "hosts", "commit", "launcher", "command and versions"], rows, runs.length > 1 ? [1, 3] : [0, 2]) : null;
  }

  function changes(runs) {
    const rows = runs.flatMap((run) => run.facts.changes.flatMap(({ attempt, values }) => values.map(([key, before, after]) => [
      ...(runs.length > 1 ? [[swatchOf(run, runs), run.facts.label]] : []),
      Format.count(attempt), h("code", {}, key), h("code", {}, before ?? "–"), h("code", {}, after ?? "–")])));
    const first = runs.length > 1 ? ["run"] : [];
    return rows.length ? [h("h4", {}, "Values that an attempt changed"), table("Values that an attempt changed", [...first, "attempt", "key", "before", "after"], rows, [first.length])] : null;
  }

  const search = { text: "", onlyDifferent: true };

  function config(runs, redraw) {
    const keys = [...new Set(runs.flatMap((run) => Object.keys(run.facts.config)))];
    if (!keys.length) return null;
    const body = h("div", {});
    const show = () => {
      const value = (run, key) => (key in run.facts.config ? run.facts.config[key] : "–");
      const differs = (key) => runs.some((run) => value(run, key) !== value(runs[0], key));
      const isFiltered = runs.length > 1 && search.onlyDifferent;
      const found = keys.filter((key) => (!isFiltered || differs(key)) && matches(key, runs.map((run) => value(run, key))));
      const rows = found.map((key) => [h("code", {}, key), ...runs.map((run) => h("code", { class: differs(key) ? "differs" : null }, value(run, key)))]);
      body.replaceChildren(rows.length ? table(isFiltered ? "Values that differ" : "Values", ["key", ...(runs.length > 1 ? runs.map((run) => run.facts.label) : ["value"])], rows) : h("p", { class: "unit" }, isFiltered && !search.text ? "The configurations are equal." : "No key matches."));
    };
    const box = h("input", { type: "search", placeholder: "filter keys and values", "aria-label": "Filter keys and values", value: search.text, oninput: (event) => { search.text = event.target.value; show(); } });
    const only = runs.length > 1 ? h("label", { class: "chip" }, h("input", { type: "checkbox", checked: search.onlyDifferent, onchange: (event) => { search.onlyDifferent = event.target.checked; show(); } }), "only what differs") : null;
    show();
    return h("div", { class: "config" }, h("div", { class: "chips" }, box, only), body);
  }

  function matches(key, values) {
    const wanted = search.text.trim().toLowerCase();
    return !wanted || [key, ...values].some((text) => text.toLowerCase().includes(wanted));
  }

  return { kindOf, summary, goodput, events, checkpoints, results, attempts, changes, config };
})();
