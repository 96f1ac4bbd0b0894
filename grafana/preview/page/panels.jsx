// Draws the panels of a dashboard with Grafana's own components.

import {
  FieldConfigOptionsRegistry,
  applyFieldOverrides,
  applyNullInsertThreshold,
  cacheFieldDisplayNames,
  displayNameOverrideProcessor,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  standardTransformers,
  standardTransformersRegistry,
  thresholdsOverrideProcessor,
  transformDataFrame,
} from '@grafana/data';
import { BarGauge, BigValue, PanelChrome, TimeSeries, VizRepeater, useTheme2 } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { lastValueFrom } from 'rxjs';

const PROPERTIES = [
  'color', 'decimals', 'displayName', 'links', 'mappings', 'max', 'min', 'noValue', 'thresholds', 'unit',
  'custom.align', 'custom.axisBorderShow', 'custom.axisColorMode', 'custom.axisPlacement', 'custom.axisSoftMax',
  'custom.axisSoftMin', 'custom.barAlignment',
  'custom.barWidthFactor', 'custom.cellOptions', 'custom.drawStyle', 'custom.fillBelowTo', 'custom.fillOpacity',
  'custom.filterable', 'custom.gradientMode', 'custom.hidden', 'custom.hideFrom', 'custom.insertNulls',
  'custom.lineInterpolation', 'custom.lineStyle', 'custom.lineWidth', 'custom.minWidth', 'custom.pointSize',
  'custom.scaleDistribution', 'custom.showPoints', 'custom.spanNulls', 'custom.stacking', 'custom.thresholdsStyle',
  'custom.width', 'custom.wrapHeaderText',
];
const PROCESSORS = { displayName: displayNameOverrideProcessor, thresholds: thresholdsOverrideProcessor };

// What Grafana's panels take where a dashboard says nothing.
const DEFAULTS = {
  timeseries: {
    axisPlacement: 'auto', barAlignment: 0, barWidthFactor: 0.6, gradientMode: 'none', hideFrom: {},
    lineInterpolation: 'linear', pointSize: 5, showPoints: 'auto', thresholdsStyle: { mode: 'off' },
  },
  table: { align: 'auto', cellOptions: { type: 'auto' } },
};

export function prepareGrafana() {
  standardTransformersRegistry.setInit(() =>
    [...new Set(Object.values(standardTransformers))].map((transformer) => ({
      id: transformer.id,
      name: transformer.name,
      aliasIds: transformer.aliasIds,
      transformation: () => Promise.resolve(transformer),
    }))
  );
}

// Returns the frames as the panel's transformations, field configuration and overrides make them.
export async function preparedFrames(panel, frames, theme, timeZone) {
  const transformed = await lastValueFrom(transformDataFrame(panel.transformations ?? [], frames));
  const defaults = { ...panel.fieldConfig.defaults };
  defaults.custom = { ...DEFAULTS[panel.type], ...withoutNulls(defaults.custom ?? {}) };
  const configured = applyFieldOverrides({
    data: transformed,
    fieldConfig: { defaults, overrides: panel.fieldConfig.overrides },
    fieldConfigRegistry: REGISTRY,
    replaceVariables: fieldText,
    theme,
    timeZone,
  });
  cacheFieldDisplayNames(configured);
  return panel.type === 'timeseries' ? configured.map((frame) => applyNullInsertThreshold({ frame })) : configured;
}

// A panel in its frame; `note` says what time it shows.
export function Panel({ panel, frames, width, height, range, timeZone, title, note }) {
  return (
    <PanelChrome
      title={title}
      description={panel.description}
      titleItems={note && <span className="note">{note}</span>}
      padding={panel.type === 'table' ? 'none' : 'md'}
      width={width}
      height={height}
    >
      {(inner, innerHeight) => (
        <Content panel={panel} frames={frames} width={inner} height={innerHeight} range={range} timeZone={timeZone} />
      )}
    </PanelChrome>
  );
}

