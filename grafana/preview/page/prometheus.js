// Asks Prometheus what a panel asks, and answers with data frames as Grafana's data source makes them.

import { FieldType, rangeUtil } from '@grafana/data';

const SCRAPE_INTERVAL = 300; // seconds between two samples of the simulated history

export async function ask(url, path, parameters) {
  const response = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  if (answer.status !== 'success') {
    throw new Error(`${answer.error}\n${JSON.stringify(parameters)}`);
  }
  return answer.data;
}

// Returns the frames of all queries of a panel over a time range; `width` in pixels is the most points that fit.
export async function panelFrames(url, panel, range, width, variables) {
  const { interval, intervalMs } = rangeUtil.calculateInterval(range, width, panel.interval || `${SCRAPE_INTERVAL}s`);
  const step = intervalMs / 1000;
  const filled = {
    ...variables,
    __interval: interval,
    __range: `${Math.round((range.to.valueOf() - range.from.valueOf()) / 1000)}s`,
    __rate_interval: `${Math.max(step + SCRAPE_INTERVAL, 4 * SCRAPE_INTERVAL)}s`,
  };
  const asked = panel.targets.map(async (target) => {
    const query = fill(target.expr, filled);
    if (target.range) {
      const { result } = await ask(url, 'query_range', { query, step, ...alignedTimes(range, step) });
      return result.map((series) => seriesFrame(target, series, intervalMs));
    }
    const { result } = await ask(url, 'query', { query, time: range.to.valueOf() / 1000 });
    if (target.format === 'table') {
      return [tableFrame(target, result, panel.targets.length > 1)];
    }
    return result.map(({ metric, value }) => seriesFrame(target, { metric, values: [value] }, intervalMs));
  });
  return (await Promise.all(asked)).flat();
}

// Puts values in place of $name and ${name:format}; the text of a variable is there as `name:text`.
export function fill(text, variables) {
  return text.replace(/\$(?:(\w+)|\{(\w+)(:\w+)?\})/g, (whole, bare, braced, format) => {
    const name = bare ?? braced;
    return variables[name + format] ?? variables[name] ?? whole;
  });
}

// Whole steps are counted from midnight of the range's time zone.
function alignedTimes(range, step) {
  const align = (time) => {
    const offset = time.utcOffset() * 60;
    return Math.floor((time.valueOf() / 1000 + offset) / step) * step - offset;
  };
  return { start: align(range.from), end: align(range.to) };
}

function seriesFrame(target, { metric, values }, interval) {
  const name = target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? '');
  return {
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, config: { interval }, values: values.map(([time]) => time * 1000) },
      {
        name: 'Value',
        type: FieldType.number,
        labels: metric,
        config: { displayNameFromDS: name },
        values: values.map(([, value]) => Number(value)),
      },
    ],
    length: values.length,
  };
}

function tableFrame(target, result, several) {
  const labels = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const fields = [
    { name: 'Time', type: FieldType.time, config: {}, values: result.map(({ value }) => value[0] * 1000) },
    ...labels.map((name) => {
      const values = result.map(({ metric }) => metric[name] ?? '');
      return { name, type: FieldType.string, config: {}, values };
    }),
    {
      name: several ? `Value #${target.refId}` : 'Value',
      type: FieldType.number,
      config: {},
      values: result.map(({ value }) => Number(value[1])),
    },
  ];
  // A query without an answer has a column, too, unless it is the only one.
  return { refId: target.refId, fields: result.length || several ? fields : [], length: result.length };
}
