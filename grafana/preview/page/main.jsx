// The page: one dashboard on Grafana's grid, at a fixed time, with the variables of the address.

import './page.css';

import { ThemeContext, createTheme, dateMath, rangeUtil, setTimeZoneResolver } from '@grafana/data';
import { GlobalStyles } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

import { Panel, preparedFrames, prepareGrafana } from './panels.jsx';
import { ask, fill, panelFrames } from './prometheus.js';

const CELL = 30; // Grafana's grid: height of a cell and the space between cells, in pixels
const GAP = 8;
const COLUMNS = 24;
const NARROW = 768; // below this width Grafana puts panels below each other, in pixels

const address = new URLSearchParams(location.search);
const prometheus = address.get('prometheus');
const timeZone = address.get('zone');
const theme = createTheme({ colors: { mode: 'light' } });

async function main() {
  prepareGrafana();
  setTimeZoneResolver(() => timeZone);
  const dashboard = await (await fetch(`/dashboards/${address.get('dashboard')}.json`)).json();
  const range = rangeOf(dashboard.time.from, dashboard.time.to);
  const { values, texts, options } = await chosen(dashboard.templating.list);
  const width = document.documentElement.clientWidth - 2 * GAP;
  // Collapsed rows are drawn open.
  const all = dashboard.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]);
  const copies = width < NARROW ? stacked(repeated(all, values, options)) : repeated(all, values, options);
  const panels = await Promise.all(copies.map(({ panel, variables }) => prepared(panel, range, width, variables)));
  createRoot(document.querySelector('main')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles isExtensionSidebarOpen={false} />
      <Header dashboard={dashboard} range={range} texts={texts} />
      <div className="grid" style={{ height: Math.max(...panels.map(({ place }) => place.top + place.height)) }}>
        {panels.map(({ panel, place, title, ...rest }, index) => (
          <div key={index} className="cell" style={place}>
            {panel.type === 'row' ? (
              <h2>{title}</h2>
            ) : (
              <Panel panel={panel} title={title} timeZone={timeZone} width={place.width} height={place.height} {...rest} />
            )}
          </div>
        ))}
      </div>
    </ThemeContext.Provider>
  );
}

function Header({ dashboard, range, texts }) {
  return (
    <header>
      <h1>{dashboard.title}</h1>
      {Object.entries(texts).map(([label, text]) => (
        <span key={label} className="variable"><b>{label}</b>{text}</span>
      ))}
      <span className="variable"><b>{rangeUtil.describeTimeRange(range.raw)}</b></span>
      <p>Simulated numbers, drawn by grafana/preview with the panels of @grafana/ui; not a screenshot of Grafana.</p>
    </header>
  );
}

// Returns each panel with its variables, those that repeat once for each choice; what is below them moves down.
function repeated(panels, values, options) {
  let moved = 0;
  return panels.flatMap((panel) => {
    const { w, h, y } = panel.gridPos;
    if (!panel.repeat) {
      return [{ panel: { ...panel, gridPos: { ...panel.gridPos, y: y + moved } }, variables: values }];
    }
    const choices = options[panel.repeat];
    const across = panel.repeatDirection === 'h' ? Math.min(choices.length, panel.maxPerRow) : 1;
    const wide = panel.repeatDirection === 'h' ? COLUMNS / across : w;
    const copies = choices.map(({ value, text }, index) => {
      const gridPos = { w: wide, h, x: (index % across) * wide, y: y + moved + Math.floor(index / across) * h };
      const variables = { ...values, [panel.repeat]: value, [`${panel.repeat}:text`]: text };
      return { panel: { ...panel, gridPos }, variables };
    });
    moved += (Math.ceil(choices.length / across) - 1) * h;
    return copies;
  });
}

// Puts all panels below each other, in the order in which a person reads them.
function stacked(copies) {
  let top = 0;
  const read = [...copies].sort(({ panel: { gridPos: a } }, { panel: { gridPos: b } }) => a.y - b.y || a.x - b.x);
  return read.map(({ panel, variables }) => {
    const gridPos = { x: 0, w: COLUMNS, h: panel.gridPos.h, y: top };
    top += panel.gridPos.h;
    return { panel: { ...panel, gridPos }, variables };
  });
}

async function prepared(panel, dashboardRange, width, variables) {
  const place = placeOf(panel.gridPos, width);
  const title = fill(panel.title, variables);
  if (panel.type === 'row') {
    return { panel, place, title };
  }
  const span = panel.timeFrom && rangeUtil.describeTextRange(panel.timeFrom);
  const range = span ? rangeOf(span.from, span.to) : dashboardRange;
  try {
    const answered = await panelFrames(prometheus, panel, range, Math.floor(place.width), variables);
    const frames = await preparedFrames(panel, answered, theme, timeZone);
    return { panel, place, title, range, frames, note: span?.display };
  } catch (error) {
    throw new Error(`${panel.title}: ${error.message}`);
  }
}

function placeOf({ x, y, w, h }, width) {
  const column = (width + GAP) / COLUMNS;
  return { left: x * column, top: y * (CELL + GAP), width: w * column - GAP, height: h * (CELL + GAP) - GAP };
}

function rangeOf(from, to) {
  return { from: dateMath.parse(from, false, timeZone), to: dateMath.parse(to, true, timeZone), raw: { from, to } };
}

// Returns the values of the variables for queries, what a viewer sees of those that are not hidden, and what there is to
// choose from.
async function chosen(variables) {
  const values = {};
  const texts = {};
  const options = {};
  for (const variable of variables.filter(({ type }) => type !== 'datasource')) {
    const { name, label, hide, includeAll, allValue, current } = variable;
    const given = address.get(`var-${name}`);
    options[name] = variable.type === 'query' ? await choices(variable, values) : variable.options;
    const all = options[name].map(({ value }) => value).join(',');
    const [value, text] = given
      ? [given, options[name].find((option) => option.value === given)?.text ?? given]
      : includeAll
        ? [allValue || all, 'All']
        : [current.value, current.text];
    values[name] = value;
    if (!hide) {
      texts[label] = text;
    }
  }
  return { values, texts, options };
}

// Returns what a query variable offers: the values of a label, or what its pattern finds in series written as text.
async function choices({ query, regex }, variables) {
  const filled = fill(query.query, variables);
  const [, selector, label] = /^label_values\((.*),\s*(\w+)\)$/s.exec(filled) ?? [];
  const expression = label ? `group by (${label}) (${selector})` : /^query_result\((.*)\)$/s.exec(filled)[1];
  const { result } = await ask(prometheus, 'query', { query: expression, time: Date.now() / 1000 });
  const pattern = regex && new RegExp(regex.slice(1, -1));
  const found = result.map(({ metric }) => {
    if (label) {
      return { value: metric[label], text: metric[label] };
    }
    const pairs = Object.entries(metric).map(([key, value]) => `${key}="${value}"`);
    return { ...pattern.exec(`{${pairs.join(',')}}`).groups };
  });
  return found.sort((one, other) => one.text.localeCompare(other.text));
}

main().catch((error) => {
  document.querySelector('main').dataset.failure = error.stack;
});