function Content({ panel, frames, ...rest }) {
  const rows = Math.max(0, ...frames.map((frame) => frame.length));
  if (!rows && panel.type !== 'stat') {
    return <div className="no-data">{panel.fieldConfig.defaults.noValue}</div>;
  }
  const Drawing = { timeseries: Series, table: Table, stat: Stat, bargauge: Bars }[panel.type];
  return <Drawing panel={panel} frames={frames} {...rest} />;
}

function Series({ panel, frames, width, height, range, timeZone }) {
  return (
    <TimeSeries
      frames={frames}
      legend={panel.options.legend}
      options={panel.options}
      timeRange={range}
      timeZone={timeZone}
      width={width}
      height={height}
    />
  );
}

function Table({ panel, frames, width, height }) {
  return (
    <TableNG
      data={frames[0]}
      fieldConfig={panel.fieldConfig}
      noValue={panel.fieldConfig.defaults.noValue}
      cellHeight={panel.options.cellHeight}
      enablePagination={panel.options.footer?.enablePagination}
      enableVirtualization={false}
      width={width}
      height={height}
    />
  );
}

function Stat({ panel, ...rest }) {
  const theme = useTheme2();
  const { colorMode, graphMode, justifyMode, textMode } = panel.options;
  return (
    <Repeated
      panel={panel}
      orientation="auto"
      autoGrid
      draw={(shown, place) => (
        <BigValue
          theme={theme}
          value={shown.display}
          colorMode={colorMode}
          graphMode={graphMode}
          justifyMode={justifyMode ?? 'auto'}
          textMode={textMode}
          {...place}
        />
      )}
      {...rest}
    />
  );
}

function Bars({ panel, spacing = 8, ...rest }) {
  const theme = useTheme2();
  const { displayMode, namePlacement, text, valueMode } = panel.options;
  return (
    <Repeated
      panel={panel}
      orientation={panel.options.orientation}
      spacing={spacing}
      draw={(shown, { count, ...place }) => (
        <BarGauge
          theme={theme}
          field={shown.field}
          value={shown.display}
          display={shown.view?.getFieldDisplayProcessor(shown.colIndex)}
          displayMode={displayMode}
          namePlacement={namePlacement}
          valueDisplayMode={valueMode}
          itemSpacing={spacing}
          text={text}
          showUnfilled
          {...place}
        />
      )}
      {...rest}
    />
  );
}

function Repeated({ panel, frames, width, height, timeZone, orientation, autoGrid, spacing = 8, draw }) {
  const theme = useTheme2();
  const values = () =>
    getFieldDisplayValues({
      data: frames,
      fieldConfig: panel.fieldConfig,
      reduceOptions: panel.options.reduceOptions,
      replaceVariables: fieldText,
      theme,
      timeZone,
    });
  return (
    <VizRepeater
      source={frames}
      getValues={values}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, ...place }) => draw(value, place)}
      renderCounter={0}
      orientation={orientation}
      autoGrid={autoGrid}
      itemSpacing={spacing}
      minVizWidth={8}
      minVizHeight={12}
      maxVizHeight={panel.options.maxVizHeight ?? 300}
      width={width}
      height={height}
    />
  );
}

const REGISTRY = new FieldConfigOptionsRegistry(() =>
  PROPERTIES.map((id) => ({
    id,
    path: id.replace('custom.', ''),
    name: id,
    isCustom: id.startsWith('custom.'),
    process: PROCESSORS[id] ?? ((value) => value),
    settings: { expandTemplateVars: true },
    override: null,
    editor: null,
    shouldApply: () => true,
  }))
);

// Puts labels in place of ${__field.labels.name}.
function fieldText(text, scope) {
  const labels = scope?.__dataContext?.value.field.labels ?? {};
  return text.replace(/\$\{__field\.labels\.(\w+)\}/g, (_, label) => labels[label] ?? '');
}

function withoutNulls(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== null));
}
