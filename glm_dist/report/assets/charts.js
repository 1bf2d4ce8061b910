// Charts of metrics: how one is drawn, zoomed and read.
"use strict";

const Charts = (() => {
  const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
  const shared = {
    axis: "step", smoothing: 0.6, range: null, events: true, all: new Set(), onRange: () => {},
  };
  const HEIGHT = 240;
  const theme = {};

  class Chart {
    constructor(spec, runs) {
      this.spec = spec;
      this.runs = runs;
      this.isLog = false;
      this.isDirty = false;
      this.isNear = false;
      this.legend = h("p", { class: "legend" });
      this.canvas = h("div", { class: "canvas" });
      this.toggle = h("button", { type: "button", class: "small", "aria-pressed": "false", title: "Logarithmic scale", onclick: () => this.#setLog(!this.isLog) }, "log");
      this.node = h("figure", { class: "chart", tabindex: "0", role: "group", "aria-label": `${spec.title}. Arrows move the cursor, plus and minus zoom, 0 shows all.` },
        h("figcaption", {}, h("span", { class: "title" }, spec.title), h("span", { class: "unit" }, spec.unit), this.toggle),
        this.canvas, this.legend);
      this.node.addEventListener("keydown", (event) => this.#key(event));
      shared.all.add(this);
    }

    lines() {
      const many = this.runs.length > 1;
      return this.runs.flatMap((run) => (run.visible ? this.spec.metrics : [])
        .filter((name) => run.has(name))
        .map((name) => {
          const index = many ? run.index : this.spec.metrics.indexOf(name);
          return {
            run, name, ...look(index),
            label: many ? run.facts.label : this.spec.short(name) || this.spec.title.toLowerCase(),
          };
        }));
    }

    extent() {
      let from = Infinity, to = -Infinity;
      for (const { run, name } of this.lines()) {
        const xs = run.places(name, shared.axis);
        if (!xs.length) continue;
        from = Math.min(from, xs[0]);
        to = Math.max(to, xs[xs.length - 1]);
      }
      return to >= from ? [from, to] : null;
    }

    #data() {
      const [from, to] = this.range;
      const columns = Math.max(100, Math.round(this.width - 60));
      const floor = this.isLog ? 0 : -Infinity;
      const tables = [];
      for (const line of this.drawn) {
        const xs = line.run.places(line.name, shared.axis);
        const ys = line.isSmooth ? line.run.smoothed(line.name, shared.smoothing) : line.run.values(line.name);
        tables.push(Series.visiblePoints(xs, ys, from, to, columns, floor));
      }
      return tables.length ? uPlot.join(tables) : [[from, to]];
    }

    // Draw from the beginning: after a change of axis, colours, scale or lines.
    build() {
      if (this.plot) this.plot.destroy();
      this.plot = null;
      this.width = this.canvas.clientWidth;
      this.range = shared.range || this.extent();
      const lines = this.lines();
      if (!this.range || !lines.length || this.width < 50) {
        this.#show(null);
        return;
      }
      this.drawn = lines.flatMap((line) => {
        const isNoisy = /^(train|speed|rows)\//.test(line.name) && !/learning_rate|loss_scale|skipped/.test(line.name);
        const smooths = shared.smoothing > 0 && isNoisy && line.run.values(line.name).length > 20;
        return smooths ? [{ ...line, isFaint: true }, { ...line, isSmooth: true }] : [line];
      });
      this.plot = new uPlot(this.#options(), this.#data(), this.canvas);
      this.plot.over.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
      this.#show(null);
    }

    refresh() {
      this.range = shared.range || this.extent();
      if (!this.plot || !this.range) {
        this.build();
        return;
      }
      this.plot.batch(() => {
        this.plot.setData(this.#data(), false);
        this.plot.setScale("x", { min: this.range[0], max: this.range[1] });
      });
      this.#readOut();
    }

    #options() {
      const axis = { stroke: theme.muted, font: theme.font, grid: { stroke: theme.grid, width: 1 }, ticks: { show: false } };
      const isDate = shared.axis === "date";
      return {
        width: this.width,
        height: HEIGHT,
        pxAlign: 0,
        padding: [12, 20, 0, 0],
        scales: {
          x: { time: isDate, range: (u, low, high) => (low === high ? [low - 0.5, high + 0.5] : [low, high]) },
          y: { distr: this.isLog ? 3 : 1, range: (u, low, high) => this.#yRange(low, high) },
        },
        axes: [
          { ...axis, size: isDate ? 40 : 28, gap: 4, values: (u, ticks) => (isDate ? Format.dates(ticks) : ticks.map(Format.short)) },
          { ...axis, size: 58, ...(this.isLog ? { splits: (u, side, low, high) => logTicks(low, high), filter: (u, ticks) => ticks } : {}), values: (u, ticks) => ticks.map((y) => (y === null ? "" : this.spec.style === Metrics.percent ? Format.percent(y) : Format.short(y))) },
        ],
        series: [{}, ...this.drawn.map((line) => this.#style(line))],
        legend: { show: false },
        cursor: {
          sync: { key: "report", scales: ["x", null], setSeries: false },
          drag: { x: true, y: false, setScale: false, dist: 4 },
          bind: { dblclick: () => null },
          dataIdx: (u, series, place) => nearestPlace(u.data[series], place),
          points: { size: 7 },
        },
        hooks: {
          setSelect: [(u) => this.#select(u)],
          setCursor: [() => this.#readOut()],
          drawClear: [(u) => this.#drawEvents(u)],
        },
      };
    }

    #yRange(low, high) {
      if (low === null || high === null || low === undefined) return this.isLog ? [0.1, 1] : [0, 1];
      if (this.isLog) return low === high ? [low / 2, high * 2] : [low / 1.08, high * 1.08];
      const pad = high > low ? 0.06 * (high - low) : Math.abs(high) * 0.1 || 1;
      return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
    }

    #style(line) {
      const count = line.run.values(line.name).length;
      return {
        stroke: line.isFaint ? line.color + theme.faint : line.color,
        width: line.isFaint ? 1 : 1.75,
        dash: line.dash,
        spanGaps: true,
        points: { show: count < 60 && !line.isFaint, size: 4, fill: line.color, width: 0 },
      };
    }

    #setLog(isLog) {
      this.isLog = isLog;
      this.toggle.setAttribute("aria-pressed", String(isLog));
      this.build();
    }

    #select(u) {
      if (u.select.width < 4) return;
      const range = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
      u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      zoomTo(range);
    }

    #wheel(event) {
      if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return; // the page scrolls
      event.preventDefault();
      const moved = event.deltaY || event.deltaX;
      if (event.shiftKey) pan(Math.sign(moved) * 0.1);
      else zoom(moved > 0 ? 1.25 : 0.8, this.plot.posToVal(this.plot.cursor.left, "x"));
    }

    #key(event) {
      if (!this.plot || event.ctrlKey || event.metaKey || event.altKey) return;
      const { left } = this.plot.cursor, width = this.plot.over.clientWidth;
      const here = left >= 0 ? left : width / 2;
      const keys = {
        ArrowLeft: () => this.#moveCursor(Math.max(0, here - width / 100)),
        ArrowRight: () => this.#moveCursor(Math.min(width, here + width / 100)),
        "+": () => zoom(0.7, this.plot.posToVal(here, "x")),
        "-": () => zoom(1.4, this.plot.posToVal(here, "x")),
        0: () => zoomTo(null),
        Escape: () => zoomTo(null),
      };
      if (!keys[event.key] || event.target !== this.node) return;
      event.preventDefault();
      keys[event.key]();
    }

    #moveCursor(left) {
      this.plot.setCursor({ left, top: this.plot.over.clientHeight / 2 });
    }

    #readOut() {
      const left = this.plot ? this.plot.cursor.left : -1;
      this.#show(left >= 0 ? this.plot.posToVal(left, "x") : null);
    }

    // The legend: last values, or those of the records that are nearest to the cursor.
    #show(x) {
      const parts = [];
      for (const line of this.lines()) {
        const xs = line.run.places(line.name, shared.axis);
        if (!xs.length) continue;
        const place = x === null ? xs.length - 1 : Series.nearest(xs, x);
        const value = line.run.values(line.name)[place];
        const smooth = x !== null && shared.smoothing > 0 && this.drawn?.some((each) => each.isSmooth && each.run === line.run && each.name === line.name)
          ? ` (${this.spec.style.format(line.run.smoothed(line.name, shared.smoothing)[place])})` : "";
        const step = line.run.byMetric.get(line.name).steps[place];
        parts.push(h("span", { class: "entry" }, swatch(line.color, line.dash.length > 0), h("span", {}, line.label), " ",
          h("strong", {}, Number.isNaN(value) ? "not finite" : this.spec.style.format(value) + smooth),
          x === null ? null : h("span", { class: "at" }, ` at step ${Format.count(step)}`)));
      }
      const near = x === null ? null : this.#eventAt(x);
      if (near) parts.push(h("span", { class: "entry event" }, `${near.kind} at step ${Format.count(near.step)}`));
      if (!parts.length) parts.push(h("span", { class: "entry" }, "no records"));
      this.legend.replaceChildren(...parts);
    }

    #eventAt(x) {
      if (!shared.events || !this.plot) return null;
      const reach = Math.abs(this.plot.posToVal(5, "x") - this.plot.posToVal(0, "x"));
      let best = null, distance = reach;
      for (const { event, run } of marked(this.runs, this.spec.metrics)) {
        const away = Math.abs(run.placeOfEvent(event, shared.axis) - x);
        if (away <= distance) [best, distance] = [event, away];
      }
      return best;
    }

    #drawEvents(u) {
      if (!shared.events) return;
      const { ctx } = u, ratio = devicePixelRatio, { left, top, width, height } = u.bbox;
      ctx.save();
      ctx.lineWidth = ratio;
      for (const { event, run, kind } of marked(this.runs, this.spec.metrics)) {
        const x = u.valToPos(run.placeOfEvent(event, shared.axis), "x", true);
        if (!(x >= left && x <= left + width)) continue;
        ctx.strokeStyle = ctx.fillStyle = theme.events[kind];
        if (kind === "save") { // a tick at the bottom: there are many
          ctx.fillRect(x - ratio / 2, top + height - 6 * ratio, ratio, 6 * ratio);
          continue;
        }
        ctx.setLineDash([3 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(x, top);
        ctx.lineTo(x, top + height);
        ctx.stroke();
        ctx.beginPath();
        ctx.moveTo(x - 4 * ratio, top - 7 * ratio);
        ctx.lineTo(x + 4 * ratio, top - 7 * ratio);
        ctx.lineTo(x, top);
        ctx.fill();
      }
      ctx.restore();
    }
  }

  // Colour and dashes of a line: eight colours, then the same with dashes.
  function look(index) {
    const { lines } = theme;
    return { color: lines[index % lines.length], dash: DASHES[Math.floor(index / lines.length) % DASHES.length] };
  }

  // Events of the runs that a chart shows.
  function marked(runs, metrics) {
    return runs.filter((run) => run.visible && metrics.some((name) => run.has(name))).flatMap((run) => run.marks ||= run.facts.events
      .map((event) => ({ event, run, kind: Tables.kindOf(event) }))
      .filter(({ kind, event }) => kind !== "other" && !(kind === "attempt" && event.step === 0)));
  }

  // Decades, or where there is less than one, round numbers at equal distances.
  function logTicks(low, high) {
    const ticks = [];
    if (high / low >= 20) {
      const steps = high / low > 1e4 ? [1] : [1, 2, 5];
      for (let decade = 10 ** Math.floor(Math.log10(low)); decade <= high; decade *= 10) {
        for (const step of steps) if (step * decade >= low && step * decade <= high) ticks.push(step * decade);
      }
      return ticks;
    }
    const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * size).find((each) => each >= rough);
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(Number(tick.toPrecision(12)));
    return ticks;
  }

  function nearestPlace(values, place) {
    if (!values || values[place] != null) return place;
    for (let away = 1; away < 400; away++) {
      if (values[place - away] != null) return place - away;
      if (values[place + away] != null) return place + away;
    }
    return place;
  }

  function whole() {
    let from = Infinity, to = -Infinity;
    for (const chart of shared.all) {
      const extent = chart.extent();
      if (extent) [from, to] = [Math.min(from, extent[0]), Math.max(to, extent[1])];
    }
    return [from, to];
  }

  function zoomTo(range) {
    const [from, to] = whole();
    if (range) range = [Math.max(from, range[0]), Math.min(to, range[1])];
    const isAll = !range || (range[0] <= from && range[1] >= to) || !(range[1] > range[0]);
    shared.range = isAll ? null : range;
    shared.onRange(shared.range);
    schedule("refresh");
  }

  function zoom(factor, around) {
    const [from, to] = shared.range || whole();
    const middle = around === undefined ? (from + to) / 2 : around;
    zoomTo([middle - (middle - from) * factor, middle + (to - middle) * factor]);
  }

  function pan(share) {
    if (!shared.range) return;
    const [from, to] = shared.range, [first, last] = whole(), by = share * (to - from);
    const moved = Math.min(Math.max(by, first - from), last - to);
    zoomTo([from + moved, to + moved]);
  }

  // Redraw the charts that can be seen once before the next frame, the others when they are.
  let waiting = null;
  function schedule(method) {
    if (waiting === null) requestAnimationFrame(() => {
      const wanted = waiting;
      waiting = null;
      for (const chart of shared.all) {
        if (chart.isNear) chart[wanted](); else chart.isDirty = wanted;
      }
    });
    if (waiting !== "build") waiting = method;
  }

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chart = [...shared.all].find((each) => each.node === entry.target);
      if (!chart) continue;
      chart.isNear = entry.isIntersecting;
      if (!chart.isNear || !chart.isDirty) continue;
      const method = chart.plot ? chart.isDirty : "build";
      chart.isDirty = false;
      chart[method]();
    }
  }, { rootMargin: "300px" });

  const resizer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const chart = [...shared.all].find((each) => each.canvas === target);
      if (!chart || !chart.plot || target.clientWidth === chart.width) continue;
      chart.width = target.clientWidth;
      chart.plot.setSize({ width: chart.width, height: HEIGHT });
      chart.refresh();
    }
  });

  function place(runs, holder) {
    for (const chart of shared.all) {
      observer.unobserve(chart.node);
      resizer.unobserve(chart.canvas);
      if (chart.plot) chart.plot.destroy();
    }
    const wasLog = new Set([...shared.all].filter((chart) => chart.isLog).map((chart) => chart.spec.title));
    shared.all.clear();
    const groups = new Map();
    for (const spec of Metrics.specs(runs)) {
      if (!groups.has(spec.group)) groups.set(spec.group, []);
      const chart = new Chart(spec, runs);
      chart.isLog = wasLog.has(spec.title);
      chart.toggle.setAttribute("aria-pressed", String(chart.isLog));
      chart.isDirty = "build";
      groups.get(spec.group).push(chart);
    }
    holder.replaceChildren(...[...groups].map(([group, charts]) =>
      h("section", { class: "group" }, h("h3", {}, group), h("div", { class: "charts" }, ...charts.map((chart) => chart.node)))));
    for (const chart of shared.all) {
      observer.observe(chart.node);
      resizer.observe(chart.canvas);
    }
  }

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    theme.lines = [1, 2, 3, 4, 5, 6, 7, 8].map((n) => value(`--line-${n}`));
    theme.muted = value("--muted");
    theme.grid = value("--grid");
    theme.faint = value("--faint");
    theme.font = "12px system-ui, sans-serif";
    theme.events = { trouble: value("--bad"), attempt: value("--muted"), save: value("--good") };
    return theme;
  }

  return { shared, theme, look, place, schedule, zoom, zoomTo, pan, readTheme, names: (runs) => [...new Set(runs.flatMap((run) => run.names))].join("\n") };
})();
