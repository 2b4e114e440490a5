// What a dashboard of ours must be, by Grafana's published types. The test puts the dashboards into
// dashboards.ts as literals, so that also fields which the schema does not know are errors.
import type {
  AnnotationContainer,
  AnnotationQuery,
  Dashboard,
  DataQuery,
  FieldConfig,
  FieldConfigSource,
  Panel,
  RowPanel,
} from '@grafana/schema';
import type * as Heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.js';
import type * as Stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js';
import type * as Table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.js';
import type * as TimeSeries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js';

// A string enum in TypeScript is what its values are in JSON.
type Json<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Json<Item>[]
    : T extends object
      ? { [Key in keyof T]: Json<T[Key]> }
      : T;

// The Prometheus data source's query and annotation; its types are in the data source, not in the schema.
interface PrometheusQuery extends DataQuery {
  expr: string;
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  range?: boolean;
  legendFormat?: string;
}
interface PrometheusAnnotation extends AnnotationQuery {
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
  tagKeys: string;
  useValueForTime: boolean;
}

interface Of<Type extends string, Options, Custom> extends Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> {
  type: Type;
  title: string;
  description: string;
  targets: PrometheusQuery[];
  options: Partial<Options>;
  fieldConfig?: Omit<FieldConfigSource, 'defaults'> & {
    defaults: Omit<FieldConfig, 'custom'> & { custom?: Partial<Custom> };
  };
}

type OurPanel =
  | Of<'timeseries', TimeSeries.Options, TimeSeries.FieldConfig>
  | Of<'stat', Stat.Options, never>
  | Of<'table', Table.Options, Table.FieldConfig>
  | Of<'heatmap', Heatmap.Options, Heatmap.FieldConfig>
  | RowPanel;

export type OurDashboard = Json<
  Omit<Dashboard, 'panels' | 'annotations'> & {
    uid: string;
    description: string;
    panels: OurPanel[];
    annotations: Omit<AnnotationContainer, 'list'> & { list: PrometheusAnnotation[] };
  }
>;
