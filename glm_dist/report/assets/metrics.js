// Which charts there are: metrics by kind, with titles, units and formats.
"use strict";

const Metrics = (() => {
  const percent = { format: (x) => Format.percent(x), unit: "" };
  const plain = { format: (x) => Format.number(x), unit: "" };

  // In the order of the page. `take` chooses metrics; one that is taken is not offered again.
  const KINDS = [
    ["Loss", "Training loss", "nats per predicted token", /^train\/loss$/, plain],
    ["Loss", "Training loss by objective", "nats per predicted token", /^train\/loss_(?!scale$)(.+)$/, plain],
    ["Loss", "Validation loss", "nats per predicted token", /^valid\/loss(?:_([^/]+))?$/, plain],
    ["Loss", "Validation loss by corpus", "nats per predicted token", /^valid\/loss_(.+\/.+)$/, plain],
    ["Task", "Accuracy", "share of examples", /^((?:train|valid)\/accuracy)$/, percent],
    ["Task", "Benchmarks", "", /^valid\/task\/(.+)$/, plain],
    ["Task", "Task metrics", "", /^(valid\/.+)$/, plain],
    ["Optimizer", "Gradient norm", "before clipping", /^train\/grad_norm$/, plain],
    ["Optimizer", "Learning rate", "", /^train\/learning_rate$/, plain],
    ["Optimizer", "Loss scale", "factor of the loss in fp16", /^train\/loss_scale$/, plain],
    ["Optimizer", "Skipped steps", "updates dropped so far", /^train\/skipped_steps$/, plain],
    ["Optimizer", "Other training metrics", "", /^train\/(.+)$/, plain],
    ["Speed", "Throughput", "tokens per second, all devices", /^speed\/tokens_per_second$/, plain],
    ["Speed", "Useful work", "TFLOP/s per device", /^speed\/useful_tflops_per_gpu$/, plain],
    ["Speed", "Utilisation", "share of the device's peak", /^speed\/(mfu|useful_mfu|hfu)$/, percent],
    ["Speed", "Seconds per step", "", /^speed\/seconds_per_step$/, plain],
    ["Speed", "Waiting", "share of step time", /^speed\/(wait_share_.+|save_share)$/, percent],
    ["Speed", "Goodput", "share of wall time on steps that remain", /^goodput\/useful_share$/, percent],
    ["Memory and data", "Peak memory", "GiB per device", /^memory\/peak_gib$/, plain],
    ["Memory and data", "Rows", "share of positions", /^rows\/(padding|target)_share$/, percent],
    ["Memory and data", "Epochs", "passes over a corpus", /^data\/epochs_(.+)$/, plain],
    [null, "", "", /^goodput\/seconds_|^speed\/(eta_seconds|tokens_per_second_per_gpu)$/, plain],
    ["Other", "", "", /^(.+)$/, plain],
  ];

  // Charts of some runs: with one run, a line per metric; with several, a chart per metric.
  function specs(runs) {
    const names = [...new Set(runs.flatMap((run) => run.names))];
    const found = [];
    const taken = new Set();
    for (const [group, title, unit, pattern, style] of KINDS) {
      const metrics = names.filter((name) => !taken.has(name) && pattern.test(name));
      metrics.forEach((name) => taken.add(name));
      if (!group || !metrics.length) continue;
      if (/skipped_steps/.test(metrics[0]) && !runs.some((run) => run.greatest(metrics[0]) > 0)) continue;
      const short = (name) => (pattern.exec(name)[1] || "").replace(/^wait_share_|_share$/g, "").replaceAll("_", " ");
      const isSplit = runs.length > 1 || group === "Other";
      if (!isSplit) {
        found.push({ group, title, unit, style, metrics, short });
        continue;
      }
      for (const name of metrics) {
        const whole = [title.replace(/ by .*/, ""), short(name)].filter(Boolean).join(" · ");
        found.push({ group, title: whole, unit, style, metrics: [name], short });
      }
    }
    return found;
  }

  return { specs, percent };
})();
