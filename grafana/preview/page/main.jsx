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

const address = new URLSearchParams(location.search);
const prometheus = address.get('prometheus');
const timeZone = address.get('zone');
const theme = createTheme({ colors: { mode: 'light' } });

async function main() {
  prepareGrafana();
  setTimeZoneResolver(() => timeZone);
  const dashboard = await (await fetch(`/dashboards/${address.get('dashboard')}.json`)).json();
  const range = rangeOf(dashboard.time.from, dashboard.time.to);
  const { values, texts } = await chosen(dashboard.templating.list);
  const width = document.documentElement.clientWidth - 2 * GAP;
  const panels = await Promise.all(dashboard.panels.map((panel) => prepared(panel, range, width, values)));
  createRoot(document.querySelector('main')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles isExtensionSidebarOpen={false} />
      <Header dashboard={dashboard} range={range} texts={texts} />
      <div className="grid" style={{ height: Math.max(...panels.map(({ place }) => place.top + place.height)) }}>
        {panels.map(({ panel, place, title, ...rest }) => (
          <div key={panel.id} className="cell" style={place}>
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

// Returns the values of the variables for queries, and what a viewer sees of those that are not hidden.
async function chosen(variables) {
  const values = {};
  const texts = {};
  for (const { type, name, label, hide, includeAll, allValue, query, current } of variables) {
    if (type === 'datasource') {
      continue;
    }
    const given = address.get(`var-${name}`);
    const [value, text] = given
      ? [given, address.get(`text-${name}`) ?? given]
      : includeAll && allValue
        ? [allValue, 'All']
        : type === 'query'
          ? await everyValue(query.query, values)
          : [current.value, current.text];
    values[name] = value;
    if (!hide) {
      texts[label] = text;
    }
  }
  return { values, texts };
}

async function everyValue(query, variables) {
  const [, selector, label] = /^label_values\((.*),\s*(\w+)\)$/s.exec(fill(query, variables));
  const { result } = await ask(prometheus, 'query', { query: `group by (${label}) (${selector})`, time: Date.now() / 1000 });
  const text = result.map(({ metric }) => metric[label]).sort().join(',');
  return [text, text];
}

main().catch((error) => {
  document.querySelector('main').dataset.failure = error.stack;
});
