// The numbers of the page: runs, their metrics by record, and what of them fits into a picture.
"use strict";

const Series = (() => {
  const AXES = {
    step: { label: "step", title: "Step" },
    tokens: { label: "tokens", title: "Tokens" },
    hours: { label: "hours of running", title: "Hours" },
    date: { label: "", title: "Date" },
  };

  // One run: tables of records that several metrics share, and whether its lines are shown.
  class Run {
    constructor(facts, index) {
      this.index = index;
      this.visible = true;
      this.replace(facts);
    }

    replace(facts) {
      this.facts = facts;
      this.tables = facts.tables.map((table) => new Table(table));
      this.byMetric = new Map();
      for (const table of this.tables) this.#list(table);
    }

    #list(table) {
      for (const name of table.columns.keys()) this.byMetric.set(name, table);
    }

    update(news) {
      for (const [step, time, metrics] of news.records) this.append(step, time, metrics);
      delete news.records;
      Object.assign(this.facts, news);
    }

    append(step, time, metrics) {
      const second = time - this.facts.begin;
      const tables = new Map();
      for (const [name, value] of Object.entries(metrics)) {
        if (!this.byMetric.has(name)) {
          const table = new Table({ steps: [], seconds: [], columns: { [name]: [] }, recorded: 0 });
          this.tables.push(table);
          this.#list(table);
        }
        const table = this.byMetric.get(name);
        if (!tables.has(table)) tables.set(table, new Map());
        tables.get(table).set(name, value);
      }
      for (const [table, values] of tables) table.append(step, second, values);
    }

    has(name) { return this.byMetric.has(name); }
    get names() { return [...this.byMetric.keys()]; }

    // The x values of a metric's records.
    places(name, axis) {
      const table = this.byMetric.get(name);
      return table.cached(axis, () => {
        if (axis === "step") return table.steps;
        if (axis === "date") return table.seconds.map((second) => this.facts.begin + second);
        if (axis === "hours") return this.#hours(table.seconds);
        const tokens = this.facts.shape.tokens_per_step || 0;
        return table.steps.map((step) => step * tokens);
      });
    }

    // Hours since the beginning, without the times when no attempt was running.
    #hours(seconds) {
      const gaps = this.facts.gaps.map(([from, to]) => [from - this.facts.begin, to - from]);
      return seconds.map((second) => {
        let down = 0;
        for (const [from, length] of gaps) if (from < second) down += Math.min(length, second - from);
        return (second - down) / 3600;
      });
    }

    placeOfEvent(event, axis) {
      const second = event.time - this.facts.begin;
      if (axis === "step") return event.step;
      if (axis === "date") return event.time;
      if (axis === "hours") return this.#hours([second])[0];
      return event.step * (this.facts.shape.tokens_per_step || 0);
    }

    values(name) { return this.byMetric.get(name).columns.get(name); }

    smoothed(name, weight) {
      const table = this.byMetric.get(name);
      return table.cached(`smooth ${weight} ${name}`, () => average(this.values(name), weight));
    }

    last(name) {
      if (!this.has(name)) return null;
      const values = this.values(name);
      for (let i = values.length - 1; i >= 0; i--) if (!Number.isNaN(values[i])) return values[i];
      return null;
    }

    median(name) {
      if (!this.has(name)) return null;
      const sorted = this.values(name).filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
      return sorted.length ? sorted[sorted.length >> 1] : null;
    }

    greatest(name) {
      if (!this.has(name)) return null;
      let most = -Infinity;
      for (const value of this.values(name)) if (value > most) most = value;
      return most === -Infinity ? null : most;
    }

    least(name) {
      if (!this.has(name)) return null;
      let found = Infinity;
      for (const value of this.values(name)) if (value < found) found = value;
      return found === Infinity ? null : found;
    }
  }

  // Records at the same steps. What is not finite is NaN.
  class Table {
    #cache = new Map();

    constructor({ steps, seconds, columns, recorded }) {
      this.steps = steps;
      this.seconds = seconds;
      this.recorded = recorded;
      this.columns = new Map();
      for (const [name, values] of Object.entries(columns)) {
        this.columns.set(name, values.map((value) => (value === null ? NaN : value)));
      }
    }

    append(step, second, values) {
      this.steps.push(step);
      this.seconds.push(second);
      this.recorded += 1;
      for (const [name, column] of this.columns) {
        const value = values.get(name);
        column.push(value === undefined || value === null ? NaN : value);
      }
      this.#cache.clear();
    }

    cached(key, compute) {
      if (!this.#cache.has(key)) {
        if (this.#cache.size > 40) this.#cache.clear(); // a slider was moved through its range
        this.#cache.set(key, compute());
      }
      return this.#cache.get(key);
    }
  }

  // Exponential moving average whose beginning is not drawn towards 0.
  function average(values, weight) {
    const found = new Array(values.length);
    let sum = 0, total = 0;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      if (!Number.isNaN(value)) {
        sum = weight * sum + (1 - weight) * value;
        total = weight * total + (1 - weight);
      }
      found[i] = total > 0 ? sum / total : NaN;
    }
    return found;
  }

  // First place with xs[place] >= x, in ascending xs.
  function lowerBound(xs, x) {
    let low = 0, high = xs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low;
  }

  function nearest(xs, x) {
    const place = lowerBound(xs, x);
    if (place === 0) return 0;
    if (place === xs.length) return place - 1;
    return x - xs[place - 1] <= xs[place] - x ? place - 1 : place;
  }

  // Points of a line between two x: all, or where there are too many the extremes of each of
  // `columns` pixel columns, at x values that every line of the picture shares.
  function visiblePoints(xs, ys, from, to, columns, accepts) {
    const first = Math.max(0, lowerBound(xs, from) - 1);
    const last = Math.min(xs.length - 1, lowerBound(xs, to));
    const points = [[], []];
    if (last - first <= 2 * columns || !(to > from)) {
      for (let i = first; i <= last; i++) push(points, xs[i], ys[i], accepts);
      return points;
    }
    push(points, xs[first], ys[first], accepts);
    const width = (to - from) / columns;
    let i = first + 1;
    for (let column = 0; column < columns; column++) {
      const end = from + (column + 1) * width;
      let low = -1, high = -1;
      for (; i < last && (xs[i] < end || column === columns - 1); i++) {
        const y = ys[i];
        if (Number.isNaN(y) || !accepts(y)) continue;
        if (low < 0 || y < ys[low]) low = i;
        if (high < 0 || y > ys[high]) high = i;
      }
      if (low < 0) continue;
      const begin = from + column * width;
      push(points, begin + 0.25 * width, ys[Math.min(low, high)], accepts);
      if (low !== high) push(points, begin + 0.75 * width, ys[Math.max(low, high)], accepts);
    }
    push(points, xs[last], ys[last], accepts);
    return points;
  }

  function push(points, x, y, accepts) {
    if (Number.isNaN(y) || !accepts(y)) return;
    const count = points[0].length;
    if (count && points[0][count - 1] >= x) return; // the same step in two attempts' clocks
    points[0].push(x);
    points[1].push(y);
  }

  return { AXES, Run, nearest, visiblePoints };
})();
