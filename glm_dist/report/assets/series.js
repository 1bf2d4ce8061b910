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
      const { records, ...facts } = news;
      for (const [step, time, metrics] of records) this.append(step, time, metrics);
      Object.assign(this.facts, facts);
      if (!records.length) return;
      const [step, time] = records[records.length - 1]; // may be newer than the facts
      this.facts.state.step = Math.max(this.facts.state.step, step);
      this.facts.last_sign = Math.max(this.facts.last_sign, time);
    }

    append(step, time, metrics) {
      const second = time - this.facts.begin;
      const tables = new Map();
      for (const [name, value] of Object.entries(metrics)) {
        if (!this.byMetric.has(name)) {
          const table = new Table({ steps: [], seconds: [], columns: { [name]: [] }, means: {}, recorded: 0 });
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
      return table.cached(`smooth ${weight} ${name}`, () => average(table.typical(name), table.steps, weight));
    }

    last(name) {
      if (!this.has(name)) return null;
      const values = this.values(name);
      for (let i = values.length - 1; i >= 0; i--) if (!Number.isNaN(values[i])) return values[i];
      return null;
    }

    median(name) {
      if (!this.has(name)) return null;
      const sorted = this.byMetric.get(name).typical(name).filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
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

    constructor({ steps, seconds, columns, means, recorded }) {
      this.steps = steps;
      this.seconds = seconds;
      this.recorded = recorded;
      this.columns = decode(columns);
      this.means = decode(means);
    }

    // Values to average: of a column that was thinned out, the means around its extremes.
    typical(name) { return this.means.get(name) || this.columns.get(name); }

    append(step, second, values) {
      this.steps.push(step);
      this.seconds.push(second);
      this.recorded += 1;
      for (const [name, column] of this.columns) {
        const value = values.get(name);
        column.push(value === undefined || value === null ? NaN : value);
        if (this.means.has(name)) this.means.get(name).push(column[column.length - 1]);
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

  function decode(columns) {
    const found = new Map();
    for (const [name, values] of Object.entries(columns || {})) {
      found.set(name, values.map((value) => (value === null ? NaN : value)));
    }
    return found;
  }

  const RECORDS_OF_WEIGHT = 500;

  // Exponential moving average whose beginning is not drawn towards 0. In a run of more than
  // RECORDS_OF_WEIGHT records it reaches as far in the picture as in one of that many.
  function average(values, steps, weight) {
    const found = new Array(values.length);
    const scale = RECORDS_OF_WEIGHT / Math.max(1, steps[steps.length - 1] - steps[0]);
    let sum = 0, total = 0, kept = weight, distance = NaN;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      if (!Number.isNaN(value)) {
        if (i && steps[i] - steps[i - 1] !== distance) { // a power takes time
          distance = steps[i] - steps[i - 1];
          kept = weight ** Math.min(1, scale * distance);
        }
        sum = kept * sum + (1 - kept) * value;
        total = kept * total + (1 - kept);
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
  // `columns` pixel columns, at x values that every line of the picture shares. Only values above
  // `floor` have a place in it.
  function visiblePoints(xs, ys, from, to, columns, floor) {
    const first = Math.max(0, lowerBound(xs, from) - 1);
    const last = Math.min(xs.length - 1, lowerBound(xs, to));
    const points = [[], []];
    if (last - first <= 2 * columns || !(to > from)) {
      for (let i = first; i <= last; i++) push(points, xs[i], ys[i], floor);
      return points;
    }
    push(points, xs[first], ys[first], floor);
    const width = (to - from) / columns;
    let i = first + 1;
    for (let column = 0; column < columns; column++) {
      const end = from + (column + 1) * width;
      let low = -1, high = -1;
      for (; i < last && (xs[i] < end || column === columns - 1); i++) {
        const y = ys[i];
        if (!(y > floor)) continue; // NaN as well
        if (low < 0 || y < ys[low]) low = i;
        if (high < 0 || y > ys[high]) high = i;
      }
      if (low < 0) continue;
      const begin = from + column * width;
      push(points, begin + 0.25 * width, ys[Math.min(low, high)], floor);
      if (low !== high) push(points, begin + 0.75 * width, ys[Math.max(low, high)], floor);
    }
    push(points, xs[last], ys[last], floor);
    return points;
  }

  function push(points, x, y, floor) {
    if (!(y > floor)) return;
    const count = points[0].length;
    if (count && points[0][count - 1] >= x) return; // the same step in two attempts' clocks
    points[0].push(x);
    points[1].push(y);
  }

  return { AXES, Run, nearest, visiblePoints };
})();
