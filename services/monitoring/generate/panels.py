"""What the panels of all dashboards have in common: their look, and that each says what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import heatmap as heatmaps
from grafana_foundation_sdk.builders import prometheus, timeseries
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.models import common, dashboard, heatmap
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
FRAMES = "suffix: frames"
FRAMES_PER_SECOND = "suffix: frames/s"
DECIBELS = "dB"
ANGSTROMS = "suffix: Å"
RATIO = "suffix:×"
SECONDS = "s"
SHARE = "percentunit"
BITS_PER_SECOND = "bps"

Style = Mapping[str, Any]
DASHED: Style = {"custom.lineStyle": {"fill": "dash", "dash": [8, 6]}, "custom.fillOpacity": 0}
AREA: Style = {"custom.fillOpacity": 30}


def colour(name: str, **more: Any) -> Style:
    """A series in a colour of its own."""
    return {"color": {"mode": "fixed", "fixedColor": name}, **more}


class Query(NamedTuple):
    """What a panel asks, and what its answer is called in the legend."""

    expr: str
    legend: str = "__auto"
    style: Style | None = None


def _data(query: Query, ref: str, *, instant: bool = False, form: PromQueryFormat | None = None) -> Any:
    data = prometheus.Dataquery().ref_id(ref).datasource(SOURCE).expr(query.expr).legend_format(query.legend)
    if form is not None:
        data = data.format(form)
    return data.instant() if instant else data.range()


def _with_queries(panel: Any, queries: Sequence[Query], **how: Any) -> Any:
    for number, query in enumerate(queries):
        ref = chr(ord("A") + number)
        panel = panel.with_target(_data(query, ref, **how))
        if query.style:
            properties = [dashboard.DynamicConfigValue(name, value) for name, value in query.style.items()]
            panel = panel.override_by_query(ref, properties)
    return panel


def steps(*limits: tuple[float | None, str]) -> dashboards.ThresholdsConfig:
    """Colours from these values on; the first has none."""
    return (
        dashboards.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value=value, color=name) for value, name in limits])
    )


NONE_IS_GOOD = steps((None, "green"), (1e-9, "red"))
PLAIN = steps((None, "text"))


def _framed(panel: Any, title: str, description: str, width: int, height: int) -> Any:
    return panel.title(title).description(description).datasource(SOURCE).span(width).height(height)


def graph(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    width: int = 12,
    height: int = HEIGHT,
    least: float | None = 0,
    most: float | None = None,
    stacked: bool = False,
    bars: bool = False,
    logarithmic: bool = False,
    thresholds: dashboards.ThresholdsConfig | None = None,
) -> cog.Builder[dashboard.Panel]:
    """Lines against time, with their last, mean and greatest values in the legend."""
    panel = _framed(timeseries.Panel(), title, description, width, height)
    panel = (
        panel.unit(unit)
        .draw_style(common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE)
        .line_width(1 if bars else 2)
        .fill_opacity(60 if bars else 25 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "mean", "max"])
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if logarithmic:
        scale = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    if least is not None:
        panel = panel.min(least)
    if most is not None:
        panel = panel.max(most)
    if thresholds is not None:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(thresholds).thresholds_style(style)
    return _with_queries(panel, queries)


def stat(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = "short",
    width: int = 4,
    decimals: int | None = None,
    thresholds: dashboards.ThresholdsConfig = PLAIN,
    by_name: Mapping[str, str] | None = None,
    sparkline: bool = False,
) -> cog.Builder[dashboard.Panel]:
    """One figure of now; ``by_name``: the series' name is shown instead, in the colour given for it."""
    panel = _framed(stats.Panel(), title, description, width, 4).unit(unit).thresholds(thresholds)
    panel = (
        panel.color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA if sparkline else common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.NAME if by_name else common.BigValueTextMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .no_value("–")
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    for name, tone in (by_name or {}).items():
        fixed = {"mode": "fixed", "fixedColor": tone}
        panel = panel.override_by_name(name, [dashboard.DynamicConfigValue("color", fixed)])
    return _with_queries(panel, [query], instant=not sparkline)


def heat(
    title: str, description: str, query: Query, *, unit: str, width: int = 12
) -> cog.Builder[dashboard.Panel]:
    """How often which values occurred, against time; of a histogram's buckets."""
    panel = _framed(heatmaps.Panel(), title, description, width, HEIGHT)
    panel = (
        panel.calculate(False)
        .color(
            heatmaps.HeatmapColorOptions()
            .mode(heatmap.HeatmapColorMode.SCHEME)
            .scheme("Viridis")
            .scale(heatmap.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .fill("dark-blue")
            .reverse(False)
        )
        .y_axis(heatmaps.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
        .cell_gap(1)
        .show_legend()
    )
    return _with_queries(panel, [query], form=PromQueryFormat.HEATMAP)


class Column(NamedTuple):
    """A column of a table: a query, what it is called, and its unit."""

    expr: str
    name: str
    unit: str = "short"
    decimals: int | None = None


def table(
    title: str,
    description: str,
    columns: Sequence[Column],
    *,
    rows: Mapping[str, str],
    width: int = 24,
    height: int = 6,
) -> cog.Builder[dashboard.Panel]:
    """Figures of now side by side; ``rows``: the labels that tell rows apart, and what they are called."""
    panel = _framed(tables.Panel(), title, description, width, height).show_header(True)
    panel = _with_queries(
        panel, [Query(column.expr) for column in columns], instant=True, form=PromQueryFormat.TABLE
    )
    values = {f"Value #{chr(ord('A') + number)}": column for number, column in enumerate(columns)}
    panel = panel.transformations(
        [
            dashboard.DataTransformerConfig(id_val="merge", options={}),
            dashboard.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {name: place for place, name in enumerate((*rows, *values))},
                    "renameByName": {**rows, **{name: column.name for name, column in values.items()}},
                },
            ),
        ]
    )
    for column in columns:
        properties = [dashboard.DynamicConfigValue("unit", column.unit)]
        if column.decimals is not None:
            properties.append(dashboard.DynamicConfigValue("decimals", column.decimals))
        panel = panel.override_by_name(column.name, properties)
    return panel


class Marks(dashboard.AnnotationQuery):
    """Vertical lines at the times that a query's values say, in seconds; the SDK knows only part of it."""

    def __init__(self, name: str, expr: str, *, title: str, text: str, tags: str, tone: str) -> None:
        super().__init__(name=name, datasource=SOURCE, enable=True, icon_color=tone)
        self._expr, self._title, self._text, self._tags = expr, title, text, tags

    def build(self) -> Marks:
        """Itself: it is its own builder."""
        return self

    def to_json(self) -> dict[str, object]:
        """As Grafana's Prometheus data source reads it."""
        return {
            "name": self.name,
            "datasource": self.datasource,
            "enable": True,
            "iconColor": self.icon_color,
            "expr": f"{self._expr} * 1000",
            "step": "5s",
            "titleFormat": self._title,
            "textFormat": self._text,
            "tagKeys": self._tags,
            "useValueForTime": True,
        }


CHANGES = Marks(
    "Configuration changes",
    "cryoflux_configuration_since_timestamp_seconds",
    title="C = {{compression_factor}}",
    text="from here on frames are acquired through {{mask}}, C = {{compression_factor}}",
    tags="mask",
    tone="purple",
)


def row(title: str) -> dashboards.Row:
    """A heading."""
    return dashboards.Row(title)


def board(uid: str, title: str, description: str, other: tuple[str, str]) -> dashboards.Dashboard:
    """An empty dashboard with a link to the other one."""
    other_uid, other_title = other
    return (
        dashboards.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["cryoflux"])
        .editable()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .refresh("5s")
        .time("now-15m", "now")
        .timezone("browser")
        .annotation(CHANGES)
        .link(
            dashboards.DashboardLink(other_title)
            .type(dashboard.DashboardLinkType.LINK)
            .url(f"/d/{other_uid}")
            .icon("dashboard")
            .keep_time(True)
        )
        .with_variable(
            dashboards.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .current(dashboard.VariableOption(selected=True, text="Prometheus", value="prometheus"))
        )
    )


def numbered(built: dashboard.Dashboard) -> dashboard.Dashboard:
    """Its panels with ids, so that each can be linked to."""
    for number, panel in enumerate(built.panels or [], 1):
        panel.id_val = number
    return built
